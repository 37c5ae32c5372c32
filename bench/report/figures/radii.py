"""Distribution of the certified radii of the images a method gets right, and their mean over all images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fmt
from ..blocks import Block
from ..pool import LEVELS, Setting
from ..rows import Inputs
from .canvas import DOUBLE, GREY, add_axes, new_figure, plain, radius_axis, write_under
from .spec import Spec, ids, label, looks_of, radii_of, sound, under

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 48


def describe(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """A histogram per method of the certified radii of the images it gets right."""
    pools = [p for p in sound(block) if p.cls]
    found = [(p, r) for p in pools if (r := radii_of(p)) is not None and (r > 0).any()]
    if not found or block is None:
        return None
    top = max(float(np.quantile(r[r > 0], 0.995)) for _, r in found) * 1.02
    edges = np.linspace(0.0, max(top, float(setting.eps) * 1.25), BINS + 1)
    looks = looks_of([p for p, _ in found])
    series, rows = [], []
    for pool, r in found:
        counts, _ = np.histogram(np.minimum(r[r > 0], edges[-1]), bins=edges)
        series.append(
            {
                "method": pool.method,
                "label": label(pool),
                "counts": [int(c) for c in counts],
                "mean": round(float(np.mean(r.astype(np.float64))), 7),
                "n": pool.n,
                **looks[pool.method],
            }
        )
        rows += [
            {"method": pool.method, "from": float(a), "to": float(b), "count": int(c), "n": pool.n}
            for a, b, c in zip(edges, edges[1:], counts, strict=False)
        ]
    best = max(series, key=lambda s: (s["mean"], s["method"]))
    alt = (
        f"Distribution of the certified radii above 0 on {under(block, lowest_seed=True)}; the largest mean over all "
        f"images, of which others count 0, is {_radius_text(setting, best['mean'])}, for {best['label']}."
    )
    data = {
        "edges": [round(float(e), 7) for e in edges],
        "series": series,
        "eps": float(setting.eps),
        "levels": setting.dataset in LEVELS,
        "under": under(block, lowest_seed=True),
    }
    title = f"Certified radii: {setting.title}"
    columns = ("method", "from", "to", "count", "n")
    shown = ids([p for p, _ in found])
    return Spec(f"radii_{setting.slug}", "radii", title, alt, data, columns, rows, shown, setting)


def _radius_text(setting: Setting, value: float) -> str:
    return f"{fmt.significant(value * 255, 3)}/255" if setting.dataset in LEVELS else fmt.significant(value, 3)


def draw(data: Mapping[str, Any]) -> Figure:
    """One filled outline per method, the mean radius over all images in black."""
    series, edges = data["series"], data["edges"]
    wide = max(len(s["label"]) for s in series) * 0.056 + 0.15
    figure = new_figure(DOUBLE, 0.85 + 0.3 * len(series))
    ax = add_axes(figure, wide, 0.42, DOUBLE - wide - 0.2, 0.3 * len(series) + 0.2)
    for row, s in enumerate(series):
        top = max(s["counts"]) / 0.85
        high = [row - c / top for c in s["counts"]]
        ax.stairs(high, edges, baseline=row, fill=True, color=s["color"], alpha=0.35, linewidth=0, zorder=3 + row)
        ax.stairs(high, edges, baseline=row, color=s["color"], linewidth=0.8, zorder=3 + row)
        ax.plot([s["mean"]] * 2, [row - 0.02, row - 0.6], color="black", linewidth=1.0, zorder=4 + row)
    ax.axvline(data["eps"], color=GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=2)
    ax.set_ylim(len(series) - 0.95, -0.95)
    ax.set_yticks([row - 0.3 for row in range(len(series))], [plain(s["label"]) for s in series])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    radius_axis(ax, edges[-1], data["levels"])
    ax.set_xlabel("certified radius (pixel units); black: mean over all images, misclassified 0; dashed: eps")
    write_under(figure, data["under"])
    return figure
