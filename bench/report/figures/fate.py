"""What became of each test image: certified, undecided, broken, wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import fmt
from ..blocks import Block
from ..checked import KINDS
from ..pool import Setting
from ..rows import Inputs
from .canvas import DOUBLE, add_axes, add_legend, legend_height, new_figure, plain, write_under
from .spec import Spec, ids, label, percent, sound, under

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FATES = (  # shades from sure to wrong, readable in grey and without colour vision; hatched where nothing is known
    ("certified", "certified", "#1B4F72", ""),
    ("undecided", "undecided: survives the attacks, not certified", "#8FB8D8", "////"),
    ("broken", "broken by an attack", "#F2C078", ""),
    ("wrong", "wrong without any attack", "#E6E6E6", ""),
)


def describe(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Certified, undecided, broken by an attack, wrong on clean: the gap between certificate and attack as bars."""
    pools = sorted(sound(block), key=lambda p: (-p.count("certified"), -p.count("robust"), p.method))
    if not pools or block is None:
        return None
    bars: list[dict[str, Any]] = []
    for p in pools:
        right, robust, sure = (p.percent(k) for k in KINDS)
        parts = {"certified": sure, "undecided": robust - sure, "broken": right - robust, "wrong": 100 - right}
        bars.append({"method": p.method, "label": label(p), **{k: percent(v) for k, v in parts.items()}})
    widest = max(bars, key=lambda b: (b["undecided"], b["method"]))
    alt = (
        f"What became of each test image on {under(block)}; the largest gap between attack and certificate is "
        f"{fmt.fixed(widest['undecided'], min(1, fmt.decimals(block.n)))} points, for {widest['label']}."
    )
    data = {"bars": bars, "under": under(block), "places": min(1, fmt.decimals(block.n))}
    title = f"Certified, undecided, broken, wrong: {setting.title}"
    columns = ("method", "certified", "undecided", "broken", "wrong")
    return Spec(f"fate_{setting.slug}", "fate", title, alt, data, columns, bars, ids(pools), setting)


def draw(data: Mapping[str, Any]) -> Figure:
    """One stacked bar per method."""
    from matplotlib.patches import Patch

    bars = data["bars"]
    wide = max(len(b["label"]) for b in bars) * 0.056 + 0.15
    labels = [text for _, text, _, _ in FATES]
    foot = legend_height(labels, DOUBLE)
    figure = new_figure(DOUBLE, 0.62 + foot + 0.2 * len(bars))
    ax = add_axes(figure, wide, 0.38 + foot, DOUBLE - wide - 0.15, 0.2 * len(bars))
    for row, bar in enumerate(bars):
        left = 0.0
        for key, _, color, hatch in FATES:
            width = bar[key]
            ax.barh(row, width, left=left, height=0.74, color=color, hatch=hatch, edgecolor="white", linewidth=0.5)
            if width >= 4.5:
                ink = "white" if key == "certified" else "black"
                back = {"facecolor": color, "edgecolor": "none", "pad": 0.8} if hatch else None
                ax.text(
                    left + width / 2,
                    row,
                    fmt.fixed(width, data["places"]),
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=ink,
                    bbox=back,
                )
            left += width
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, 100)
    ax.set_yticks(range(len(bars)), [plain(b["label"]) for b in bars])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("% of the test images")
    handles = [Patch(facecolor=c, hatch=h, edgecolor="white", linewidth=0.5) for _, _, c, h in FATES]
    add_legend(figure, handles, labels, DOUBLE)
    write_under(figure, data["under"])
    return figure
