"""Certified accuracy of each seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import fmt, styles
from ..pool import Setting
from ..rows import Inputs
from .canvas import DOUBLE, LIGHT, add_axes, marker, new_figure, plain
from .spec import Spec, ids, label, looks_of, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe(inputs: Inputs) -> Spec | None:
    """Certified accuracy of each seed, where a row has more than one."""
    rows, strips = [], []
    pools = [p for b in inputs.blocks for p in b.pools if p.k > 1 and not p.broken and p.cls]
    for p in pools[:30]:
        setting = Setting.of(p.first.dataset, p.first.norm, p.first.eps.fraction)
        s = p.over_seeds("certified")
        name = f"{label(p, alone=True)}, {styles.dataset_title(p.first.dataset)} {setting.eps_text}"
        values = [percent(m.percent("certified")) for m in p.members]
        strips.append({"label": name, "values": values, "mean": round(s.mean, 4), **looks_of([p])[p.method]})
        rows += [
            {"row": name, "seed": r.seed, "record": r.id, "certified": float(p.of(r.seed).percent("certified"))}
            for r in p.records
        ]
    if not strips:
        return None
    spreads = [max(s["values"]) - min(s["values"]) for s in strips]
    wide = max(strips, key=lambda s: (max(s["values"]) - min(s["values"]), s["label"]))
    alt = (
        f"Certified accuracy of every seed; the widest spread is {fmt.fixed(max(spreads), 2)} "
        f"points, for {wide['label']}."
    )
    columns = ("row", "seed", "record", "certified")
    title = "Certified accuracy by seed"
    return Spec("seeds", "seeds", title, alt, {"strips": strips}, columns, rows, ids(pools[:30]))


def draw(data: Mapping[str, Any]) -> Figure:
    """One strip per row, a marker per seed."""
    strips = data["strips"]
    wide = min(4.0, max(len(s["label"]) for s in strips) * 0.056 + 0.2)
    figure = new_figure(DOUBLE, 0.5 + 0.19 * len(strips))
    ax = add_axes(figure, wide, 0.4, DOUBLE - wide - 0.2, 0.19 * len(strips))
    for row, s in enumerate(strips):
        ax.plot([min(s["values"]), max(s["values"])], [row, row], color=LIGHT, linewidth=3, zorder=1)
        ax.plot([s["mean"]] * 2, [row - 0.32, row + 0.32], color="black", linewidth=1.0, zorder=3)
        ax.plot(s["values"], [row] * len(s["values"]), linestyle="none", zorder=2, **marker(s))
    ax.set_ylim(len(strips) - 0.4, -0.6)
    ax.set_yticks(range(len(strips)), [plain(s["label"]) for s in strips])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")
    ax.set_xlabel("certified accuracy %, one marker per seed; black: mean")
    return figure
