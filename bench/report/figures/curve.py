"""Certified accuracy against radius: a step function per method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fmt
from ..blocks import Block
from ..pool import LEVELS, Setting
from ..rows import Inputs
from .canvas import (
    GREY,
    LINES,
    SINGLE,
    add_axes,
    add_legend,
    legend_height,
    marker,
    new_figure,
    percent_axis,
    radius_axis,
    value_grid,
    write_under,
)
from .spec import Spec, certify, ids, label, looks_of, lowest_shown, percent, radii_of, sound, under

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE_POINTS = 160  # steps of a curve; more cannot be told apart at column width


def describe(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """A step function per method from the stored radii; drawn so that it never overstates between two points."""
    pools = [p for p in sound(block) if p.cls]
    if not pools or block is None:
        return None
    series, csv_rows = [], []
    radius = {p.method: radii_of(p) for p in pools}
    pools = [p for p in pools if radius[p.method] is not None]
    if not pools:
        return None
    eps = float(setting.eps)
    reach = max(_reach(radius[p.method]) for p in pools)
    top = min(max(reach, 1.25 * eps), max(4 * eps, 1e-6) if eps else 1.0)
    grid = np.linspace(0.0, top, CURVE_POINTS + 1)
    looks = looks_of(pools)
    for pool in pools:
        r = np.sort(radius[pool.method])
        counts = len(r) - np.searchsorted(r, grid.astype(np.float32), side="left")  # radius >= grid point
        counts[0] = pool.first.n_correct
        shares = [round(100.0 * int(c) / pool.n, 4) for c in counts]
        points = {k: percent(pool.members[0].percent(k)) for k in ("certified", "robust")}
        series.append({"method": pool.method, "label": label(pool), "y": shares, **points, **looks[pool.method]})
        csv_rows += [
            {
                "method": pool.method,
                "record": pool.first.id,
                "radius": float(x),
                "n_certified": int(c),
                "n": pool.n,
                "certified": 100.0 * int(c) / pool.n,
            }
            for x, c in zip(grid, counts, strict=True)
        ]
    most = max(p.members[0].count("certified") for p in pools)
    first = [p.first.title for p in pools if p.members[0].count("certified") == most]
    alt = (
        f"Certified accuracy against radius on {under(block, lowest_seed=True)}: {certify(first)} most at "
        f"{setting.eps_text}, {fmt.percent(most, block.n)} % of {block.n}."
    )
    bottom = _bottom([s["certified"] for s in series])
    if below := [f"{s['label']} {fmt.fixed(s['certified'], 2)} %" for s in series if s["certified"] < bottom]:
        alt += f" Below the axis at {setting.eps_text}: {fmt.names(below)}."
    data = {
        "x": [round(float(x), 7) for x in grid],
        "series": series,
        "eps": eps,
        "levels": setting.dataset in LEVELS,
        "bottom": bottom,
        "under": under(block, lowest_seed=True),
    }
    columns = ("method", "record", "radius", "n_certified", "n", "certified")
    title = f"Certified accuracy against radius: {setting.title}"
    return Spec(f"curve_{setting.slug}", "curve", title, alt, data, columns, csv_rows, ids(pools), setting)


def _reach(radius: np.ndarray) -> float:
    """The radius that half a percent of all images still reach."""
    return float(np.quantile(radius, 0.995))


def _bottom(certified: Sequence[float]) -> int:
    """Where the axis begins: 0, or where the rows that certify most can be told apart at eps, if that is above half."""
    low = lowest_shown(certified)
    begin = math.floor((low - 0.8 * (100 - low)) / 5) * 5
    return min(begin, 95) if begin >= 50 else 0


def draw(data: Mapping[str, Any]) -> Figure:
    """One step line per method; a ring where the attacks stop, at the dashed eps."""
    series = data["series"]
    labels = [s["label"] for s in series]
    foot = legend_height(labels, SINGLE)
    figure = new_figure(SINGLE, 2.3 + foot)
    ax = add_axes(figure, 0.46, 0.38 + foot, SINGLE - 0.66, 1.7)
    x = data["x"]
    ax.axvline(data["eps"], color=GREY, linewidth=0.6, linestyle=(0, (2, 2)))
    handles = []
    for at, s in enumerate(series):
        look = marker(s)
        (line,) = ax.plot(
            x, s["y"], drawstyle="steps-pre", linestyle=LINES[s["dash"]], markevery=(4 + 3 * at, 26),
            gid=f"m-{s['method']}", **look,
        )  # fmt: skip
        ring = {**look, "markerfacecolor": "white", "markeredgecolor": s["color"], "markeredgewidth": 0.9}
        ax.plot([data["eps"]], [s["robust"]], linestyle="none", gid=f"r-{s['method']}", zorder=4, **ring)
        handles.append(line)
    top = max(max(s["y"]) for s in series)
    if bottom := data["bottom"]:
        ax.set_ylim(bottom, min(100.5, top + 0.05 * (top - bottom)))
    else:
        percent_axis(ax, top)
    radius_axis(ax, x[-1], data["levels"])
    value_grid(ax)
    ax.set_xlabel("radius (pixel units); hollow: robust at the dashed eps")
    ax.set_ylabel("certified %, axis not from 0" if bottom else "certified %")
    add_legend(figure, handles, labels, SINGLE)
    write_under(figure, data["under"])
    return figure
