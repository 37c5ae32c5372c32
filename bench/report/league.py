"""The league: what training of at most so long reached, machine by machine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from . import fmt, limits, styles
from .cells import METHOD, accuracy, table
from .model import Block, Cell, Column, Row, Table
from .pool import Pool, Setting
from .rows import Inputs

BUDGETS = ((60, "1 min"), (300, "5 min"), (1200, "20 min"), (3600, "1 h"), (4 * 3600, "4 h"), (24 * 3600, "24 h"))


def league(inputs: Inputs, kind: str) -> Table:
    """Best certified accuracy of what was run, by training time, per setting and device; kind is cpu or gpu.

    Runs of any preset and recipe compete here. A budget that no training filled has no column: a short run would look
    like what the method makes of more time.
    """
    groups: dict[tuple[Setting, str], list[Pool]] = {}
    for pool in (p.on(machine) for b in inputs.blocks for p in b.pools for machine in p.machines):
        r = pool.first
        if (r.data["environment"]["device_type"] == "cpu") == (kind == "cpu") and not pool.broken and pool.cls:
            count = r.machine[1]
            threads = f", {fmt.many(count, 'thread')}" if kind == "cpu" else ""
            setting = Setting.of(r.dataset, r.norm, r.eps.fraction)
            groups.setdefault((setting, pool.device + threads), []).append(pool)
    blocks, shown = [], []
    for setting, device in sorted(groups):
        rows = []
        for name in sorted({p.method for p in groups[setting, device]}, key=styles.order):
            mine = [p for p in groups[setting, device] if p.method == name and not p.first.is_subset]
            cells = {}
            for limit, _ in BUDGETS:
                within = [p for p in mine if p.train_s <= limit]
                if within:
                    best = max(within, key=lambda p: (p.percent("certified"), p.first.id))
                    made = accuracy(best, "certified")
                    cells[f"b{limit}"] = replace(made, text=f"{made.text} ({fmt.seconds(best.train_s)})", note="")
            if cells:
                shown += mine
                rows.append(Row({"method": Cell(mine[0].first.title, sort=name), **cells}, {"method": name}))
        if rows:
            rows.sort(key=lambda row: -max(c.sort for c in row.cells.values() if isinstance(c.sort, float)))
            blocks.append(Block(f"{setting.title}; {device}", rows))
    edges = [0, *(limit for limit, _ in BUDGETS)]
    filled = {b for a, b in itertools.pairwise(edges) if any(a < p.train_s <= b for p in shown)}
    columns = (METHOD, *(Column(f"b{b}", f"\u2264 {name}", "up") for b, name in BUDGETS if b in filled))
    word = "CPU" if kind == "cpu" else "GPU"
    notes = [
        f"Certified % of the best run whose training took at most so long on the {word} named in the head, and how "
        "long it took. Runs within one budget differ in length, and only what was run can stand here: a method without "
        "a longer run keeps its shorter one.",
        *_longer(shown),
    ]
    if apart := limits.spread(shown):
        notes.append(f"Wall clock, with whatever else the machine did{apart}: just over a budget need not be slower.")
    return table(f"league_{kind}", f"Best run within a training time, {word}", columns, blocks, shown, notes)


def _longer(pools: Sequence[Pool]) -> list[str]:
    """Who alone had the chance of a longer run."""
    names = sorted({p.title for p in pools if p.first.preset == "hour"})
    return [f"Preset hour was run for {', '.join(names)} only."] if names else []
