"""How each kind of figure is drawn with matplotlib: from the plain data of `figures.py` to a Figure, nothing saved.

Lengths are inches at final size: a figure is never scaled. Colours, markers and dashes come with the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import fmt
from .labels import DPI, Box, box_around, place_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.25, 6.75  # one column, the text block
GREY, LIGHT, SOFT = "#595959", "#D9D9D9", "#F0F0F0"
FATES = (  # shades from sure to wrong, readable in grey and without colour vision; hatched where nothing is known
    ("certified", "certified", "#1B4F72", ""),
    ("undecided", "undecided: survives the attacks, not certified", "#8FB8D8", "////"),
    ("broken", "broken by an attack", "#F2C078", ""),
    ("wrong", "wrong without any attack", "#E6E6E6", ""),
)
NOTE = 0.05  # height of a line of small text, as a share of a single figure's axes
_LINES = {"solid": "-", "dashed": (0, (4, 1.6)), "dashdot": (0, (5, 1.5, 1.2, 1.5)), "dotted": (0, (1.2, 1.3))}


# --- layout in inches -------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _columns(labels: Sequence[str], width: float) -> int:
    """Legend columns that fit: a handle, and 0.045 in per character at 6.5 pt."""
    widest = max((len(t) for t in labels), default=1) * 0.045 + 0.42
    return max(1, min(len(labels), int(width / widest)))


def _legend_height(labels: Sequence[str], width: float) -> float:
    return 0.05 + 0.135 * math.ceil(len(labels) / _columns(labels, width))


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], width: float) -> None:
    w, h = figure.get_size_inches()
    figure.legend(
        handles, [_plain(t) for t in labels], loc="lower left", bbox_to_anchor=(0.06 / w, 0.05 / h),
        ncols=_columns(labels, width),
    )  # fmt: skip


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib reads $...$ as mathematics


def _value_grid(ax: Axes, axis: str = "y") -> None:
    ax.grid(True, axis="y" if axis == "y" else "x")


def _under(figure: Figure, text: str) -> None:
    """What was measured, at the top: the line that keeps a quick number from passing for a paper's."""
    w, h = figure.get_size_inches()
    figure.text(0.06 / w, 1 - 0.04 / h, _plain(text), fontsize=6.5, color=GREY, va="top", ha="left")


def _marker(item: Mapping[str, Any], *, published: bool = False) -> dict[str, Any]:
    thin = item["marker"] in "+x*PX"
    hollow = item["hollow"] or published or item["marker"] in "+x"
    return {
        "marker": item["marker"], "markersize": 6.0 if thin else 4.5, "color": item["color"],
        "markerfacecolor": "none" if hollow else item["color"],
        "markeredgecolor": item["color"] if hollow else "white",
        "markeredgewidth": 1.0 if hollow else 0.0 if thin else 0.5,
    }  # fmt: skip


def _percent_axis(ax: Axes, top: float) -> None:
    high = min(100.0, max(20.0, 10.0 * math.ceil(top / 10 + 0.2)))
    ax.set_ylim(0, high)
    step = 20 if high > 50 else 10 if high > 20 else 5
    ax.set_yticks([float(t) for t in range(0, int(high) + 1, step)])


def _radius_axis(ax: Axes, top: float, levels: bool) -> None:
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


# --- one function per kind --------------------------------------------------------------------------------------------


