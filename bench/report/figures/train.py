"""Training: loss, accuracy, exponent and radius over the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import fmt, styles
from ..blocks import Block
from ..pool import Setting
from ..rows import Inputs
from .canvas import DOUBLE, GREY, LINES, add_axes, add_legend, legend_height, new_figure, value_grid, write_under
from .spec import Spec, label, looks_of, sound, under

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("loss", "Loss, each its own"),
    ("train_acc", "Accuracy on what is trained on %"),
    ("p", "Exponent p"),
    ("eps", "Training radius"),
)


def describe(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Loss, accuracy, p and eps over the run of each method's lowest seed; a run's share, so that lengths compare."""
    pools = sound(block)
    series, rows = [], []
    looks = looks_of(pools)
    for pool in pools:
        history = pool.first.data["training"]["history"]
        if len(history) < 2:
            continue
        keep = _thin(len(history), 120)
        values = {key: [_scalar(history[i].get(key)) for i in keep] for key, _ in PANELS}
        if not styles.trains_in_a_ball(pool.method):  # the loop's schedule of a radius it never uses
            values["eps"] = [None] * len(keep)
        share = [round(100.0 * (i + 1) / len(history), 3) for i in keep]
        series.append({"method": pool.method, "label": label(pool), "x": share, "values": values, **looks[pool.method]})
        rows += [
            {"method": pool.method, "epoch": history[i].get("epoch", i), **{k: history[i].get(k) for k, _ in PANELS}}
            for i in keep
        ]
    if not series or block is None:
        return None
    shown = [[k, t] for k, t in PANELS if any(v is not None for s in series for v in s["values"][k])]
    if not shown:
        return None
    most = max(len(p.first.data["training"]["history"]) for p in pools)
    longest = [p.first.title for p in pools if len(p.first.data["training"]["history"]) == most]
    alt = (
        f"Training on {under(block, lowest_seed=True)}: {', '.join(t.lower() for _, t in shown)} over the run; "
        f"most epochs: {most}, {fmt.names(longest)}."
    )
    data = {"panels": shown, "series": series, "eps": float(setting.eps), "under": under(block, lowest_seed=True)}
    columns = ("method", "epoch", *(k for k, _ in PANELS))
    title = f"Training: {setting.title}"
    ids = tuple(p.first.id for p in pools)
    return Spec(f"train_{setting.slug}", "train", title, alt, data, columns, rows, ids, setting)


def _thin(n: int, most: int) -> list[int]:
    """At most `most` positions of n, the last one included."""
    step = max(1, math.ceil(n / most))
    return sorted({*range(0, n, step), n - 1})


def _scalar(value: Any) -> float | str | None:
    if value == "inf":
        return "inf"
    return round(float(value), 6) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def draw(data: Mapping[str, Any]) -> Figure:
    """One panel per quantity that any of the runs recorded."""
    series, panels = data["series"], data["panels"]
    labels = [s["label"] for s in series]
    foot = legend_height(labels, DOUBLE)
    across = 2 if len(panels) > 1 else 1
    down = math.ceil(len(panels) / across)
    figure = new_figure(DOUBLE, 0.42 + foot + 1.35 * down)
    handles: dict[str, Any] = {}
    for at, (key, title) in enumerate(panels):
        column, row = at % across, at // across
        ax = add_axes(figure, 0.5 + 3.3 * column, 0.36 + foot + 1.35 * (down - 1 - row), 2.75, 1.0)
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
                    [p[0] for p in pairs], [p[1] for p in pairs], color=s["color"], linestyle=LINES[s["dash"]],
                    gid=f"m-{s['method']}-{key}",
                )  # fmt: skip
                handles.setdefault(s["label"], line)
        ax.set_title(title, loc="left", pad=3)
        ax.set_xlim(0, 100)
        value_grid(ax)
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
    add_legend(figure, [handles[t] for t in shown], shown, DOUBLE)
    write_under(figure, data["under"])
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
