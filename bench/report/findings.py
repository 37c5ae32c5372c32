"""What the records say in plain words, and what they do not: every sentence comes from numbers in the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from . import fmt, limits, stats
from .blocks import Block, paired_p
from .pool import Pool, leaders
from .rows import Inputs
from .wording import is_tuned, name, names, percent

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
    return Findings(says, limits.build(inputs) if inputs.pools else [])


def _fit(block: Block) -> list[Pool]:
    return [p for p in block.pools if p.may_be_best and p.cls]


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
    text = f"{names(first)} {verb} most, {percent(best, 'certified')} (class {classes})"
    if tied:
        text += f"; on these images {names(tied)} cannot be told from {'it' if len(first) == 1 else 'them'}"
    if apart and apart[0][0].percent("certified") >= NOTHING:
        pool, value = apart[0]
        proved = f"{percent(pool, 'certified')} (class {pool.cls}, {fmt.p_words(value)})"
        text += f"; {name(pool)} follows with {proved}"
    return [text + "."]


def _accurate(pools: Sequence[Pool]) -> list[str]:
    """What the proof costs in clean accuracy."""
    best, first = pools[0], max(pools, key=lambda p: p.count("correct"))
    if best.percent("certified") < NOTHING:
        return []
    if first is best:
        return [f"It is also the most accurate on clean images, {percent(best, 'correct')}."]
    proved = first.percent("certified")
    what = "proves next to nothing" if proved < NOTHING else f"proves {percent(first, 'certified')} of all images"
    close = " (not separable on these images)" if paired_p(first, best, "correct") >= 0.05 else ""
    return [
        f"Most accurate on clean images is {name(first)}, {percent(first, 'correct')}, and {what}; "
        f"the leader has {percent(best, 'correct')}{close}."
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
            f"Attacks and proofs meet within {images} of {pools[0].n} images for {names(close)}: so well is "
            "their robust accuracy known."
        )
    if wide:
        most = max(wide, key=gap)
        points = f"{fmt.fixed(gap(most), places)} points"
        points = points if len(wide) == 1 else f"up to {points} ({name(most)})"
        found.append(f"For {names(wide)} {points} are neither broken nor proved.")
    again = [p for p in proving if all(m.later for m in p.members)]
    once = [p for p in proving if p not in again]
    if again and once:
        found.append(f"Attacked less than the others, some or all seeds by their own records only: {names(once)}.")
    return found


def _empty(pools: Sequence[Pool]) -> list[str]:
    empty = [p for p in pools if p.percent("certified") < NOTHING]
    if not empty or len(empty) == len(pools):
        return []
    standing = max(empty, key=lambda p: p.count("robust"))
    kinds = " and ".join(sorted({p.certifier for p in empty}))
    return [
        f"The certificate of the table ({kinds}) proves next to nothing for {names(empty)}, whatever attacks leave "
        f"standing (up to {percent(standing, 'robust')}, {name(standing)}); a costlier one may prove more."
    ]


def _failed(pools: Sequence[Pool]) -> list[str]:
    """A run that far below the published clean accuracy says nothing about its method."""
    found = []
    for pool in pools:
        theirs = pool.published.clean if pool.published else None
        if theirs is not None and Fraction(theirs) - pool.percent("correct") > FAILED:
            found.append(
                f"{name(pool)} reached {percent(pool, 'correct')} clean where {theirs} % are published: a failed run "
                "of a cheap recipe, no measure of the method."
            )
    return found


def _costs(pools: Sequence[Pool]) -> list[str]:
    """Rows of one preset share a rule of thumb, not a stopwatch."""
    if len({machine for p in pools for machine in p.machines}) > 1:
        return ["Its rows were trained on different machines, so their times are not compared."]
    first = ", ".join(f"{name(p)} {fmt.seconds(p.train_s)}" for p in pools[:FIRST])
    fast, slow = min(pools, key=lambda p: p.train_s), max(pools, key=lambda p: p.train_s)
    return [
        f"Training took from {fmt.seconds(fast.train_s)} ({name(fast)}) to {fmt.seconds(slow.train_s)} "
        f"({name(slow)}); of the first rows: {first}. Ranks are not those of equal time."
    ]


def _tuned(pools: Sequence[Pool]) -> list[str]:
    if pools[0].first.preset == "paper":
        return []
    tuned = [p for p in pools if is_tuned(p)]
    if len(tuned) == len(pools):
        return []
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