def _curve(data: Mapping[str, Any]) -> Figure:
    series = data["series"]
    labels = [s["label"] for s in series]
    foot = _legend_height(labels, SINGLE)
    figure = _figure(SINGLE, 2.3 + foot)
    ax = _axes(figure, 0.46, 0.38 + foot, SINGLE - 0.66, 1.7)
    x = data["x"]
    ax.axvline(data["eps"], color=GREY, linewidth=0.6, linestyle=(0, (2, 2)))
    handles = []
    for at, s in enumerate(series):
        look = _marker(s)
        (line,) = ax.plot(
            x, s["y"], drawstyle="steps-pre", linestyle=_LINES[s["dash"]], markevery=(4 + 3 * at, 26),
            gid=f"m-{s['method']}", **look,
        )  # fmt: skip
        ring = {**look, "markerfacecolor": "white", "markeredgecolor": s["color"], "markeredgewidth": 0.9}
        ax.plot([data["eps"]], [s["robust"]], linestyle="none", gid=f"r-{s['method']}", zorder=4, **ring)
        handles.append(line)
    _percent_axis(ax, max(max(s["y"]) for s in series))
    _radius_axis(ax, x[-1], data["levels"])
    _value_grid(ax)
    ax.set_xlabel("radius (pixel units); hollow: robust at the dashed eps")
    ax.set_ylabel("certified %")
    _legend(figure, handles, labels, SINGLE)
    _under(figure, data["under"])
    return figure


