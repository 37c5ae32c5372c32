"""Labels beside points without a collision: boxes in inches of the axes, the first free place around a point."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 6  # points, of a label
DPI = 100  # of the layout; savefig has its own
LEADER, FAR = "#B0B0B0", 0.1  # line from a point to a label whose edge is further off, in inches
Box = tuple[float, float, float, float]  # left, bottom, right, top


def box_around(ax: Axes, x: float, y: float, w: float, h: float) -> Box:
    """A box of w x h inches around a data point, in inches of the axes."""
    px, py = _inches(ax, x, y)
    return px - w / 2, py - h / 2, px + w / 2, py + h / 2


def _inches(ax: Axes, x: float, y: float) -> tuple[float, float]:
    px, py = ax.transData.transform((x, y))
    return float(px) / DPI, float(py) / DPI


def _width(text: str) -> float:
    """Of a label, in inches."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=SIZE).get_extents().width) / 72


def place_label(ax: Axes, x: float, y: float, text: str, taken: list[Box]) -> None:
    """A small label beside a point at the first of its sixteen places that is free; it reserves the place."""
    px, py = _inches(ax, x, y)
    w, h = _width(text) + 0.05, 0.1
    bounds = [float(v) / DPI for v in ax.get_window_extent().extents]
    best: tuple[float, Box] | None = None
    for ring in (0.06, 0.13, 0.22, 0.33):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            left = px + dx * ring + (0 if dx > 0 else -w if dx < 0 else -w / 2)
            low = py + dy * ring - h / 2
            box = (left, low, left + w, low + h)
            out = max(bounds[0] - box[0], bounds[1] - box[1], box[2] - bounds[2], box[3] - bounds[3], 0.0)
            cost = 100 * out + sum(_overlap(box, other) for other in taken) * 1000 + ring
            if best is None or cost < best[0] - 1e-9:
                best = (cost, box)
    assert best is not None
    box = best[1]
    taken.append(box)
    middle = (box[0] + w / 2, box[1] + h / 2)
    back = ax.transData.inverted()
    at = back.transform((middle[0] * DPI, middle[1] * DPI))
    near = min(max(px, box[0]), box[2]), min(max(py, box[1]), box[3])
    if math.hypot(near[0] - px, near[1] - py) > FAR:
        end = back.transform((near[0] * DPI, near[1] * DPI))
        ax.plot([x, end[0]], [y, end[1]], color=LEADER, linewidth=0.5, zorder=3)
    ax.text(at[0], at[1], text, fontsize=SIZE, ha="center", va="center", zorder=6, color="#404040")


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
