"""What the records say in plain words, and what they do not: every sentence comes from numbers in the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..record import Record
from . import fmt, stats
from .rows import PRESET_MEANS, PRESETS, Block, Inputs, Pool, paired_p

NOTHING = 1  # percent certified below which a row proves "next to nothing"
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
        says.append((heading, [*_leader(pools), *_accurate(pools), *_undecided(pools), *_empty(pools)]))
    return Findings(says, _limits(inputs) if inputs.pools else [])


def _fit(block: Block) -> list[Pool]:
    return [p for p in block.pools if p.may_be_best and p.cls]


def _percent(pool: Pool, kind: str) -> str:
    return f"{fmt.fixed(pool.percent(kind), fmt.decimals(pool.n))} %"


def _name(pool: Pool) -> str:
    """`l_inf-dist net (boosted)`: a comma inside a name would be lost in a list."""
    first, _, rest = pool.title.partition(", ")
    return f"{first} ({rest})" if rest else first


def _names(pools: Sequence[Pool]) -> str:
    names = [_name(p) for p in pools]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _leader(pools: Sequence[Pool]) -> list[str]:
    """Who proves most, and who cannot be told from it on these images."""
    best, others = pools[0], pools[1:]
    adjusted = stats.holm([paired_p(best, p, "certified") for p in others])
    tied = [p for p, value in zip(others, adjusted, strict=True) if value >= 0.05]
    apart = [p for p in others if p not in tied]
    text = f"{_name(best)} proves most, {_percent(best, 'certified')} (certificate of class {best.cls})"
    if tied:
        text += f"; on these images {_names(tied)} cannot be told from it"
    if apart and apart[0].percent("certified") >= NOTHING:
        text += f"; {_name(apart[0])} follows with {_percent(apart[0], 'certified')} (class {apart[0].cls})"
    return [text + "."]


def _accurate(pools: Sequence[Pool]) -> list[str]:
    """What the proof costs in clean accuracy."""
    best, first = pools[0], max(pools, key=lambda p: p.count("correct"))
    if first is best:
        return [f"It is also the most accurate on clean images, {_percent(best, 'correct')}."]
    proved = first.percent("certified")
    what = "next to nothing is proved" if proved < NOTHING else f"{_percent(first, 'certified')} is proved"
    return [
        f"Most accurate on clean images is {_name(first)}, {_percent(first, 'correct')}, of which {what}; "
        f"the leader has {_percent(best, 'correct')}."
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
        widest = max(map(gap, close))
        found.append(
            f"Attacks and proofs meet within {fmt.fixed(widest, places)} points for {_names(close)}: so well is "
            "their robust accuracy known."
        )
    if wide:
        most = max(wide, key=gap)
        points = f"{fmt.fixed(gap(most), places)} points"
        points = points if len(wide) == 1 else f"up to {points} ({_name(most)})"
        found.append(f"For {_names(wide)} {points} are neither broken nor proved.")
    return found


def _empty(pools: Sequence[Pool]) -> list[str]:
    empty = [p for p in pools if p.percent("certified") < NOTHING]
    if not empty or len(empty) == len(pools):
        return []
    standing = max(empty, key=lambda p: p.count("robust"))
    return [
        f"The method's own certificate proves next to nothing for {_names(empty)}, whatever attacks leave standing (up "
        f"to {_percent(standing, 'robust')}, {_name(standing)})."
    ]


# --- what it does not say ---------------------------------------------------------------------------------------------


def _limits(inputs: Inputs) -> list[str]:
    pools = [p for p in inputs.pools if not p.broken]
    return [*_seeds(pools), *_presets(pools), *_tuning(pools), *_attacks(inputs, pools), *_times(pools)]


def _seeds(pools: Sequence[Pool]) -> list[str]:
    single = [p for p in pools if p.k == 1]
    many = [p for p in pools if p.k >= 3]
    found = []
    if single:
        found.append(
            f"Seeds: {len(single)} of {len(pools)} rows rest on one seed. Intervals and tests speak of the test "
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
        f"Budgets: {len(pools) - paper} of {len(pools)} rows are our own cheap recipes ({what}). They rank what such a "
        "budget buys and say nothing about what a method reaches with its published network and schedule."
    ]


def _tuning(pools: Sequence[Pool]) -> list[str]:
    """By the sources of the recipes, which say so where a validation split chose them."""
    own = [p for p in pools if p.first.preset != "paper"]
    untuned = [p for p in own if not any(w in _source(p) for w in ("validation", "held-out"))]
    if not untuned:
        return []
    names = ", ".join(sorted({_name(p) for p in untuned}))
    return [
        f"Tuning: {len(untuned)} of {len(own)} cheap recipes were not tuned for their cell ({names}); these methods "
        "may do better in the same time."
    ]


def _source(pool: Pool) -> str:
    return str(pool.first.data["recipe"].get("source", ""))


def _attacks(inputs: Inputs, pools: Sequence[Pool]) -> list[str]:
    records = {r.id: r for p in pools for r in p.records}
    later = [one for r, one in inputs.reattacks if r.id in records and one.suite == "autoattack"]
    hit = {str(one.data["record"]) for one in later} | {r.id for r in records.values() if _has_autoattack(r)}
    text = f"Attacks: robust accuracy is an upper bound. AutoAttack was run on {len(hit)} of {len(records)} nets"
    if later:
        least, broken = min(one.n for one in later), sum(one.count("newly_broken") for one in later)
        text += (
            f" (at least {least} images each); a longer PGD and AutoAttack broke {broken} images that the records' "
            "own attacks had not, none with a class D or F32 certificate (table Attacked again)"
        )
    return [text + "."]


def _has_autoattack(record: Record) -> bool:
    return any(attack["name"].startswith("aa_") for attack in record.data["evaluation"]["attacks"])


def _times(pools: Sequence[Pool]) -> list[str]:
    devices = sorted({p.device for p in pools})
    threads = sorted({int(r.data["environment"]["threads"]) for p in pools for r in p.records})
    count = " or ".join(map(str, threads))
    return [
        f"Times are wall clock on {'; '.join(devices)}, {count} thread{'' if threads == [1] else 's'} each, with "
        "whatever else the machine did meanwhile: small differences are noise."
    ]
