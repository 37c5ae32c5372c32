"""What the records say in plain words, and what they do not: every sentence comes from numbers in the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from . import fmt, limits, stats, styles
from .blocks import CERTIFIES, Block, paired_p
from .pool import Pool, leaders
from .rows import Inputs
from .wording import is_tuned, name, names, percent

NOTHING = CERTIFIES  # percent certified below which a row certifies "almost nothing"
FAILED = 25  # points of clean accuracy below the published one


@dataclass(frozen=True)
class Findings:
    """What can be read off the tables.

    across: one sentence per block on distance nets and the others; says: (setting and preset, sentences) of every block
    with two methods; limits: what none of it says.
    """

    across: Sequence[str]
    says: Sequence[tuple[str, Sequence[str]]]
    limits: Sequence[str]


def build(inputs: Inputs) -> Findings:
    """Findings over every block of two or more whole, unbroken rows; nothing at all without records."""
    across, says = [], []
    for block in inputs.blocks:
        pools = _fit(block)
        if len({p.method for p in pools}) < 2:
            continue
        heading = f"{block.setting.title}, preset {block.preset}, n = {block.n}"
        across += _families(heading, pools)
        sentences = [*_leader(pools), *_accurate(pools), *_undecided(pools), *_attacked(inputs, pools)]
        sentences += [*_empty(inputs, pools), *_failed(pools), *_unequal(pools), *_tuned(pools)]
        sentences += [*_left_out(block), *_not_run(inputs, block)]
        says.append((heading, sentences))
    return Findings(across, says, limits.build(inputs) if inputs.pools else [])


def _fit(block: Block) -> list[Pool]:
    return [p for p in block.pools if p.may_be_best and p.cls]


def _families(heading: str, pools: Sequence[Pool]) -> list[str]:
    """The best distance net beside the best of the other methods."""
    ours = next((p for p in pools if styles.is_distance_net(p.method)), None)
    other = next((p for p in pools if not styles.is_distance_net(p.method)), None)
    if ours is None or other is None:
        return []
    ahead = ours.percent("certified") - other.percent("certified")
    places = fmt.decimals(pools[0].n)
    best = pools[0]  # as in `_leader`: the best row against all others, corrected
    rest = [p for p in pools if p is not best]
    values = stats.holm([paired_p(best, p, "certified") for p in rest])
    doubt = values[rest.index(other if best is ours else ours)] >= 0.05
    return [
        f"{heading}: {fmt.points(ahead, places)} points ({name(ours)} {percent(ours, 'certified')}, "
        f"{name(other)} {percent(other, 'certified')}{'; not separable on these images' if doubt else ''})."
    ]


def _leader(pools: Sequence[Pool]) -> list[str]:
    """Who certifies most, and who cannot be told from it on these images."""
    best, others, first = pools[0], pools[1:], leaders(pools, "certified")
    if best.percent("certified") < NOTHING:
        return ["No row certifies more than almost nothing."]
    adjusted = stats.holm([paired_p(best, p, "certified") for p in others])
    tied = [p for p, value in zip(others, adjusted, strict=True) if value >= 0.05 and p not in first]
    apart = [(p, value) for p, value in zip(others, adjusted, strict=True) if value < 0.05]
    classes = " and ".join(sorted({str(p.cls) for p in first}))
    verb = "certifies" if len(first) == 1 else "certify"
    text = f"{names(first)} {verb} most, {percent(best, 'certified')} (class {classes})"
    if tied:
        text += f"; on these images {names(tied)} cannot be told from {'it' if len(first) == 1 else 'them'}"
    if apart and apart[0][0].percent("certified") >= NOTHING:
        pool, value = apart[0]
        seeds = ", one seed each" if pool.k == best.k == 1 else ""
        shown = f"{percent(pool, 'certified')} (class {pool.cls}; paired test, Holm: {fmt.p_words(value)}{seeds})"
        text += f"; {name(pool)} follows with {shown}"
    return [text + "."]


def _accurate(pools: Sequence[Pool]) -> list[str]:
    """What the proof costs in clean accuracy."""
    best, first = pools[0], max(pools, key=lambda p: p.count("correct"))
    if best.percent("certified") < NOTHING:
        return []
    if first is best:
        return [f"{name(best)} has the highest clean accuracy too, {percent(best, 'correct')}."]
    certified = first.percent("certified")
    what = "but certifies almost nothing" if certified < NOTHING else f"and certifies {percent(first, 'certified')}"
    close = " (not separable on these images)" if paired_p(first, best, "correct") >= 0.05 else ""
    return [
        f"{name(first)} has the highest clean accuracy, {percent(first, 'correct')}, {what}; "
        f"the leader has {percent(best, 'correct')}{close}."
    ]


def _undecided(pools: Sequence[Pool]) -> list[str]:
    """Between what attacks break and what is certified lies what nobody knows."""
    certifying = [p for p in pools if p.percent("certified") >= NOTHING]
    if not certifying:
        return []
    open_ = [
        (math.ceil(Fraction(sum(m.count("robust") - m.count("certified") for m in p.hardest), len(p.hardest))), p)
        for p in certifying
    ]
    each = fmt.names([f"{count} ({name(p)})" for count, p in sorted(open_, key=lambda found: found[0])])
    return [f"Images that are neither broken nor certified, of {pools[0].n}: {each}."]


def _attacked(inputs: Inputs, pools: Sequence[Pool]) -> list[str]:
    """Who met AutoAttack, if not everybody did: an unbroken image means less where the attack was weaker."""
    sampled = {r.id for r, one in inputs.reattacks if one.suite == "autoattack" and one.is_subset}
    strong = [p for p in pools if all(m.met_autoattack for m in p.members)]
    weak = [p for p in pools if p not in strong]
    if not strong or not weak:
        return []
    some = [p for p in weak if any(r.id in sampled for r in p.records)]
    seeds = [f"{met} of {p.k} seeds of {name(p)}" for p in weak if (met := sum(m.met_autoattack for m in p.members))]
    whose = "each" if some == weak else names(some) if some else ""
    also = [f"a sample of {whose}", *seeds] if some else seeds
    but = f"; of the others {fmt.names(also)}" if also else ""
    if len(weak) <= len(strong):
        but = f"; it met {fmt.names(also)}" if also else ""
        return [f"Not attacked by AutoAttack on all images and seeds: {names(weak)}{but}."]
    return [f"Attacked by AutoAttack on all images and seeds: {names(strong)}{but}."]


def _empty(inputs: Inputs, pools: Sequence[Pool]) -> list[str]:
    empty = [p for p in pools if p.percent("certified") < NOTHING]
    if not empty or len(empty) == len(pools):
        return []
    standing = max(empty, key=lambda p: p.count("robust"))
    kinds = " and ".join(sorted({p.certifier for p in empty}))
    text = f"The certificate of the table ({kinds}) proves almost nothing for {names(empty)}"
    if standing.percent("robust") >= NOTHING:
        text += f", although attacks leave up to {percent(standing, 'robust')} standing ({name(standing)})"
    ids = {r.id: p for p in empty for r in p.records}
    known = [(one.count("certified"), one, ids[r.id]) for r, one in inputs.certifications if r.id in ids]
    if known:
        count, one, pool = max(known, key=lambda found: (Fraction(found[0], found[1].n), found[1].n))
        text += f"; {one.certifier} certifies {count} of {one.n} images of {name(pool)} (table Trained with)"
    return [text + "."]


def _failed(pools: Sequence[Pool]) -> list[str]:
    """A run that far below the published clean accuracy says nothing about its method."""
    found = []
    for pool in pools:
        theirs = pool.published.clean if pool.published else None
        if theirs is not None and Fraction(theirs) - pool.percent("correct") > FAILED:
            what = "" if pool.first.preset == "paper" else " of a cheap recipe"
            found.append(
                f"{name(pool)} reached {percent(pool, 'correct')} clean where {theirs} % are published: a failed run"
                f"{what}, no measure of the method."
            )
    return found


def _unequal(pools: Sequence[Pool]) -> list[str]:
    """Rows of one preset share a rule of thumb, neither a network nor a stopwatch."""
    said = []
    sized = sorted((p for p in pools if p.cost("params")), key=lambda p: p.cost("params") or 0)
    if sized and sized[0].cost("params") != sized[-1].cost("params"):
        small, large = (f"{fmt.si(p.cost('params'))} ({name(p)})" for p in (sized[0], sized[-1]))
        said.append(f"networks have from {small} to {large} parameters")
    if len({machine for p in pools for machine in p.machines}) == 1:
        fast, slow = min(pools, key=lambda p: p.train_s), max(pools, key=lambda p: p.train_s)
        least, most = fmt.seconds(fast.train_s), fmt.seconds(slow.train_s)
        if least != most:
            said.append(f"training took from {least} ({name(fast)}) to {most} ({name(slow)})")
    else:
        said.append("training ran on different machines or thread counts")
    return [f"Not equal: {'; '.join(said)}."] if said else []


def _tuned(pools: Sequence[Pool]) -> list[str]:
    if pools[0].first.preset == "paper":
        return []
    tuned = [p for p in pools if is_tuned(p)]
    if len(tuned) == len(pools):
        return ["Every recipe was tuned for this setting, at least in part, on held-out images."]
    if not tuned:
        return ["No recipe was tuned for this setting."]
    return [f"Tuned for this setting, at least in part, on held-out images: {names(tuned)}; the others were not."]


def _left_out(block: Block) -> list[str]:
    """Rows of the table that these sentences do not weigh."""
    out = [p for p in block.pools if p.cls and not p.may_be_best]
    if not out:
        return []
    return [f"Not weighed here (changed recipe, uncommitted code, subset or broken guard): {names(out)}."]


def _not_run(inputs: Inputs, block: Block) -> list[str]:
    """Methods that ran with this preset elsewhere: their absence is no result."""
    here = {p.method for p in block.pools}
    elsewhere = [p for b in inputs.blocks if b.preset == block.preset for p in b.pools if p.method not in here]
    absent = sorted({name(p) for p in elsewhere if not p.overrides})
    return [f"Not run here: {', '.join(absent)}."] if absent else []