def _pareto(data: Mapping[str, Any]) -> Figure:
    measured, published = data["measured"], data["published"]
    labels = [m["label"] for m in measured] + (["published\u2020"] if published else [])
    foot = _legend_height(labels, SINGLE)
    figure = _figure(SINGLE, 2.75 + foot)
    ax = _axes(figure, 0.46, 0.38 + foot, SINGLE - 0.6, 2.15)
    xs = [p["x"] for p in published] + [end for m in measured for end in m["xerr"]]
    ys = [p["y"] for p in published] + [end for m in measured for end in m["yerr"]]
    x_low, x_high = _padded(xs, 0.16)
    y_low, y_high = _padded(ys, 0.16)
    below = data["below"]
    y_low -= (y_high - y_low) * NOTE * len(below) / (1 - NOTE * len(below))  # room for their lines
    ax.set_xlim(x_low, x_high)
    ax.set_ylim(y_low, y_high)
    edge = [max(x_low, y_low) - 1, min(x_high, 100) + 1]
    ax.fill_between(edge, edge, [y_high + 100] * 2, color=SOFT, linewidth=0, zorder=0)
    ax.plot(edge, edge, color=GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
    from matplotlib.lines import Line2D

    boxes: list[Box] = []
    handles: list[Any] = []
    for m in measured:
        look = _marker(m)
        ax.plot(m["xerr"], [m["y"]] * 2, color=m["color"], linewidth=0.7, zorder=2)
        ax.plot([m["x"]] * 2, m["yerr"], color=m["color"], linewidth=0.7, zorder=2)
        for dot in m["dots"]:
            ax.plot(*[[v] for v in dot], marker=".", markersize=2.5, color=m["color"], linestyle="none", zorder=2)
        (line,) = ax.plot([m["x"]], [m["y"]], linestyle="none", zorder=5, gid=f"m-{m['method']}", **look)
        handles.append(line)
    for p in published:
        ax.plot([p["x"]], [p["y"]], linestyle="none", zorder=4, **_marker(p, published=True))
    for p in (*measured, *published):
        boxes.append(box_around(ax, p["x"], p["y"], 0.07, 0.07))
    for p in published:
        place_label(ax, p["x"], p["y"], _plain(p["label"]) + "\u2020", boxes)
    for at, text in enumerate(reversed(below)):
        ax.text(0.02, 0.02 + NOTE * at, _plain(text), transform=ax.transAxes, fontsize=6, color=GREY)
    if published:
        handles.append(Line2D([], [], linestyle="none", marker="o", markersize=4.5, markerfacecolor="none",
                              markeredgecolor=GREY, markeredgewidth=1.0))  # fmt: skip
    ax.grid(True)
    ax.set_xlabel("clean accuracy %")
    ax.set_ylabel("certified accuracy %")
    _legend(figure, handles, labels, SINGLE)
    _under(figure, data["under"])
    return figure


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max((high - low) * share, 1.0)
    return max(-1.0, low - pad), min(101.0, high + pad)


def _cost(data: Mapping[str, Any]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    points = data["points"]
    labels = [p["label"] for p in points]
    foot = _legend_height(labels, DOUBLE)
    figure = _figure(DOUBLE, 2.35 + foot)
    timed = [p for p in points if p["certify_ms"]]
    panels: list[tuple[str, str, Sequence[Any], Callable[[float], str]]] = [
        ("train_s", "training time", points, fmt.seconds)
    ]
    if timed:
        panels.append(("certify_ms", "time per certificate", timed, _milliseconds))
    handles: list[Any] = []
    low, top = min(min(p["yerr"]) for p in points), max(max(p["yerr"]) for p in points)
    near = top - low < 25 < low  # nothing could be read off an axis that starts at 0
    for at, (key, name, shown, text) in enumerate(panels):
        ax = _axes(figure, 0.55 + at * 3.3, 0.4 + foot, 2.75, 1.7)
        for p in shown:
            ax.plot([p[key]] * 2, p["yerr"], color=p["color"], linewidth=0.7, zorder=2)
            (line,) = ax.plot(
                [p[key]], [p["y"]], linestyle="none", zorder=3, gid=f"m-{p['method']}-{key}", **_marker(p)
            )
            if at == 0:
                handles.append(line)
        ax.set_xscale("log")
        _log_ticks(ax, [p[key] for p in shown], text)
        if near:
            pad = max(0.15 * (top - low), 0.5)
            ax.set_ylim(low - pad, min(100.5, top + pad))
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        else:
            _percent_axis(ax, top)
        _value_grid(ax)
        ax.set_xlabel(name + (f" on {data['device']}" if at == 0 and len(data["device"]) < 34 else ""))
        if at == 0:
            ax.set_ylabel("certified %, axis not from 0" if near else "certified %")
    _legend(figure, handles, labels, DOUBLE)
    device = "" if len(data["device"]) < 34 else f"; {data['device']}"
    _under(figure, data["under"] + device)
    return figure


def _milliseconds(ms: float) -> str:
    return fmt.seconds(ms / 1000) if ms >= 1000 else f"{fmt.significant(ms, 1)} ms" if ms >= 0.001 else "< 1 \u00b5s"


def _log_ticks(ax: Axes, values: Sequence[float], text: Callable[[float], str]) -> None:
    """Readable ticks on a log axis: round durations below an hour and a day, powers elsewhere."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    low, high = min(values) / 1.6, max(values) * 1.6
    if high < 12 * low:  # at least a decade, or there is nothing to read off
        low, high = math.sqrt(low * high / 12), math.sqrt(low * high * 12)
    if text is fmt.seconds:
        nice = [
            1.0,
            2,
            5,
            10,
            20,
            60,
            120,
            300,
            600,
            1200,
            3600,
            7200,
            4 * 3600,
            8 * 3600,
            86400,
            172800,
            432000,
            864000,
        ]
        nice = [0.01, 0.1, *nice]
    else:
        nice = [m * 10.0**e for e in range(-4, 6) for m in (1, 3)]
    inside = [t for t in nice if low <= t <= high]
    while len(inside) > 5:
        inside = inside[::2]
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(FixedLocator(inside))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xticklabels([text(t).replace(" 00 min", "") for t in inside])


def _fate(data: Mapping[str, Any]) -> Figure:
    from matplotlib.patches import Patch

    bars = data["bars"]
    wide = max(len(b["label"]) for b in bars) * 0.056 + 0.15
    labels = [text for _, text, _, _ in FATES]
    foot = _legend_height(labels, DOUBLE)
    figure = _figure(DOUBLE, 0.62 + foot + 0.2 * len(bars))
    ax = _axes(figure, wide, 0.38 + foot, DOUBLE - wide - 0.15, 0.2 * len(bars))
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
    ax.set_yticks(range(len(bars)), [_plain(b["label"]) for b in bars])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("% of the test images")
    handles = [Patch(facecolor=c, hatch=h, edgecolor="white", linewidth=0.5) for _, _, c, h in FATES]
    _legend(figure, handles, labels, DOUBLE)
    _under(figure, data["under"])
    return figure


def _radii(data: Mapping[str, Any]) -> Figure:
    series, edges = data["series"], data["edges"]
    wide = max(len(s["label"]) for s in series) * 0.056 + 0.15
    figure = _figure(DOUBLE, 0.85 + 0.3 * len(series))
    ax = _axes(figure, wide, 0.42, DOUBLE - wide - 0.2, 0.3 * len(series) + 0.2)
    for row, s in enumerate(series):
        top = max(s["counts"]) / 0.85
        high = [row - c / top for c in s["counts"]]
        ax.stairs(high, edges, baseline=row, fill=True, color=s["color"], alpha=0.35, linewidth=0, zorder=3 + row)
        ax.stairs(high, edges, baseline=row, color=s["color"], linewidth=0.8, zorder=3 + row)
        ax.plot([s["median"]] * 2, [row - 0.02, row - 0.6], color="black", linewidth=1.0, zorder=4 + row)
    ax.axvline(data["eps"], color=GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=2)
    ax.set_ylim(len(series) - 0.95, -0.95)
    ax.set_yticks([row - 0.3 for row in range(len(series))], [_plain(s["label"]) for s in series])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    _radius_axis(ax, edges[-1], data["levels"])
    ax.set_xlabel("certified radius of the images it gets right (pixel units); black: median, dashed: eps")
    _under(figure, data["under"])
    return figure


def _train(data: Mapping[str, Any]) -> Figure:
    series, panels = data["series"], data["panels"]
    labels = [s["label"] for s in series]
    foot = _legend_height(labels, DOUBLE)
    across = 2 if len(panels) > 1 else 1
    down = math.ceil(len(panels) / across)
    figure = _figure(DOUBLE, 0.42 + foot + 1.35 * down)
    handles: dict[str, Any] = {}
    for at, (key, title) in enumerate(panels):
        column, row = at % across, at // across
        ax = _axes(figure, 0.5 + 3.3 * column, 0.36 + foot + 1.35 * (down - 1 - row), 2.75, 1.0)
        numbers = [v for s in series for v in s["values"][key] if isinstance(v, float)]
        infinite = 3.0 * max(numbers, default=1.0)
        for s in series:
            pairs = [
                (x, infinite if v == "inf" else v)
                for x, v in zip(s["x"], s["values"][key], strict=True)
                if v is not None
            ]
            if pairs:
                (line,) = ax.plot(
                    [p[0] for p in pairs], [p[1] for p in pairs], color=s["color"], linestyle=_LINES[s["dash"]],
                    gid=f"m-{s['method']}-{key}",
                )  # fmt: skip
                handles.setdefault(s["label"], line)
        ax.set_title(title, loc="left", pad=3)
        ax.set_xlim(0, 100)
        _value_grid(ax)
        if key == "p":
            _exponent_axis(ax, numbers, infinite, any(v == "inf" for s in series for v in s["values"][key]))
        if key == "eps":
            ax.axhline(data["eps"], color=GREY, linewidth=0.6, linestyle=(0, (2, 2)), zorder=1)
            ax.set_ylim(bottom=0)
        if key == "loss" and numbers and min(numbers) > 0 and max(numbers) / min(numbers) > 50:
            ax.set_yscale("log")
        if row == down - 1 or at + across >= len(panels):
            ax.set_xlabel("share of the run, %")
    shown = [t for t in labels if t in handles]
    _legend(figure, [handles[t] for t in shown], shown, DOUBLE)
    _under(figure, data["under"])
    return figure


def _exponent_axis(ax: Axes, numbers: Sequence[float], infinite: float, reached: bool) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    ax.set_yscale("log")
    low, high = min(numbers, default=1.0), max(numbers, default=10.0)
    ticks = [t for t in (2.0, 8.0, 30.0, 100.0, 300.0, 1000.0) if low * 0.7 <= t <= high * 1.3] or [low]
    names = [fmt.significant(t, 2) if t < 100 else str(int(t)) for t in ticks]
    if reached:
        ticks, names = [*ticks, infinite], [*names, "\u221e"]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_yticklabels(names)
    ax.set_ylim(low * 0.7, (infinite if reached else high) * 1.3)


def _gap(data: Mapping[str, Any]) -> Figure:
    from matplotlib.patches import Patch

    bars = data["bars"]
    heads = [i for i, b in enumerate(bars) if i == 0 or b["setting"] != bars[i - 1]["setting"]]
    spots, at = [], 0.0
    for i in range(len(bars)):
        at += 1.25 if i in heads else 0.0
        spots.append(at)
        at += 1.0
    wide = max(len(b["label"]) for b in bars) * 0.056 + 0.2
    hatched = any(b["preset"] != "paper" for b in bars)
    foot = 0.22 if hatched else 0.0
    height = 0.165 * at
    figure = _figure(DOUBLE, 0.55 + foot + height)
    ax = _axes(figure, wide, 0.42 + foot, DOUBLE - wide - 0.3, height)
    for spot, b in zip(spots, bars, strict=True):
        hatch = "" if b["preset"] == "paper" else "////"
        ax.barh(spot, b["value"], height=0.7, color=b["color"], hatch=hatch, edgecolor="white", linewidth=0.5)
        ax.plot([b["lo"], b["hi"]], [spot, spot], color="black", linewidth=0.8, solid_capstyle="butt")
    low, high = min(0.0, *(b["lo"] for b in bars)), max(0.0, *(b["hi"] for b in bars))
    room = max(high - low, 1.0)
    ax.set_xlim(low - 0.11 * room, high + 0.11 * room)
    for spot, b in zip(spots, bars, strict=True):
        right = b["value"] >= 0
        edge = max(b["hi"], b["value"], 0) if right else min(b["lo"], b["value"], 0)
        ax.text(edge + (0.012 if right else -0.012) * room, spot, b["text"], fontsize=6, va="center",
                ha="left" if right else "right")  # fmt: skip
    for i in heads:
        ax.text(0, spots[i] - 1.0, _plain(bars[i]["setting"]), transform=ax.get_yaxis_transform(), fontsize=6.5,
                color=GREY, va="center", ha="left")  # fmt: skip
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_ylim(at - 0.4, 0.0)
    ax.set_yticks(spots, [_plain(b["label"]) for b in bars])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")
    ax.set_xlabel("measured minus published certified accuracy, points; line: our 95 % interval")
    if hatched:
        patch = Patch(facecolor="#B0B0B0", hatch="////", edgecolor="white", linewidth=0.5)
        _legend(figure, [patch], ["hatched: not the published recipe, no reproduction"], DOUBLE)
    return figure


def _seeds(data: Mapping[str, Any]) -> Figure:
    strips = data["strips"]
    wide = min(4.0, max(len(s["label"]) for s in strips) * 0.056 + 0.2)
    figure = _figure(DOUBLE, 0.5 + 0.19 * len(strips))
    ax = _axes(figure, wide, 0.4, DOUBLE - wide - 0.2, 0.19 * len(strips))
    for row, s in enumerate(strips):
        ax.plot([min(s["values"]), max(s["values"])], [row, row], color=LIGHT, linewidth=3, zorder=1)
        ax.plot([s["mean"]] * 2, [row - 0.32, row + 0.32], color="black", linewidth=1.0, zorder=3)
        ax.plot(s["values"], [row] * len(s["values"]), linestyle="none", zorder=2, **_marker(s))
    ax.set_ylim(len(strips) - 0.4, -0.6)
    ax.set_yticks(range(len(strips)), [_plain(s["label"]) for s in strips])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")
    ax.set_xlabel("certified accuracy %, one marker per seed; black: mean")
    return figure


DRAW: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "curve": _curve, "pareto": _pareto, "cost": _cost, "fate": _fate, "radii": _radii, "train": _train, "gap": _gap,
    "seeds": _seeds,
}  # fmt: skip
