"""Measured minus published certified accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ...recipe import PRESETS
from .. import fmt, styles, tables
from ..pool import Pool, Setting
from ..rows import Inputs
from .canvas import DOUBLE, GREY, add_axes, add_legend, new_figure, plain
from .spec import Spec, ids, label, looks_of, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def describe(inputs: Inputs) -> Spec | None:
    """Measured minus published certified accuracy; per setting and method the preset nearest to the paper."""
    best: dict[tuple[Setting, str], Pool] = {}
    for block in inputs.blocks:
        for p in block.pools:
            if tables.has_gap(p) and not p.overrides:
                key = (block.setting, p.method)
                if key not in best or PRESETS.index(p.first.preset) < PRESETS.index(best[key].first.preset):
                    best[key] = p
    bars = []
    for setting, name in sorted(best, key=lambda k: (k[0], styles.order(k[1]))):
        p = best[setting, name]
        cell = p.published
        assert cell is not None and cell.certified is not None
        theirs = float(cell.certified)
        lo, hi = p.interval("certified")
        bars.append(
            {
                "setting": setting.title,
                "method": name,
                "label": label(p, alone=True),
                "value": percent(p.percent("certified") - Fraction(cell.certified)),
                "lo": round(lo - theirs, 4),
                "hi": round(hi - theirs, 4),
                "preset": p.first.preset,
                "text": fmt.points(p.percent("certified") - Fraction(cell.certified), fmt.decimals(p.n)),
                **looks_of([p])[name],
            }
        )
    if not bars:
        return None
    papers = [b for b in bars if b["preset"] == "paper"]
    far = max(papers or bars, key=lambda b: (abs(b["value"]), b["method"]))
    which = "paper-preset" if papers else "cheaper-preset (none is the paper's recipe)"
    alt = (
        f"Measured minus published certified accuracy for {len(bars)} rows; the largest difference of a {which} run is "
        f"{far['text']} points, {far['label']} on {far['setting']}."
    )
    rows = [{k: b[k] for k in ("setting", "method", "preset", "value", "lo", "hi")} for b in bars]
    title = "Measured minus published certified accuracy"
    columns = ("setting", "method", "preset", "value", "lo", "hi")
    return Spec("gap", "gap", title, alt, {"bars": bars[:40]}, columns, rows, ids(list(best.values())))


def draw(data: Mapping[str, Any]) -> Figure:
    """One bar per row, grouped by setting; hatched where the recipe is not the published one."""
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
    figure = new_figure(DOUBLE, 0.55 + foot + height)
    ax = add_axes(figure, wide, 0.42 + foot, DOUBLE - wide - 0.3, height)
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
        ax.text(0, spots[i] - 1.0, plain(bars[i]["setting"]), transform=ax.get_yaxis_transform(), fontsize=6.5,
                color=GREY, va="center", ha="left")  # fmt: skip
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_ylim(at - 0.4, 0.0)
    ax.set_yticks(spots, [plain(b["label"]) for b in bars])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")
    ax.set_xlabel("measured minus published certified accuracy, points; line: our 95 % interval")
    if hatched:
        patch = Patch(facecolor="#B0B0B0", hatch="////", edgecolor="white", linewidth=0.5)
        add_legend(figure, [patch], ["hatched: not the published recipe, no reproduction"], DOUBLE)
    return figure
