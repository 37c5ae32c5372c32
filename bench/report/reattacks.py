"""The table of attacks that were run after the fact: what the record's own attacks had left standing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from ..reattack import Reattack, n_open
from ..record import Record
from . import fmt, stats
from .cells import METHOD, plain, table
from .model import Block, Cell, Column, Row, Table
from .pool import PRESET_MARK, Pool, Setting
from .rows import Inputs

_Line = tuple[Pool, Record, Reattack]
SUITES = {"pgd": "PGD and surrogates", "autoattack": "PGD, surrogates and AutoAttack"}


def reattacks(inputs: Inputs) -> Table | None:
    """Every later attack on a shown record; a block per setting and number of images."""
    columns = (
        METHOD, Column("preset", "Preset", numeric=False), Column("seed", "Seed"),
        Column("suite", "Attacked with", numeric=False), Column("n", "n"), Column("clean", "Clean %", "up"),
        Column("before", "Robust % by the record", "up"), Column("both", "Robust % after both", "up"),
        Column("newly", "Newly broken", "down"), Column("certified", "Certified %", "up"),
        Column("open", "Neither broken nor proved", "down"), Column("seconds", "Time", "down"),
    )  # fmt: skip
    shown = {r.id: pool for pool in inputs.pools if not pool.broken for r in pool.records}
    groups: dict[tuple[Setting, int], list[_Line]] = {}
    for record, one in inputs.reattacks:
        if record.id in shown:
            setting = Setting.of(record.dataset, record.norm, record.eps.fraction)
            groups.setdefault((setting, -one.n), []).append((shown[record.id], record, one))
    if not groups:
        return None
    blocks = []
    for setting, less in sorted(groups):
        mine = sorted(groups[setting, less], key=_rank)
        part = ", a seeded sample of the test images" if mine[0][2].is_subset else ""
        blocks.append(Block(f"{setting.title}, n = {-less}{part}", [_row(*line) for line in mine]))
    pools = {id(pool): pool for lines in groups.values() for pool, _, _ in lines}
    notes = [
        "After both: right and broken neither by the record's attacks nor by these.",
        _about_certified(groups.values()),
    ]
    notes += [f"{_what(line)}: {note}" for lines in groups.values() for line in lines for note in _warnings(line[2])]
    return table("reattacks", "Attacked again", columns, blocks, list(pools.values()), notes)


def _about_certified(groups: Iterable[Sequence[_Line]]) -> str:
    """Whether certificates were put to the test at all."""
    attacked = sum(one.n_certified_attacked for lines in groups for _, _, one in lines)
    if not attacked:
        return "Images with a certificate were not attacked again: what is tested here are the others."
    return (
        f"{attacked} images with a certificate were attacked too. One of class D or F32 that broke would have stopped "
        "the result from being stored."
    )


def _warnings(one: Reattack) -> list[str]:
    """Its notes, without the one that says what was left out: the table says that of all."""
    return [note for note in one.data["notes"] if "were not attacked" not in note]


def _what(line: _Line) -> str:
    _, record, _ = line
    where = Setting.of(record.dataset, record.norm, record.eps.fraction)
    return f"{record.title}, {where.title}, preset {record.preset}, seed {record.seed}"


def _rank(line: _Line) -> tuple[object, ...]:
    _, record, one = line
    return -one.count("robust_both"), record.method, record.id, one.path.name


def _row(pool: Pool, record: Record, one: Reattack) -> Row:
    marks = tuple(m for m in (PRESET_MARK[record.preset],) if m)
    marks += ("s",) if one.is_subset or record.is_subset else ()
    marks += ("m",) if record.is_modified else ()
    marks += ("+",) if one.data["code"].get("dirty") or record.is_dirty else ()
    places = fmt.decimals(one.n)

    def share(key: str) -> Cell:
        value = Fraction(100 * one.count(key), one.n)
        lo, hi = stats.wilson(one.count(key), one.n)
        note = fmt.half_width(lo, hi, float(value), places)
        return Cell(fmt.fixed(value, places), marks, sort=float(value), ref=record.id, note=note)

    cells = {
        "method": Cell(pool.title, marks, sort=pool.title.lower(), ref=record.id),
        "preset": Cell(record.preset), "seed": plain(record.seed), "n": plain(one.n),
        "suite": Cell(SUITES.get(one.suite, one.suite)), "clean": share("correct"), "before": share("robust_before"),
        "both": share("robust_both"), "newly": plain(one.count("newly_broken")),
        "certified": share("certified") if record.certificate_class else Cell("none"),
        "open": plain(n_open(record, one)),
        "seconds": Cell(fmt.seconds(one.data["seconds"]), sort=one.data["seconds"]),
    }  # fmt: skip
    data = {
        "dataset": record.dataset, "eps": str(record.eps), "method": record.method, "preset": record.preset,
        "cls": str(record.certificate_class), "kind": "measured", "ref": record.id,
    }  # fmt: skip
    return Row(cells, data)
