"""What the records say in plain words, and what they do not: every sentence comes from numbers in the tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..eps import Eps
from ..reattack import Reattack, newly_broken
from ..recipe import PRESETS
from ..record import Record
from . import fmt, stats
from .blocks import Block, paired_p
from .pool import PRESET_MEANS, Pool, leaders
from .rows import Inputs

NOTHING = 1  # percent certified below which a row proves "next to nothing"
FIRST = 5  # rows of a block whose training times are told
FAILED = 25  # points of clean accuracy below the published one
UNDECIDED = Fraction(1, 2)  # points between robust and certified that are worth a sentence


@dataclass(frozen=True)
class Findings:
    """says: (setting and preset, sentences) of every block with two methods; limits: what none of it says."""

    says: Sequence[tuple[str, Sequence[str]]]
    limits: Sequence[str]


def build(inputs: Inputs) -> Findings:
    """Findings over every block of two or more whole, unbroken rows; nothing at all without records."""
    says = []
    for block in inputs.blocks:
        pools = _fit(block)
        if len({p.method for p in pools}) < 2:
            continue
        heading = f"{block.setting.title}, preset {block.preset}, n = {block.n}"
        sentences = [*_leader(pools), *_accurate(pools), *_undecided(pools), *_empty(pools), *_failed(pools)]
        sentences += [*_costs(pools), *_tuned(pools), *_left_out(block), *_not_run(inputs, block)]
        says.append((heading, sentences))
    return Findings(says, _limits(inputs) if inputs.pools else [])


def _fit(block: Block) -> list[Pool]:
    return [p for p in block.pools if p.may_be_best and p.cls]


def _percent(pool: Pool, kind: str) -> str:
    return f"{fmt.fixed(pool.percent(kind), fmt.decimals(pool.n))} %"


def _name(pool: Pool) -> str:
    """`l_inf-dist net (boosted)`: a comma inside a name would be lost in a list."""
    first, _, rest = pool.first.title.partition(", ")
    words = [rest] * bool(rest) + [pool.overrides] * bool(pool.overrides)
    return f"{first} ({'; '.join(words)})" if words else first


def _names(pools: Sequence[Pool]) -> str:
    return fmt.names([_name(p) for p in pools])


def _leader(pools: Sequence[Pool]) -> list[str]:
    """Who proves most, and who cannot be told from it on these images."""
    best, others, first = pools[0], pools[1:], leaders(pools, "certified")
    if best.percent("certified") < NOTHING:
        return ["No row proves more than next to nothing."]
    adjusted = stats.holm([paired_p(best, p, "certified") for p in others])
    tied = [p for p, value in zip(others, adjusted, strict=True) if value >= 0.05 and p not in first]
    apart = [(p, value) for p, value in zip(others, adjusted, strict=True) if value < 0.05]
    classes = " and ".join(sorted({str(p.cls) for p in first}))
    verb = "proves" if len(first) == 1 else "prove"
    text = f"{_names(first)} {verb} most, {_percent(best, 'certified')} (class {classes})"
    if tied:
        text += f"; on these images {_names(tied)} cannot be told from {'it' if len(first) == 1 else 'them'}"
    if apart and apart[0][0].percent("certified") >= NOTHING:
        pool, value = apart[0]
        proved = f"{_percent(pool, 'certified')} (class {pool.cls}, {fmt.p_words(value)})"
        text += f"; {_name(pool)} follows with {proved}"
    return [text + "."]


def _accurate(pools: Sequence[Pool]) -> list[str]:
    """What the proof costs in clean accuracy."""
    best, first = pools[0], max(pools, key=lambda p: p.count("correct"))
    if best.percent("certified") < NOTHING:
        return []
    if first is best:
        return [f"It is also the most accurate on clean images, {_percent(best, 'correct')}."]
    proved = first.percent("certified")
    what = "proves next to nothing" if proved < NOTHING else f"proves {_percent(first, 'certified')} of all images"
    close = " (not separable on these images)" if paired_p(first, best, "correct") >= 0.05 else ""
    return [
        f"Most accurate on clean images is {_name(first)}, {_percent(first, 'correct')}, and {what}; "
        f"the leader has {_percent(best, 'correct')}{close}."
    ]


def _undecided(pools: Sequence[Pool]) -> list[str]:
    """Between what attacks break and what is proved lies what nobody knows."""

    def gap(pool: Pool) -> Fraction:
        return pool.percent("robust") - pool.percent("certified")

    proving = [p for p in pools if p.percent("certified") >= NOTHING]
    wide = [p for p in proving if gap(p) > UNDECIDED]
    close = [p for p in proving if gap(p) <= UNDECIDED]
    places = fmt.decimals(pools[0].n)
    found = []
    if close:
        images = math.ceil(max(p.count("robust") - p.count("certified") for p in close))
        found.append(
            f"Attacks and proofs meet within {images} of {pools[0].n} images for {_names(close)}: so well is "
            "their robust accuracy known."
        )
    if wide:
        most = max(wide, key=gap)
        points = f"{fmt.fixed(gap(most), places)} points"
        points = points if len(wide) == 1 else f"up to {points} ({_name(most)})"
        found.append(f"For {_names(wide)} {points} are neither broken nor proved.")
    again = [p for p in proving if all(m.later for m in p.members)]
    once = [p for p in proving if p not in again]
    if again and once:
        found.append(f"Attacked less than the others, some or all seeds by their own records only: {_names(once)}.")
    return found


def _empty(pools: Sequence[Pool]) -> list[str]:
    empty = [p for p in pools if p.percent("certified") < NOTHING]
    if not empty or len(empty) == len(pools):
        return []
    standing = max(empty, key=lambda p: p.count("robust"))
    kinds = " and ".join(sorted({p.certifier for p in empty}))
    return [
        f"The certificate of the table ({kinds}) proves next to nothing for {_names(empty)}, whatever attacks leave "
        f"standing (up to {_percent(standing, 'robust')}, {_name(standing)}); a costlier one may prove more."
    ]


def _failed(pools: Sequence[Pool]) -> list[str]:
    """A run that far below the published clean accuracy says nothing about its method."""
    found = []
    for pool in pools:
        theirs = pool.published.clean if pool.published else None
        if theirs is not None and Fraction(theirs) - pool.percent("correct") > FAILED:
            found.append(
                f"{_name(pool)} reached {_percent(pool, 'correct')} clean where {theirs} % are published: a failed run "
                "of a cheap recipe, no measure of the method."
            )
    return found


def _costs(pools: Sequence[Pool]) -> list[str]:
    """Rows of one preset share a rule of thumb, not a stopwatch."""
    if len({machine for p in pools for machine in p.machines}) > 1:
        return ["Its rows were trained on different machines, so their times are not compared."]
    first = ", ".join(f"{_name(p)} {fmt.seconds(p.train_s)}" for p in pools[:FIRST])
    fast, slow = min(pools, key=lambda p: p.train_s), max(pools, key=lambda p: p.train_s)
    return [
        f"Training took from {fmt.seconds(fast.train_s)} ({_name(fast)}) to {fmt.seconds(slow.train_s)} "
        f"({_name(slow)}); of the first rows: {first}. Ranks are not those of equal time."
    ]


def _tuned(pools: Sequence[Pool]) -> list[str]:
    if pools[0].first.preset == "paper":
        return []
    tuned = [p for p in pools if _is_tuned(p)]
    if len(tuned) == len(pools):
        return []
    if not tuned:
        return ["No recipe was tuned for this setting."]
    return [f"Tuned for this setting, at least in part, on held-out images: {_names(tuned)}; the others were not."]


def _left_out(block: Block) -> list[str]:
    """Rows of the table that these sentences do not weigh."""
    out = [p for p in block.pools if p.cls and not p.may_be_best]
    if not out:
        return []
    return [f"Not weighed here (changed recipe, uncommitted code, subset or broken guard): {_names(out)}."]


def _not_run(inputs: Inputs, block: Block) -> list[str]:
    """Methods that ran with this preset elsewhere: their absence is no result."""
    here = {p.method for p in block.pools}
    elsewhere = [p for b in inputs.blocks if b.preset == block.preset for p in b.pools if p.method not in here]
    names = sorted({_name(p) for p in elsewhere if not p.overrides})
    return [f"Not run here: {', '.join(names)}."] if names else []


# --- what it does not say ---------------------------------------------------------------------------------------------


def _limits(inputs: Inputs) -> list[str]:
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
            f"{spread.high - spread.low:.2f} points between them ({_name(widest)}, {widest.first.dataset} "
            f"{widest.first.eps})."
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
        "runs reached, with unequal times and tuning, and say nothing about what a method reaches with its published "
        "network and schedule."
    ]


def _tuning(pools: Sequence[Pool]) -> list[str]:
    own = [p for p in pools if p.first.preset != "paper"]
    untuned = [p for p in own if not _is_tuned(p)]
    if not untuned:
        return []
    names = ", ".join(sorted({_name(p) for p in untuned}))
    return [
        f"Tuning: {len(untuned)} of {len(own)} cheap recipes were not tuned for their cell ({names}); these methods "
        "may do better in the same time."
    ]


def _is_tuned(pool: Pool) -> bool:
    """By the source of the recipe, which says so where held-out images chose it, and at which eps if at another."""
    source = str(pool.first.data["recipe"].get("source", ""))
    at = re.search(r"\beps (\d+(?:/\d+|\.\d+)?)", source)
    elsewhere = at is not None and Eps(at[1]) != pool.first.eps
    chosen = "validation" in source or "held-out" in source
    return chosen and "not tuned" not in source and not elsewhere


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
        f"whatever else the machine did meanwhile{_spread(pools)}.{how}"
    ]


def _spread(pools: Sequence[Pool]) -> str:
    """How far times of equal work lie apart: one method, network and number of steps on one machine."""
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
