"""Certified accuracy against training time and time per certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fmt
from ..blocks import Block
from ..pool import Pool, Setting, leaders
from ..rows import Inputs
from .canvas import (
    DOUBLE,
    GREY,
    add_axes,
    add_legend,
    legend_height,
    marker,
    new_figure,
    percent_axis,
    room_for,
    value_grid,
    write_below,
    write_under,
)
from .spec import Spec, certify, ids, label, looks_of, lowest_shown, percent, sound, under

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def describe(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Training time and time per certificate against certified accuracy; one device only, the one with most rows."""
    machines: dict[tuple[str, int], list[Pool]] = {}
    for pool in sound(block):
        for machine in pool.machines if pool.cls and pool.train_s > 0 else ():
            machines.setdefault(machine, []).append(pool.on(machine))
    if not machines or block is None:
        return None
    name, threads = min(machines, key=lambda m: (-len(machines[m]), m))
    device = fmt.machine(name, threads)
    pools = machines[name, threads]
    if len(pools) < 2:
        return None
    looks = looks_of(pools)
    points = [
        {
            "method": p.method,
            "label": label(p),
            "train_s": round(p.train_s, 4),
            "y": percent(p.percent("certified")),
            "certify_ms": None if p.cost("certify_ms") is None else round(float(p.cost("certify_ms") or 0), 6),
            "yerr": [round(v, 4) for v in p.interval("certified")],
            **looks[p.method],
        }
        for p in pools
    ]
    floor = lowest_shown([p["y"] for p in points])
    base = {p["method"]: [p["train_s"], p["y"]] for p in points if p["y"] >= floor}
    index = pools[0].members[0].index
    joined = [
        p for other in inputs.blocks_of(setting) if other is not block for p in sound(other)
        if p.cls and p.method in base and p.machines == [(name, threads)]
        and p.first.data["data"]["checksum"] == pools[0].first.data["data"]["checksum"]
        and np.array_equal(p.members[0].index, index)
    ]  # fmt: skip
    longer = [
        {
            "method": p.method, "preset": p.first.preset, "train_s": round(p.train_s, 4),
            "y": percent(p.percent("certified")), "yerr": [round(v, 4) for v in p.interval("certified")],
            "base": base[p.method], **looks[p.method],
        }
        for p in joined
    ]  # fmt: skip
    first = leaders(pools, "certified")
    best = min(first, key=lambda p: (p.train_s, p.method))
    fast = min(pools, key=lambda p: (p.train_s, p.method))
    names = certify([p.first.title for p in first])
    alt = (
        f"Certified accuracy against training time on {under(block)}, {device}: {names} most "
        f"({fmt.percent(best.count('certified'), best.n)} % after {fmt.seconds(best.train_s)}), {fast.first.title} "
        f"trains fastest ({fmt.seconds(fast.train_s)})."
    )
    compiled = [p.first.title for p in pools if p.is_compiled]
    if compiled and len(compiled) < len(pools):
        alt += f" On compiled kernels: {fmt.names(compiled)}; the others on plain torch."
    rows = [
        {"method": p["method"], "preset": p.get("preset", block.preset), "train_s": p["train_s"],
         "certify_ms": p.get("certify_ms"), "certified": p["y"]}
        for p in (*points, *longer)
    ]  # fmt: skip
    if longer:
        alt += f" Joined to their own point: {fmt.names([_longer(p) for p in joined])}."
    data = {
        "points": [p for p in points if p["y"] >= floor],
        "below": [
            f"below: {point['label']} {fmt.percent(p.count('certified'), p.n)} % after {fmt.seconds(p.train_s)}"
            for point, p in zip(points, pools, strict=True)
            if point["y"] < floor
        ],
        "longer": longer,
        "device": fmt.printable(device),
        "under": under(block),
    }
    title = f"Certified accuracy against cost: {setting.title}"
    columns = ("method", "preset", "train_s", "certify_ms", "certified")
    return Spec(f"cost_{setting.slug}", "cost", title, alt, data, columns, rows, ids([*pools, *joined]), setting)


def _longer(pool: Pool) -> str:
    share = fmt.percent(pool.count("certified"), pool.n)
    return f"{pool.first.title} {pool.first.preset} {share} % after {fmt.seconds(pool.train_s)}"


def draw(data: Mapping[str, Any]) -> Figure:
    """One panel of training times, with other presets joined on, one of times per certificate where these are known."""
    from matplotlib.ticker import MaxNLocator

    points, longer = data["points"], data["longer"]
    labels = [p["label"] for p in points]
    foot = legend_height(labels, DOUBLE)
    figure = new_figure(DOUBLE, 2.35 + foot)
    timed = [p for p in points if p["certify_ms"]]
    panels: list[tuple[str, str, Sequence[Any], Callable[[float], str]]] = [
        ("train_s", "training time", points, fmt.seconds)
    ]
    if timed:
        panels.append(("certify_ms", "time per certificate", timed, _milliseconds))
    handles: list[Any] = []
    low, top = min(min(p["yerr"]) for p in (*points, *longer)), max(max(p["yerr"]) for p in (*points, *longer))
    near = top - low < 25 < low  # nothing could be read off an axis that starts at 0
    for at, (key, name, shown, text) in enumerate(panels):
        ax = add_axes(figure, 0.55 + at * 3.3, 0.4 + foot, 2.75, 1.7)
        for p in shown:
            ax.plot([p[key]] * 2, p["yerr"], color=p["color"], linewidth=0.7, zorder=2)
            (line,) = ax.plot([p[key]], [p["y"]], linestyle="none", zorder=3, gid=f"m-{p['method']}-{key}", **marker(p))
            if at == 0:
                handles.append(line)
        for p in longer if at == 0 else ():
            ax.plot([p["base"][0], p["train_s"]], [p["base"][1], p["y"]], color=p["color"], linewidth=0.6, zorder=1)
            ax.plot([p["train_s"]] * 2, p["yerr"], color=p["color"], linewidth=0.7, zorder=2)
            ax.plot([p["train_s"]], [p["y"]], linestyle="none", zorder=3, **marker(p))
            ax.annotate(p["preset"], (p["train_s"], p["y"]), (5, 0), textcoords="offset points", fontsize=6,
                        va="center", color=GREY)  # fmt: skip
        ax.set_xscale("log")
        _log_ticks(ax, [p[key] for p in (*shown, *(longer if at == 0 else ()))], text)
        if near:
            pad = max(0.15 * (top - low), 0.5)
            bottom, high = low - pad, min(100.5, top + pad)
            ax.set_ylim(bottom - room_for(ax, data["below"], high - bottom), high)
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        else:
            percent_axis(ax, top)
        value_grid(ax)
        if at == 0:
            write_below(ax, data["below"])
        ax.set_xlabel(name + (f" on {data['device']}" if at == 0 and len(data["device"]) < 34 else ""))
        if at == 0:
            ax.set_ylabel("certified %, axis not from 0" if near else "certified %")
    add_legend(figure, handles, labels, DOUBLE)
    device = "" if len(data["device"]) < 34 else f"; {data['device']}"
    write_under(figure, data["under"] + device)
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
