"""What each figure shows, as plain data: series, axes, alt text, the csv of the points plotted or told. No drawing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..record import RecordError
from . import cells, fmt, styles, tables
from .checked import KINDS
from .rows import LEVELS, PRESET_MARK, PRESETS, Block, Inputs, Pool, Setting, lead

CURVE_POINTS = 160  # steps of a curve; more cannot be told apart at column width
BINS = 48
LONGEST = 30  # characters of a title in a figure
GAP = 10.0  # points of certified accuracy: less is never a reason to leave a method out of a picture


@dataclass(frozen=True)
class Spec:
    """One figure before it is drawn. `data` is JSON; with `kind` it decides every pixel."""

    name: str
    kind: str
    title: str
    alt: str
    data: Mapping[str, Any]
    csv_columns: Sequence[str]
    csv_rows: Sequence[Mapping[str, Any]]
    records: tuple[str, ...]
    setting: Setting | None = None

    @property
    def input_hash(self) -> str:
        """Equal for figures that look the same, given the drawing code."""
        text = json.dumps([self.name, self.kind, self.title, self.alt, self.data], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def build(inputs: Inputs) -> list[Spec]:
    """Every figure that has something to show, in the order of the page."""
    found: list[Spec | None] = []
    for setting in inputs.settings():
        block = lead(inputs, setting)
        makers: list[Callable[[Inputs, Setting, Block | None], Spec | None]] = [curve, pareto, cost, fate, radii, train]
        found += [make(inputs, setting, block) for make in makers]
    found += [gap(inputs), seeds(inputs)]
    return [spec for spec in found if spec is not None]


def _sound(block: Block | None) -> list[Pool]:
    """The rows a figure may show: no broken guard; one per method, the unchanged recipe before a changed one."""
    best: dict[str, Pool] = {}
    for pool in block.pools if block else ():
        if not pool.broken and pool.method not in best:
            best[pool.method] = pool
    for pool in block.pools if block else ():
        if not pool.broken and not pool.overrides and best[pool.method].overrides:
            best[pool.method] = pool
    return sorted(best.values(), key=lambda p: styles.order(p.method))


def _looks(pools: Sequence[Pool]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash by method, as JSON."""
    found = styles.styles(p.method for p in pools)
    return {m: _look(s) for m, s in found.items()}


def _look(s: styles.Style) -> dict[str, Any]:
    return {"color": s.light, "marker": s.marker, "dash": s.dash, "hollow": s.hollow, "slot": s.slot}


def label(pool: Pool, *, alone: bool = False) -> str:
    """The legend's words. Preset and subset stand in the line every figure of a block carries; a label that stands
    `alone` among other blocks names them itself."""
    more = [pool.overrides] if pool.overrides else []
    if alone:
        more += [pool.first.preset] if PRESET_MARK[pool.first.preset] else []
        more += ["subset"] if pool.first.is_subset else []
    name = fmt.shorten(fmt.printable(pool.first.title), LONGEST)
    return name + (f" ({', '.join(more)})" if more else "")


def _under(block: Block) -> str:
    """The line every figure of a block carries: what was measured, on how many images."""
    n = f"n = {block.n}" + (" (subset)" if block.is_subset else "")
    return f"{block.setting.title}; preset {block.preset}; {n}"


def _percent(value: Fraction | float) -> float:
    return round(float(value), 4)


# --- certified accuracy against radius --------------------------------------------------------------------------------


