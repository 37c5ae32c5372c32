"""Tables 1, 2 and 4 of the ICML 2021 paper in their own row order, our columns beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..recipe import PRESETS
from . import fmt, styles
from .cells import (
    ACCURACIES,
    METHOD,
    PRESET_NOTE,
    accuracy,
    costs,
    daggers,
    delta,
    measured_data,
    only,
    published_accuracy,
    published_data,
    table,
)
from .model import Block, Cell, Column, Row, Table
from .pool import Pool, Setting
from .published import Cell as Published
from .rows import Inputs


def ours(inputs: Inputs, setting: Setting, name: str) -> Pool | None:
    """Our row for a published one: unchanged recipe, the preset nearest to the paper, whole split first."""
    pools = [
        p for b in inputs.blocks_of(setting) for p in b.pools if p.method == name and not p.broken and not p.overrides
    ]
    return min(
        pools,
        key=lambda p: (PRESETS.index(p.first.preset), p.first.is_subset, -p.count("certified"), p.first.id),
        default=None,
    )


def paper(inputs: Inputs, number: int) -> Table | None:
    """Table 1 or 2 of the ICML 2021 paper in its own row order, with our columns beside it and a dash where we have no
    run; methods measured here that the paper's table lacks follow. None if the paper's numbers are not there."""
    cells = [
        c
        for c in inputs.published
        if c.source.citekey == "zhang2021linf" and c.where == f"Table {number}" and c.has_accuracy
    ]
    if not cells:
        return None
    columns = (
        METHOD, Column("p_flops", "Paper\u2020 FLOPs"), *(Column(f"p_{k}", f"Paper\u2020 {k} %") for k in ACCURACIES),
        Column("preset", "Our preset", numeric=False, keep=True), Column("flops", "Our FLOPs", formats=("html",)),
        *(Column(k, f"Our {k} %", "up", keep=True) for k in ACCURACIES),
        Column("delta", "\u0394 certified", formats=("html",)),
        Column("train_s", "Train time", "down", formats=("html",)),
    )  # fmt: skip
    groups: dict[Setting, list[Published]] = {}
    for c in cells:
        groups.setdefault(Setting.of(c.dataset, c.norm, c.eps_fraction), []).append(c)
    blocks, used = [], []
    for setting, group in groups.items():  # the paper's order, which is the file's
        rows = []
        for c in group:
            pool = ours(inputs, setting, c.method)
            used += [pool] if pool else []
            theirs = {f"p_{k}": _theirs(c, k) for k in ACCURACIES}
            name = f"{styles.title(c.method)}, {c.architecture}" if _ambiguous(c, group) else c.label or c.method
            label = Cell(name, daggers(c), ref=c.key)
            rows.append(
                Row(
                    {**theirs, **_our_cells(pool), "method": label, "p_flops": Cell(fmt.si(c.ops), sort=c.ops)},
                    published_data(c),
                )
            )
        listed = {c.method for c in group}
        more = sorted({p.method for b in inputs.blocks_of(setting) for p in b.pools} - listed, key=styles.order)
        for name in more:
            if pool := ours(inputs, setting, name):
                used.append(pool)
                label = Cell(f"{pool.title} (not in the paper's table)", ref=pool.first.id)
                rows.append(Row({**_our_cells(pool), "method": label}, measured_data(pool)))
        blocks.append(Block(setting.title, rows))
    title = f"Table {number} of \u201c{cells[0].source.paper}\u201d ({cells[0].source.short}) beside our runs"
    pools = list({id(p): p for p in used}.values())
    notes = ["A dash in our columns: not run here. " + PRESET_NOTE]
    return table(f"paper_table{number}", title, columns, blocks, pools, notes)


def _theirs(cell: Published, key: str) -> Cell:
    """A number of the paper; its dagger stands in the head of the column."""
    found = published_accuracy(cell, key)
    return replace(found, marks=tuple(m for m in found.marks if m not in ("\u2020", "\u2021")))


def _ambiguous(cell: Published, group: Sequence[Published]) -> bool:
    return sum(c.method == cell.method for c in group) > 1


def _our_cells(pool: Pool | None) -> dict[str, Cell]:
    if pool is None:
        return {}
    cells = {k: accuracy(pool, k) for k in ACCURACIES}
    return {
        **cells,
        "preset": Cell(pool.first.preset),
        "delta": delta(pool, "certified"),
        **only(costs(pool), "train_s", "flops"),
    }


def paper_cost(inputs: Inputs) -> Table | None:
    """Table 4 of the ICML 2021 paper, seconds per training epoch, beside ours; never a ratio, the machines differ."""
    cells = [c for c in inputs.published if c.source.citekey == "zhang2021linf" and c.where == "Table 4"]
    if not cells:
        return None
    columns = (
        METHOD, Column("p_epoch", "Paper\u2020 s per epoch"), Column("preset", "Our preset", numeric=False, keep=True),
        Column("s_per_epoch", "Our time per epoch", "down", keep=True), Column("train_s", "Our train time", "down"),
        Column("device", "Our device", numeric=False),
    )  # fmt: skip
    setting = Setting.of(cells[0].dataset, cells[0].norm, cells[0].eps_fraction)
    rows, used = [], []
    for c in cells:
        pool = ours(inputs, setting, c.method)
        seconds = Cell(str(c.seconds_per_epoch), sort=float(c.seconds_per_epoch or 0), ref=c.key)
        here: dict[str, Cell] = {}
        if pool:
            used.append(pool)
            here = only(costs(pool), "s_per_epoch", "train_s", "device") | {
                "preset": Cell(pool.first.preset, pool.marks())
            }
        name = Cell(styles.title(c.method), ref=c.key)
        rows.append(Row({"method": name, "p_epoch": seconds, **here}, published_data(c)))
    title = f"Table 4 of \u201c{cells[0].source.paper}\u201d ({cells[0].source.short}) beside our runs"
    notes = ["The paper does not name its GPU; times of different devices are not comparable. " + PRESET_NOTE]
    return table("paper_table4", title, columns, [Block(setting.title, rows)], used, notes)
