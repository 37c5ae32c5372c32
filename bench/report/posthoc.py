"""The table of certificates that were added after the fact: trained with x certified with."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..beside import own_count
from ..certification import Certification
from ..record import Record
from . import fmt, stats
from .cells import METHOD, plain, table
from .model import Block, Cell, Column, Row, Table
from .pool import PRESET_MARK, Pool, Setting
from .rows import Inputs

OPEN = ("unknown", "unsound", "timeout", "out_of_memory")  # outcomes of examples that are right and not certified


def posthoc(inputs: Inputs) -> Table | None:
    """Every certification beside a shown record; a block per setting and number of images."""
    columns = (
        METHOD, Column("preset", "Preset", numeric=False), Column("seed", "Seed"),
        Column("certifier", "Certified with", numeric=False), Column("n", "n"),
        Column("clean", "Clean %", "up"), Column("own", "By its own certificate %", "up"),
        Column("certified", "Certified %", "up"), *(Column(k, k.replace("_", " ").capitalize()) for k in OPEN),
        Column("seconds", "Time", "down"), Column("engine", "Engine", numeric=False),
    )  # fmt: skip
    shown = {r.id: pool for pool in inputs.pools if not pool.broken for r in pool.records}
    groups: dict[tuple[Setting, int], list[_Line]] = {}
    for record, one in inputs.certifications:
        if record.id in shown:
            setting = Setting.of(record.dataset, record.norm, record.eps.fraction)
            groups.setdefault((setting, -one.n), []).append(_Line(shown[record.id], record, one))
    if not groups:
        return None
    blocks = []
    for setting, less in sorted(groups):
        mine = sorted(groups[setting, less], key=lambda line: line.rank)
        part = ", the first of the test images" if mine[0].one.is_subset else ""
        blocks.append(Block(f"{setting.title}, n = {-less}{part}", [_row(line) for line in mine]))
    pools = {id(line.pool): line.pool for lines in groups.values() for line in lines}
    notes = [
        "Trained with the method, certified with another bound than the method's own; the brackets hold its class.",
        "Unknown: the bound fails. Unsound: a point of the ball contradicts it. None of the four counts as certified.",
    ]
    return table("posthoc", "Trained with, certified with", columns, blocks, list(pools.values()), notes)


@dataclass(frozen=True)
class _Line:
    """What a row is made of."""

    pool: Pool
    record: Record
    one: Certification

    @property
    def rank(self) -> tuple[Any, ...]:
        return -self.one.count("certified"), self.record.method, self.record.id, self.one.path.name


def _row(line: _Line) -> Row:
    record, one = line.record, line.one
    marks = tuple(m for m in (PRESET_MARK[record.preset],) if m)
    marks += ("s",) if one.is_subset or record.is_subset else ()
    marks += ("m",) if record.is_modified else ()
    marks += ("+",) if one.data["code"].get("dirty") or record.is_dirty else ()
    near = ("b",) if one.data["n_borderline"] else ()
    places = fmt.decimals(one.n)

    def share(count: int, more: tuple[str, ...] = ()) -> Cell:
        value = Fraction(100 * count, one.n)
        lo, hi = stats.wilson(count, one.n)
        return Cell(
            fmt.fixed(value, places), marks + more, sort=float(value), ref=record.id,
            note=fmt.half_width(lo, hi, float(value), places),
        )  # fmt: skip

    with_ = one.data["certified_with"]
    steps = f", {with_['iterations']} iterations" if "iterations" in with_ else ""
    own = share(own_count(record, one.index, "certified")) if record.certificate_class else Cell("none")
    cells = {
        "method": Cell(line.pool.title, marks, sort=line.pool.title.lower(), ref=record.id),
        "preset": Cell(record.preset), "seed": plain(record.seed), "n": plain(one.n), "own": own,
        "certifier": Cell(f"{one.certifier} ({with_['cls']}){steps}"),
        "clean": share(own_count(record, one.index, "correct")),
        "certified": share(one.count("certified"), near), **{k: plain(one.count(k)) for k in OPEN},
        "seconds": Cell(fmt.seconds(one.data["seconds"]), sort=one.data["seconds"]), "engine": Cell(with_["engine"]),
    }  # fmt: skip
    data = {
        "dataset": record.dataset, "eps": str(record.eps), "method": record.method, "preset": record.preset,
        "cls": str(with_["cls"]), "kind": "measured", "ref": record.id,
    }  # fmt: skip
    return Row(cells, data)