def curve(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """A step function per method from the stored radii; drawn so that it never overstates between two points."""
    pools = [p for p in _sound(block) if p.cls]
    if not pools or block is None:
        return None
    series, csv_rows = [], []
    radius = {p.method: _radii(p) for p in pools}
    pools = [p for p in pools if radius[p.method] is not None]
    if not pools:
        return None
    eps = float(setting.eps)
    reach = max(_reach(radius[p.method]) for p in pools)
    top = min(max(reach, 1.25 * eps), max(4 * eps, 1e-6) if eps else 1.0)
    grid = np.linspace(0.0, top, CURVE_POINTS + 1)
    looks = _looks(pools)
    for pool in pools:
        r = np.sort(radius[pool.method])
        counts = len(r) - np.searchsorted(r, grid.astype(np.float32), side="left")  # radius >= grid point
        counts[0] = pool.first.n_correct
        shares = [round(100.0 * int(c) / pool.n, 4) for c in counts]
        points = {k: _percent(100 * Fraction(pool.members[0].count(k), pool.n)) for k in ("certified", "robust")}
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
    best = max(pools, key=lambda p: (p.first.n_certified, p.method))
    alt = (
        f"Certified accuracy against radius on {_under(block)}: {best.first.title} certifies most at "
        f"{setting.eps_text}, {fmt.percent(best.first.n_certified, best.n)} % of {best.n}."
    )
    data = {
        "x": [round(float(x), 7) for x in grid],
        "series": series,
        "eps": eps,
        "levels": setting.dataset in LEVELS,
        "under": _under(block),
    }
    columns = ("method", "record", "radius", "n_certified", "n", "certified")
    title = f"Certified accuracy against radius: {setting.title}"
    return Spec(f"curve_{setting.slug}", "curve", title, alt, data, columns, csv_rows, _ids(pools), setting)


def _radii(pool: Pool) -> Any:
    try:
        return pool.first.arrays("radius")["radius"]
    except RecordError:
        return None


def _reach(radius: np.ndarray) -> float:
    """The radius that half a percent of all images still reach."""
    return float(np.quantile(radius, 0.995))


def _ids(pools: Sequence[Pool]) -> tuple[str, ...]:
    return tuple(r.id for p in pools for r in p.records)


# --- clean against certified ------------------------------------------------------------------------------------------


def pareto(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Measured rows filled, published ones hollow; nothing can lie above the diagonal."""
    pools = [p for p in _sound(block) if p.cls]
    looks = _looks(pools)
    measured = [
        {
            "method": p.method,
            "label": label(p),
            "x": _percent(p.percent("correct")),
            "y": _percent(p.percent("certified")),
            "xerr": [round(v, 4) for v in p.interval("correct")],
            "yerr": [round(v, 4) for v in p.interval("certified")],
            "dots": [[_percent(r.clean), _percent(r.certified)] for r in p.records] if p.k > 1 else [],
            **looks[p.method],
        }
        for p in pools
    ]
    names = sorted(inputs.published_of.get(setting, {}), key=styles.order)
    theirs = [
        c for m in names if (c := inputs.headline_of(setting, m)) and c.clean is not None and c.certified is not None
    ]
    published = [
        {
            "method": c.method,
            "label": styles.title(c.method),
            "x": float(c.clean or 0),
            "y": float(c.certified or 0),
            "key": c.key,
            **_look(styles.style(c.method)),
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
        best = max(pools, key=lambda p: (p.count("certified"), p.method))
        where = _under(block) if block else setting.title
        alt = (
            f"Clean against certified accuracy on {where}: {best.first.title} certifies most of the measured methods, "
            f"{fmt.percent(best.count('certified'), best.n)} % at {fmt.percent(best.count('correct'), best.n)} % clean."
        )
    else:
        top = max(theirs, key=lambda c: (c.certified, c.method))
        alt = (
            f"Clean against certified accuracy on {setting.title}, published numbers only: {styles.title(top.method)} "
            f"certifies most, {top.certified} % at {top.clean} % clean."
        )
    floor = _lowest_shown([p["y"] for p in (*measured, *published)])
    data = {
        "measured": [p for p in measured if p["y"] >= floor],
        "published": [p for p in published if p["y"] >= floor],
        "below": [_below(m["label"], fmt.percent(p.count("certified"), p.n), fmt.percent(p.count("correct"), p.n))
                  for m, p in zip(measured, pools, strict=True) if m["y"] < floor]
        + [_below(p["label"] + "\u2020", str(c.certified), str(c.clean))
           for p, c in zip(published, theirs, strict=True) if p["y"] < floor],
        "under": _under(block) if block else setting.title,
    }  # fmt: skip
    title = f"Clean against certified accuracy: {setting.title}"
    columns = ("method", "published", "clean", "certified", "source")
    return Spec(f"pareto_{setting.slug}", "pareto", title, alt, data, columns, rows, _ids(pools), setting)


def _lowest_shown(certified: Sequence[float]) -> float:
    """What lies below is told in words: drawn to scale, methods that certify next to nothing would squash the others.

    The cut is the first gap, from the top, of GAP points or more that is wider than all that lies above it.
    """
    high_to_low = sorted(certified, reverse=True)
    for at in range(1, len(high_to_low) - 1):
        gap = high_to_low[at] - high_to_low[at + 1]
        if gap >= max(GAP, high_to_low[0] - high_to_low[at]):
            return high_to_low[at]
    return high_to_low[-1]


def _below(label: str, certified: str, clean: str) -> str:
    return f"below: {label} {certified} % at {clean} % clean"


# --- certified against cost -------------------------------------------------------------------------------------------


def cost(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Training time and time per certificate against certified accuracy; one device only, the one with most rows."""
    devices: dict[str, list[Pool]] = {}
    for pool in _sound(block):
        if pool.cls and pool.train_s > 0:
            devices.setdefault(pool.device, []).append(pool)
    if not devices or block is None:
        return None
    device = min(devices, key=lambda d: (-len(devices[d]), d))
    pools = devices[device]
    if len(pools) < 2:
        return None
    looks = _looks(pools)
    points = [
        {
            "method": p.method,
            "label": label(p),
            "train_s": round(p.train_s, 4),
            "y": _percent(p.percent("certified")),
            "certify_ms": None if p.cost("certify_ms") is None else round(float(p.cost("certify_ms") or 0), 6),
            "yerr": [round(v, 4) for v in p.interval("certified")],
            **looks[p.method],
        }
        for p in pools
    ]
    best = max(pools, key=lambda p: (p.count("certified"), p.method))
    fast = min(pools, key=lambda p: (p.train_s, p.method))
    alt = (
        f"Certified accuracy against training time on {_under(block)}, {device}: {best.first.title} certifies most "
        f"({fmt.percent(best.count('certified'), best.n)} % after {fmt.seconds(best.train_s)}), {fast.first.title} "
        f"trains fastest ({fmt.seconds(fast.train_s)})."
    )
    rows = [
        {"method": p["method"], "train_s": p["train_s"], "certify_ms": p["certify_ms"], "certified": p["y"]}
        for p in points
    ]
    data = {"points": points, "device": fmt.printable(device), "under": _under(block)}
    title = f"Certified accuracy against cost: {setting.title}"
    columns = ("method", "train_s", "certify_ms", "certified")
    return Spec(f"cost_{setting.slug}", "cost", title, alt, data, columns, rows, _ids(pools), setting)


# --- what became of each image ----------------------------------------------------------------------------------------


def fate(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Certified, undecided, broken by an attack, wrong on clean: the gap between certificate and attack as bars."""
    pools = sorted(_sound(block), key=lambda p: (-p.count("certified"), -p.count("robust"), p.method))
    if not pools or block is None:
        return None
    bars: list[dict[str, Any]] = []
    for p in pools:
        right, robust, sure = (p.percent(k) for k in KINDS)
        parts = {"certified": sure, "undecided": robust - sure, "broken": right - robust, "wrong": 100 - right}
        bars.append({"method": p.method, "label": label(p), **{k: _percent(v) for k, v in parts.items()}})
    widest = max(bars, key=lambda b: (b["undecided"], b["method"]))
    alt = (
        f"What became of each test image on {_under(block)}; the largest gap between attack and certificate is "
        f"{fmt.fixed(widest['undecided'], min(1, fmt.decimals(block.n)))} points, for {widest['label']}."
    )
    data = {"bars": bars, "under": _under(block), "places": min(1, fmt.decimals(block.n))}
    title = f"Certified, undecided, broken, wrong: {setting.title}"
    columns = ("method", "certified", "undecided", "broken", "wrong")
    return Spec(f"fate_{setting.slug}", "fate", title, alt, data, columns, bars, _ids(pools), setting)


# --- distribution of radii --------------------------------------------------------------------------------------------


def radii(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """A histogram per method of the certified radii of the images it gets right."""
    pools = [p for p in _sound(block) if p.cls]
    found = [(p, r[r > 0]) for p in pools if (r := _radii(p)) is not None and (r > 0).any()]
    if not found or block is None:
        return None
    top = max(float(np.quantile(r, 0.995)) for _, r in found) * 1.02
    edges = np.linspace(0.0, max(top, float(setting.eps) * 1.25), BINS + 1)
    looks = _looks([p for p, _ in found])
    series, rows = [], []
    for pool, r in found:
        counts, _ = np.histogram(np.minimum(r, edges[-1]), bins=edges)
        median = float(np.quantile(r, 0.5))
        series.append(
            {
                "method": pool.method,
                "label": label(pool),
                "counts": [int(c) for c in counts],
                "median": round(median, 7),
                "n": pool.n,
                **looks[pool.method],
            }
        )
        rows += [
            {"method": pool.method, "from": float(a), "to": float(b), "count": int(c), "n": pool.n}
            for a, b, c in zip(edges, edges[1:], counts, strict=False)
        ]
    best = max(series, key=lambda s: (s["median"], s["method"]))
    alt = (
        f"Distribution of certified radii of correctly classified images on {_under(block)}; the largest median is "
        f"{_radius_text(setting, best['median'])}, for {best['label']}."
    )
    data = {
        "edges": [round(float(e), 7) for e in edges],
        "series": series,
        "eps": float(setting.eps),
        "levels": setting.dataset in LEVELS,
        "under": _under(block),
    }
    title = f"Certified radii: {setting.title}"
    columns = ("method", "from", "to", "count", "n")
    ids = _ids([p for p, _ in found])
    return Spec(f"radii_{setting.slug}", "radii", title, alt, data, columns, rows, ids, setting)


def _radius_text(setting: Setting, value: float) -> str:
    return f"{fmt.significant(value * 255, 3)}/255" if setting.dataset in LEVELS else fmt.significant(value, 3)


# --- training ---------------------------------------------------------------------------------------------------------

PANELS = (
    ("loss", "Training loss"),
    ("train_acc", "Training accuracy %"),
    ("p", "Exponent p"),
    ("eps", "Training radius"),
)


def train(inputs: Inputs, setting: Setting, block: Block | None) -> Spec | None:
    """Loss, accuracy, p and eps over the run of each method's lowest seed; a run's share, so that lengths compare."""
    pools = _sound(block)
    series, rows = [], []
    looks = _looks(pools)
    for pool in pools:
        history = pool.first.data["training"]["history"]
        if len(history) < 2:
            continue
        keep = _thin(len(history), 120)
        values = {key: [_scalar(history[i].get(key)) for i in keep] for key, _ in PANELS}
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
    longest = max(pools, key=lambda p: (len(p.first.data["training"]["history"]), p.method))
    alt = (
        f"Training on {_under(block)}: {', '.join(t.lower() for _, t in shown)} over the run; the longest is "
        f"{longest.first.title} with {len(longest.first.data['training']['history'])} epochs."
    )
    data = {"panels": shown, "series": series, "eps": float(setting.eps), "under": _under(block)}
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


# --- measured against published, seeds --------------------------------------------------------------------------------


def gap(inputs: Inputs) -> Spec | None:
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
                "value": _percent(p.percent("certified") - Fraction(cell.certified)),
                "lo": round(lo - theirs, 4),
                "hi": round(hi - theirs, 4),
                "preset": p.first.preset,
                "text": fmt.points(p.percent("certified") - Fraction(cell.certified), fmt.decimals(p.n)),
                **_looks([p])[name],
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
    return Spec("gap", "gap", title, alt, {"bars": bars[:40]}, columns, rows, _ids(list(best.values())))


def seeds(inputs: Inputs) -> Spec | None:
    """Certified accuracy of each seed, where a row has more than one."""
    rows, strips = [], []
    pools = [p for b in inputs.blocks for p in b.pools if p.k > 1 and not p.broken and p.cls]
    for p in pools[:30]:
        setting = Setting.of(p.first.dataset, p.first.norm, p.first.eps.fraction)
        s = p.over_seeds("certified")
        name = f"{label(p, alone=True)}, {styles.dataset_title(p.first.dataset)} {setting.eps_text}"
        values = [round(r.certified, 4) for r in p.records]
        strips.append({"label": name, "values": values, "mean": round(s.mean, 4), **_looks([p])[p.method]})
        rows += [{"row": name, "seed": r.seed, "record": r.id, "certified": r.certified} for r in p.records]
    if not strips:
        return None
    spreads = [max(s["values"]) - min(s["values"]) for s in strips]
    wide = max(strips, key=lambda s: (max(s["values"]) - min(s["values"]), s["label"]))
    alt = (
        f"Certified accuracy of every seed; the widest spread is {fmt.fixed(max(spreads), 2)} "
        f"points, for {wide['label']}."
    )
    columns = ("row", "seed", "record", "certified")
    title = "Certified accuracy by seed"
    return Spec("seeds", "seeds", title, alt, {"strips": strips}, columns, rows, _ids(pools[:30]))


assert set(cells.KIND_OF.values()) == set(KINDS)
