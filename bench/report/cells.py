"""From pooled records and published cells to printed cells: one maker per column, shared by all tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from .. import __version__
from . import fmt, styles
from .blocks import Standing
from .columns import CSV_COLUMNS, published_row
from .fmt import DASH
from .model import Block, Cell, Column, Row, Table
from .pool import Pool, Setting
from .published import Cell as Published

KIND_OF = {"clean": "correct", "robust": "robust", "certified": "certified"}


ACCURACIES = ("clean", "robust", "certified")


METHOD = Column("method", "Method", numeric=False)


ACC = tuple(Column(k, f"{k.capitalize()} %", "up") for k in ACCURACIES)


PRESET_NOTE = (
    "Our numbers come from the preset named in the row; only preset paper repeats the published recipe, the others are "
    "cheaper runs and say nothing about the paper's numbers."
)


PUBLISHED_NOTE = (
    "Published: the most certified number that the method's own paper or its authors give, also where a later source "
    "quotes it, else another paper's; by bounds, as ours are, where there is one, else by a complete verifier; "
    "whatever its network (table Published numbers has them all)."
)


def accuracy(pool: Pool, key: str, standing: Standing = Standing()) -> Cell:  # noqa: B008 - frozen, no state
    """Clean, robust or certified accuracy with interval and marks, or the withheld number of a broken guard."""
    if pool.broken:
        return Cell("!", ref=pool.first.id)
    kind = KIND_OF[key]
    if kind == "certified" and pool.cls is None:
        return Cell("n/a", ref=pool.first.id)
    value, (lo, hi) = pool.percent(kind), pool.interval(kind)
    marks = pool.marks(kind) + (("t",) if standing.tied else ())
    places = fmt.decimals(pool.n)
    note = fmt.half_width(lo, hi, float(value), places)
    return Cell(fmt.fixed(value, places), marks, standing.best, float(value), note, pool.first.id)


def published_accuracy(cell: Published, key: str) -> Cell:
    """A published percentage with its daggers."""
    value = getattr(cell, key)
    if value is None:
        return Cell()
    return Cell(str(value), daggers(cell), sort=float(value), ref=cell.key)


def daggers(cell: Published) -> tuple[str, ...]:
    own = styles.own_paper(cell.method)
    found = ["\u2020" if own is None or own == cell.source.citekey else "\u2021"]
    if cell.tag == "secondary":
        found.append("v")
    if cell.eps_used is not None and Fraction(cell.eps_used) != cell.eps_fraction:
        found.append("e")
    if (cell.n_test or 10_000) < 1000:
        found.append("s")
    return tuple(found)


def triple(cell: Published | None) -> Cell:
    """`98.54 / 94.71 / 92.64` as published."""
    if cell is None:
        return Cell()
    parts = [str(v) if (v := getattr(cell, key)) is not None else DASH for key in ACCURACIES]
    sort = float(cell.certified) if cell.certified is not None else None
    return Cell(" / ".join(parts), daggers(cell), sort=sort, ref=cell.key)


def delta(pool: Pool, key: str) -> Cell:
    """Measured minus published, in points; only where the test images are the published ones."""
    cell = pool.published
    if cell is None or getattr(cell, key) is None or pool.broken:
        return Cell()
    if any(r.is_subset for r in pool.records):
        return Cell("n/a")
    value = pool.percent(KIND_OF[key]) - Fraction(getattr(cell, key))
    return Cell(fmt.points(value, fmt.decimals(pool.n)), pool.marks(), sort=float(value), ref=pool.first.id)


def seeds(pool: Pool) -> Cell:
    """How many seeds, and how far certified accuracy moves between them."""
    s, places = pool.over_seeds("certified"), fmt.decimals(pool.n)
    if s.k == 1:
        text = "1"
    elif s.sd is None:
        text = f"2: {fmt.fixed(s.low, places)}..{fmt.fixed(s.high, places)}"
    else:
        text = f"{s.k}: sd {fmt.fixed(s.sd, places)}, {fmt.fixed(s.low, places)}..{fmt.fixed(s.high, places)}"
    return Cell(text, sort=float(s.k))


def certificate(pool: Pool) -> Cell:
    """`interval (D)`."""
    return Cell(f"{pool.certifier} ({pool.cls})") if pool.cls else Cell("none")


def certifier(cell: Published) -> Cell:
    """What certified a published number, short; the whole text stands in the csv and behind the number."""
    return Cell(fmt.shorten(re.sub(r" \(repo [^)]*\)", "", cell.certifier), 42) if cell.certifier else DASH)


def method(pool: Pool) -> Cell:
    return Cell(pool.title, pool.marks(), sort=pool.title.lower(), ref=pool.first.id)


def source(cell: Published, *, whole: bool = False) -> Cell:
    """`ICML 2021, Table 1`, linked; a long place is cut, the whole one stands in the csv and behind the number."""
    where = cell.where if whole else fmt.shorten(cell.where, 40)
    return Cell(f"{cell.source.short}, {where}", href=cell.source.url or "", ref=cell.key)


def costs(pool: Pool) -> dict[str, Cell]:
    """The cost columns; `sort` in base units."""
    peak, flops, params = pool.cost("peak_memory_bytes"), pool.cost("flops"), pool.cost("params")
    epoch, each = pool.cost("s_per_epoch"), pool.cost("certify_ms")
    kernel = ", ".join(kernel_words(pool.first.data["environment"].get("kernels")).values())
    several = len(pool.machines) > 1  # times of several machines have no mean
    return {
        "params": Cell(fmt.si(params), sort=params),
        "flops": Cell(fmt.si(flops), sort=flops),
        "s_per_epoch": Cell(fmt.seconds(epoch), sort=epoch),
        "train_s": Cell("n/a") if several else Cell(fmt.seconds(pool.train_s), sort=pool.train_s),
        "certify_ms": Cell(fmt.millis(each), sort=each),
        "peak": Cell(fmt.gib(None if peak is None else int(peak)), sort=peak),
        "kernel": Cell(kernel or DASH),
        "device": Cell(pool.device),
    }


def kernel_words(kernels: Any) -> dict[str, str]:
    """What computed it, in a word or two each: {"linf_dist": "native avx512"}."""
    found = {}
    for name in sorted(kernels) if isinstance(kernels, Mapping) else ():
        value = kernels[name]
        parts = [value.get("backend"), value.get("isa")] if isinstance(value, Mapping) else [value]
        if words := " ".join(p for p in parts if isinstance(p, str) and p):
            found[str(name)] = words[:40]
    return found


def plain(value: Any) -> Cell:
    if value is None:
        return Cell()
    return Cell(str(value), sort=float(value) if isinstance(value, (int, float)) else str(value))


def only(cells: dict[str, Cell], *keys: str) -> dict[str, Cell]:
    return {k: cells[k] for k in keys}


def setting_cell(setting: Setting) -> Cell:
    return Cell(
        f"{styles.dataset_title(setting.dataset)}, {setting.eps_text}" + (f" {setting.norm}" * bool(setting.norm))
    )


def summary(what: str, pools: Sequence[Pool]) -> str:
    counts = sorted({p.n for p in pools})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}..{counts[-1]}" if counts else "published only"
    records = sum(p.k for p in pools)
    return f"{what}; {n}; certbench {__version__}; {fmt.many(records, 'record')}"


def table(
    name: str,
    title: str,
    columns: Sequence[Column],
    blocks: Sequence[Block],
    pools: Sequence[Pool],
    notes: Sequence[str] = (),
    cells: Sequence[Published] | None = None,
) -> Table:
    """A table with its csv: with `cells` (even none) a full row per record and published cell, else what is printed."""
    if cells is not None:
        rows: list[Mapping[str, Any]] = [row for p in pools for row in p.csv_rows]
        rows += [published_row(c) for c in cells]
        return Table(name, title, summary(title, pools), columns, blocks, CSV_COLUMNS, rows, notes)
    keys = [c.key for c in columns]
    rows = [
        {
            "block": block.heading,
            **{k: _csv_value(row[k]) for k in keys},
            "marks": _marks(row),
            "ref": row.data.get("ref"),
        }
        for block in blocks
        for row in block.rows
    ]
    return Table(name, title, summary(title, pools), columns, blocks, ("block", *keys, "marks", "ref"), rows, notes)


def _csv_value(cell: Cell) -> Any:
    """The unrounded number behind a cell, else its words; nothing for a dash."""
    if cell.is_empty:
        return None
    return cell.sort if isinstance(cell.sort, (int, float)) else cell.text


def _marks(row: Row) -> str:
    """The signs of a row, once each."""
    return " ".join(dict.fromkeys(m for cell in row.cells.values() for m in cell.marks))


def measured_data(pool: Pool) -> dict[str, str]:
    """What the page filters by."""
    r = pool.first
    return {
        "dataset": r.dataset, "eps": str(r.eps), "method": r.method, "preset": r.preset, "cls": pool.cls or "none",
        "kind": "measured", "ref": r.id,
    }  # fmt: skip


def published_data(cell: Published) -> dict[str, str]:
    return {
        "dataset": cell.dataset, "eps": cell.eps, "method": cell.method, "preset": "", "cls": "", "kind": "published",
        "ref": cell.key,
    }  # fmt: skip
