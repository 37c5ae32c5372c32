"""Clean against certified accuracy, measured and published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import cells, fmt, styles, tables
from ..blocks import Block
from ..pool import Setting, leaders
from ..rows import Inputs
from .canvas import (
    GREY,
    SINGLE,
    SOFT,
    add_axes,
    add_legend,
    legend_height,
    marker,
    new_figure,
    plain,
    room_for,
    write_below,
    write_under,
)
from .labels import Box, box_around, place_label
from .spec import Spec, certify, ids, label, look, looks_of, lowest_shown, percent, sound, under

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Measured rows filled, published ones hollow; nothing can lie above the diagonal."""
    pools = [p for p in sound(block) if p.cls]
    looks = looks_of(pools)
    measured = [
        {
            "method": p.method,
            "label": label(p),
            "x": percent(p.percent("correct")),
            "y": percent(p.percent("certified")),
            "xerr": [round(v, 4) for v in p.interval("correct")],
            "yerr": [round(v, 4) for v in p.interval("certified")],
            "dots": [[percent(m.percent(k)) for k in ("correct", "certified")] for m in p.members] if p.k > 1 else [],
            **looks[p.method],
        }
        for p in pools
    ]
    names = sorted(inputs.published_of.get(setting, {}), key=styles.order)
    shown = [c for m in names if (c := inputs.headline_of(setting, m))]
    shown += [c for c in tables.best_published(inputs, setting) if c not in shown]
    theirs = [c for c in shown if c.clean is not None and c.certified is not None]
    published = [
        {
            "method": c.method,
            "label": styles.title(c.method) + cells.daggers(c)[0],
            "x": float(c.clean or 0),
            "y": float(c.certified or 0),
            "key": c.key,
            **look(styles.style(c.method)),
        }
        for c in theirs
    ]
    alone = not measured and (setting.dataset, setting.eps_text) not in tables.HEADLINES
    if alone or len(measured) + len(published) < 2:
        return None
    rows = [
        {"method": m["method"], "published": kind, "clean": m["x"], "certified": m["y"], "source": m.get("key", "")}
        for kind, group in ((0, measured), (1, published))
        for m in group
    ]
    if pools:
        first = leaders(pools, "certified")
        where = under(block) if block else setting.title
        clean = fmt.names([f"{fmt.percent(p.count('correct'), p.n)} %" for p in first])
        alt = (
            f"Clean against certified accuracy on {where}: {certify([p.first.title for p in first])} most of the "
            f"measured methods, {fmt.percent(first[0].count('certified'), first[0].n)} % at {clean} clean."
        )
    else:
        top = max(theirs, key=lambda c: (c.certified, c.method))
        alt = (
            f"Clean against certified accuracy on {setting.title}, published numbers only: of those shown "
            f"{styles.title(top.method)} certifies most, {top.certified} % at {top.clean} % clean."
        )
    if theirs:
        alt += " Published points rest on certifiers of their own (table Published numbers)."
    floor = lowest_shown([p["y"] for p in (*measured, *published)])
    data = {
        "measured": [p for p in measured if p["y"] >= floor],
        "published": [p for p in published if p["y"] >= floor],
        "below": [_below(m["label"], fmt.percent(p.count("certified"), p.n), fmt.percent(p.count("correct"), p.n))
                  for m, p in zip(measured, pools, strict=True) if m["y"] < floor]
        + [_below(p["label"], str(c.certified), str(c.clean))
           for p, c in zip(published, theirs, strict=True) if p["y"] < floor],
        "under": under(block) if block else setting.title,
    }  # fmt: skip
    title = f"Clean against certified accuracy: {setting.title}"
    columns = ("method", "published", "clean", "certified", "source")
    return Spec(f"pareto_{setting.slug}", "pareto", title, alt, data, columns, rows, ids(pools), setting)


def _below(label: str, certified: str, clean: str) -> str:
    return f"below: {label} {certified} % at {clean} % clean"


def draw(data: Mapping[str, Any]) -> Figure:
    """Filled points are ours, hollow ones published; grey where certified would exceed clean."""
    measured, published = data["measured"], data["published"]
    labels = [m["label"] for m in measured] + (["hollow: published \u2020\u2021"] if published else [])
    foot = legend_height(labels, SINGLE)
    figure = new_figure(SINGLE, 2.75 + foot)
    ax = add_axes(figure, 0.46, 0.38 + foot, SINGLE - 0.6, 2.15)
    xs = [p["x"] for p in published] + [end for m in measured for end in m["xerr"]]
    ys = [p["y"] for p in published] + [end for m in measured for end in m["yerr"]]
    x_low, x_high = _padded(xs, 0.16)
    y_low, y_high = _padded(ys, 0.16)
    below = data["below"]
    y_low -= room_for(ax, below, y_high - y_low)
    ax.set_xlim(x_low, x_high)
    ax.set_ylim(y_low, y_high)
    edge = [max(x_low, y_low) - 1, min(x_high, 100) + 1]
    ax.fill_between(edge, edge, [y_high + 100] * 2, color=SOFT, linewidth=0, zorder=0)
    ax.plot(edge, edge, color=GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
    from matplotlib.lines import Line2D

    boxes: list[Box] = []
    handles: list[Any] = []
    for m in measured:
        look = marker(m)
        ax.plot(m["xerr"], [m["y"]] * 2, color=m["color"], linewidth=0.7, zorder=2)
        ax.plot([m["x"]] * 2, m["yerr"], color=m["color"], linewidth=0.7, zorder=2)
        for dot in m["dots"]:
            ax.plot(*[[v] for v in dot], marker=".", markersize=2.5, color=m["color"], linestyle="none", zorder=2)
        (line,) = ax.plot([m["x"]], [m["y"]], linestyle="none", zorder=5, gid=f"m-{m['method']}", **look)
        handles.append(line)
    for p in published:
        ax.plot([p["x"]], [p["y"]], linestyle="none", zorder=4, **marker(p, published=True))
    for p in (*measured, *published):
        boxes.append(box_around(ax, p["x"], p["y"], 0.07, 0.07))
    named = {m["method"] for m in measured}
    for p in published:  # a hollow marker of the legend needs no name, but for a second one of the same method
        if p["method"] not in named:
            place_label(ax, p["x"], p["y"], plain(p["label"]), boxes)
        named.discard(p["method"])
    write_below(ax, below)
    if published:
        handles.append(Line2D([], [], linestyle="none", marker="o", markersize=4.5, markerfacecolor="none",
                              markeredgecolor=GREY, markeredgewidth=1.0))  # fmt: skip
    ax.grid(True)
    ax.set_xlabel("clean accuracy %")
    ax.set_ylabel("certified accuracy %")
    add_legend(figure, handles, labels, SINGLE)
    write_under(figure, data["under"])
    return figure


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max((high - low) * share, 1.0)
    return max(-1.0, low - pad), min(101.0, high + pad)
