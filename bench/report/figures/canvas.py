"""Paper, axes, legends and marks of every figure, with matplotlib.

Lengths are inches at final size: a figure is never scaled. Colours, markers and dashes come with the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import fmt
from .labels import DPI

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.25, 6.75  # one column, the text block
GREY, LIGHT, SOFT = "#595959", "#D9D9D9", "#F0F0F0"
LINE = 0.1075  # height of a line of small text
LINES = {"solid": "-", "dashed": (0, (4, 1.6)), "dashdot": (0, (5, 1.5, 1.2, 1.5)), "dotted": (0, (1.2, 1.3))}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the lower left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _columns(labels: Sequence[str], width: float) -> int:
    """Legend columns that fit: a handle, and 0.045 in per character at 6.5 pt."""
    widest = max((len(t) for t in labels), default=1) * 0.045 + 0.42
    return max(1, min(len(labels), int(width / widest)))


def legend_height(labels: Sequence[str], width: float) -> float:
    """Inches that the legend under a figure takes."""
    return 0.05 + 0.135 * math.ceil(len(labels) / _columns(labels, width))


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], width: float) -> None:
    """The legend, at the lower left, in as many columns as fit."""
    w, h = figure.get_size_inches()
    figure.legend(
        handles, [plain(t) for t in labels], loc="lower left", bbox_to_anchor=(0.06 / w, 0.05 / h),
        ncols=_columns(labels, width),
    )  # fmt: skip


def plain(text: str) -> str:
    """Text that matplotlib takes as it is: it would read $...$ as mathematics."""
    return text.replace("$", r"\$")


def value_grid(ax: Axes) -> None:
    """Grid lines at the values of the vertical axis only."""
    ax.grid(True, axis="y")


def write_under(figure: Figure, text: str) -> None:
    """What was measured, at the top: the line that keeps a quick number from passing for a paper's."""
    w, h = figure.get_size_inches()
    figure.text(0.06 / w, 1 - 0.04 / h, plain(text), fontsize=6.5, color=GREY, va="top", ha="left")


def marker(item: Mapping[str, Any], *, published: bool = False) -> dict[str, Any]:
    """A method's marker: hollow for published points and thin shapes."""
    thin = item["marker"] in "+x*PX"
    hollow = item["hollow"] or published or item["marker"] in "+x"
    return {
        "marker": item["marker"], "markersize": 6.0 if thin else 4.5, "color": item["color"],
        "markerfacecolor": "none" if hollow else item["color"],
        "markeredgecolor": item["color"] if hollow else "white",
        "markeredgewidth": 1.0 if hollow else 0.0 if thin else 0.5,
    }  # fmt: skip


def percent_axis(ax: Axes, top: float) -> None:
    """A vertical axis from 0 to a round number above `top`, at most 100."""
    high = min(100.0, max(20.0, 10.0 * math.ceil(top / 10 + 0.2)))
    ax.set_ylim(0, high)
    step = 20 if high > 50 else 10 if high > 20 else 5
    ax.set_yticks([float(t) for t in range(0, int(high) + 1, step)])


def radius_axis(ax: Axes, top: float, levels: bool) -> None:
    """A horizontal axis of radii; in 255ths where images have `levels`."""
    ax.set_xlim(0, top)
    if levels:
        span = top * 255
        levels_step = next((s for s in (1, 2, 4, 8, 16, 32, 64) if span / s <= 6), 64)
        ticks = range(0, int(span + 1e-6) + 1, levels_step)
        ax.set_xticks([k / 255 for k in ticks], [f"{k}/255" if k else "0" for k in ticks])
    else:
        step = next((s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if top / s <= 6.5), 0.5)
        ticks10 = [round(i * step, 4) for i in range(int(top / step + 1e-6) + 1)]
        ax.set_xticks(ticks10, [fmt.significant(t, 3).rstrip("0").rstrip(".") if t else "0" for t in ticks10])


def room_for(ax: Axes, below: Sequence[str], span: float) -> float:
    """By how much a vertical axis of this span must be lengthened downwards so that the lines of `write_below` fit."""
    share = _line_share(ax) * len(below)
    return span * share / (1 - share)


def write_below(ax: Axes, below: Sequence[str]) -> None:
    """What lies below the axes, in words, at their foot."""
    for at, text in enumerate(reversed(below)):
        y = 0.02 + _line_share(ax) * at
        ax.text(0.02, y, plain(text), transform=ax.transAxes, fontsize=6, color=GREY)


def _line_share(ax: Axes) -> float:
    """Height of a line of small text as a share of the axes."""
    return LINE / (float(ax.get_window_extent().height) / DPI)
