"""What the records do not say: seeds, budgets, tuning, attacks and times, each counted."""

from __future__ import annotations

from collections.abc import Sequence

from ..reattack import Reattack, newly_broken
from ..recipe import PRESETS
from ..record import Record
from . import fmt, styles
from .pool import PRESET_MEANS, Pool, Setting
from .rows import Inputs
from .wording import is_tuned, name


def build(inputs: Inputs) -> list[str]:
    """One line per limit, over every row whose guards are whole."""
    pools = [p for p in inputs.pools if not p.broken]
    return [*_seeds(pools), *_presets(pools), *_tuning(pools), *_attacks(inputs, pools), *_times(pools)]


def _seeds(pools: Sequence[Pool]) -> list[str]:
    few = [p for p in pools if p.k < 3]
    many = [p for p in pools if p.k >= 3]
    found = []
    if few:
        seeds = "one seed" if all(p.k == 1 for p in few) else "one or two seeds"
        found.append(
            f"Seeds: {len(few)} of {len(pools)} rows rest on {seeds}. Intervals and tests speak of the test "
            "images, not of training: another seed may reorder rows that lie close."
        )
    if many:
        widest = max(many, key=lambda p: p.over_seeds("certified").high - p.over_seeds("certified").low)
        spread = widest.over_seeds("certified")
        found.append(
            f"Where three or more seeds ran ({len(many)} rows), certified accuracy differed by up to "
            f"{spread.high - spread.low:.2f} points between them ({name(widest)}, "
            f"{Setting.of(widest.first.dataset, widest.first.norm, widest.first.eps.fraction).title})."
        )
    return found


def _presets(pools: Sequence[Pool]) -> list[str]:
    ran = [p for p in PRESETS if any(pool.first.preset == p for pool in pools)]
    small = [p for p in ran if p != "paper"]
    if not small:
        return []
    what = "; ".join(f"{p}: {PRESET_MEANS[p]}" for p in small)
    paper = sum(pool.first.preset == "paper" for pool in pools)
    return [
        f"Budgets: {len(pools) - paper} of {len(pools)} rows are our own cheap recipes ({what}). They show what such "
        "runs reached, with unequal networks, times and tuning, and say nothing about what a method reaches with its "
        "published network and schedule."
    ]


def _tuning(pools: Sequence[Pool]) -> list[str]:
    own = [p for p in pools if p.first.preset != "paper"]
    untuned = [p for p in own if not is_tuned(p)]
    if not untuned:
        return []
    text = (
        f"Tuning: {len(untuned)} of {len(own)} cheap recipes were not tuned for their cell; these methods may do "
        "better in the same time."
    )
    ours = [p for p in own if styles.is_distance_net(p.method)]
    others = [p for p in own if p not in ours]
    if ours and others:
        tuned = [sum(is_tuned(p) for p in group) for group in (ours, others)]
        text += f" Tuned were {tuned[0]} of {len(ours)} rows of distance nets and {tuned[1]} of {len(others)} others"
        text += ": the comparison leans to the former." if tuned[0] * len(others) > tuned[1] * len(ours) else "."
    return [text]


def _attacks(inputs: Inputs, pools: Sequence[Pool]) -> list[str]:
    records = {r.id: r for p in pools for r in p.records}
    later: dict[str, list[Reattack]] = {}
    for r, one in inputs.reattacks:
        if r.id in records:
            later.setdefault(r.id, []).append(one)
    automatic = [one for found in later.values() for one in found if one.suite == "autoattack"]
    after = {str(one.data["record"]) for one in automatic}
    hit = after | {r.id for r in records.values() if _has_autoattack(r)}
    text = f"Attacks: robust accuracy is an upper bound. AutoAttack was run on {len(hit)} of {len(records)} nets"
    if automatic:
        certified = sum(one.n_certified_attacked for one in automatic)
        left = "and not yet broken" if certified else "not certified and not yet broken by a longer PGD"
        which = "" if after == hit else f"on {len(after)} of them "
        text += (
            f", {which}after the fact and only on images that were right, {left} "
            f"({sum(_n_seen(one) for one in automatic)} in all)"
        )
    if later:
        broken = sum(len(newly_broken(records[r], found)) for r, found in later.items())
        text += f"; later attacks broke {broken} images that the records' own had left standing (table Attacked again)"
    return [text + "."]


def _n_seen(one: Reattack) -> int:
    """Images that the first part of AutoAttack was given: those before it leave it the rest."""
    return next((int(a["n_attacked"]) for a in one.data["attacks"] if a["name"].startswith("aa_")), 0)


def _has_autoattack(record: Record) -> bool:
    return any(attack["name"].startswith("aa_") for attack in record.data["evaluation"]["attacks"])


def _times(pools: Sequence[Pool]) -> list[str]:
    devices = sorted({p.device for p in pools})
    threads = sorted({int(r.data["environment"]["threads"]) for p in pools for r in p.records})
    count = " or ".join(map(str, threads))
    compiled = sorted({p.first.title for p in pools if p.is_compiled})
    how = ""
    if compiled and any(not p.is_compiled for p in pools):
        how = f" They compare implementations too: compiled kernels for {fmt.names(compiled)}, else plain torch."
    return [
        f"Times are wall clock on {'; '.join(devices)}, {count} thread{'' if threads == [1] else 's'} each, with "
        f"whatever else the machine did meanwhile{spread(pools)}.{how}"
    ]


def spread(pools: Sequence[Pool]) -> str:
    """`: times of one ... lie up to 2.0-fold apart ...`: how far equal work on one machine differs; may be empty."""
    train: dict[object, list[float]] = {}
    certify: dict[object, list[float]] = {}
    for r in (r for p in pools for r in p.records):
        cost, training = r.data["cost"], r.data["training"]
        net = r.method, cost["params"], cost["flops"], r.machine
        train.setdefault((net, training["iterations"]), []).append(r.train_s)
        if cost.get("certify_ms"):
            certify.setdefault((net, r.headline["name"]), []).append(float(cost["certify_ms"]))
    ratios = [max((max(v) / min(v) for v in found.values() if min(v) > 0), default=1.0) for found in (train, certify)]
    if max(ratios) < 1.05:
        return ""
    return (
        f": times of one method, network and number of steps lie up to {ratios[0]:.1f}-fold apart in training and "
        f"{ratios[1]:.1f}-fold per certificate"
    )
