"""From records to what tables and figures share: records checked and pooled over seeds, rows gathered into blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from .. import certification, reattack
from ..certification import Certification
from ..reattack import Reattack
from ..recipe import PRESETS
from ..record import Record
from . import fmt, styles
from .blocks import Block
from .checked import Checked, check
from .pool import Pool, Setting
from .published import Cell as Published
from .published import headline

LOOK_TWICE = 3  # points above the published number that deserve a second look


@dataclass
class Inputs:
    """Everything a report is made of."""

    pools: list[Pool] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    certifications: list[tuple[Record, Certification]] = field(default_factory=list)  # added after the fact,
    reattacks: list[tuple[Record, Reattack]] = field(default_factory=list)  # as these were
    problems: list[str] = field(default_factory=list)  # broken guards, unreadable records: exit code 1
    notices: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return [r for pool in self.pools for r in pool.records]

    @cached_property
    def blocks(self) -> list[Block]:
        """By setting, then preset, whole test splits before subsets, then data."""
        groups: dict[Any, list[Pool]] = {}
        for pool in self.pools:
            r = pool.first
            setting = Setting.of(r.dataset, r.norm, r.eps.fraction)
            data = (r.data["data"]["checksum"], r.data["data"]["test_index_sha256"], r.n)
            groups.setdefault((setting, PRESETS.index(r.preset), r.is_subset, -r.n, data), []).append(pool)
        return [Block(key[0], PRESETS[key[1]], tuple(sorted(groups[key], key=_rank))) for key in sorted(groups)]

    def blocks_of(self, setting: Setting) -> list[Block]:
        return [b for b in self.blocks if b.setting == setting]

    @cached_property
    def published_of(self) -> dict[Setting, dict[str, list[Published]]]:
        """Setting -> method -> published accuracy cells."""
        found: dict[Setting, dict[str, list[Published]]] = {}
        for cell in self.published:
            if cell.has_accuracy:
                setting = Setting.of(cell.dataset, cell.norm, cell.eps_fraction)
                found.setdefault(setting, {}).setdefault(cell.method, []).append(cell)
        return found

    def settings(self) -> list[Setting]:
        """Every setting with a record, or published by two methods for a data set of the suite."""
        own = {b.setting for b in self.blocks}
        theirs = {
            s
            for s, found in self.published_of.items()
            if s.dataset in styles.DATASETS and not s.norm and len(found) > 1
        }
        return sorted(own | theirs)

    def headline_of(self, setting: Setting, method: str) -> Published | None:
        """The published cell printed beside a method."""
        return headline(self.published_of.get(setting, {}).get(method, []), styles.own_paper(method))


def _rank(pool: Pool) -> tuple[Any, ...]:
    return -pool.count("certified"), -pool.count("correct"), pool.method, pool.overrides, pool.first.id


def gather(records: Iterable[Record], published: Sequence[Published]) -> Inputs:
    """Check every record, leave out validation runs, pool seeds."""
    inputs = Inputs(published=list(published))
    groups: dict[Any, dict[int, Checked]] = {}
    later: dict[str, list[Reattack]] = {}
    left_out = 0
    for one in sorted(records, key=lambda r: (r.data["finished"], r.id)):
        if one.split != "test":
            left_out += 1
            continue
        attacked, unusable = reattack.of_record(one)
        checked = check(one, attacked)
        inputs.problems += [f"{p.path.parent.name}: {p.path.name}: {p.reason}" for p in unusable]
        later[one.id] = attacked
        if checked.broken:
            inputs.problems.append(checked.broken)
        r = one
        key = (
            r.method, r.dataset, r.norm, r.eps.fraction, r.preset, str(r.data["cell"]["overrides"]),
            r.data["recipe"]["hash"], r.data["data"]["checksum"], r.data["data"]["test_index_sha256"], r.n,
            checked.broken is not None, one.certificate_class,
        )  # fmt: skip
        seeds = groups.setdefault(key, {})
        if one.seed in seeds:
            older = seeds[one.seed].record
            inputs.notices.append(
                f"{older.short} and {one.short} are one cell and seed; tables use the newer, {one.short}"
            )
        seeds[one.seed] = checked
    if left_out:
        inputs.notices.append(f"{fmt.many(left_out, 'validation-split record')} left out of every table")
    for key in sorted(groups, key=str):
        inputs.pools.append(Pool(tuple(groups[key][seed] for seed in sorted(groups[key]))))
    inputs.pools = [_with_published(inputs, pool) for pool in inputs.pools]
    for one in inputs.records:
        certified, unusable = certification.of_record(one)
        inputs.problems += [p for found in certified if (p := _refuted(one, found, later[one.id]))]
        inputs.certifications += [(one, found) for found in certified]
        inputs.reattacks += [(one, found) for found in later[one.id]]
        inputs.problems += [f"{p.path.parent.name}: {p.path.name}: {p.reason}" for p in unusable]
    return inputs


def _refuted(one: Record, found: Certification, attacks: Sequence[Reattack]) -> str | None:
    """A later attack broke what a rounding-proof certificate added after the fact covers: one of the two is wrong."""
    certified = found.index[found.outcome == certification.OUTCOMES.index("certified")]
    if found.data["certified_with"]["cls"] not in ("D", "F32") or not attacks:
        return None
    broken = np.intersect1d(certified, reattack.newly_broken(one, attacks))
    if not len(broken):
        return None
    return f"{one.path.name}: {found.path.name}: {len(broken)} certified examples were broken by later attacks"


def _with_published(inputs: Inputs, pool: Pool) -> Pool:
    """Join the published number of the same setting, and look twice where ours is much better."""
    r = pool.first
    cell = inputs.headline_of(Setting.of(r.dataset, r.norm, r.eps.fraction), r.method)
    if cell and cell.certified is not None and not pool.broken and not r.is_subset:
        excess = pool.percent("certified") - Fraction(cell.certified)
        if excess > LOOK_TWICE:
            inputs.notices.append(
                f"look twice: {r.short} ({r.method} {r.dataset} {r.eps} {r.preset}) certifies "
                f"{float(excess):.1f} points more than {cell.source.citekey} published"
            )
    return Pool(pool.members, cell)


def lead(inputs: Inputs, setting: Setting) -> Block | None:
    """The block that speaks for a setting: most rows, then the preset nearest to the paper, whole before subset."""
    blocks = inputs.blocks_of(setting)
    return min(blocks, key=lambda b: (-len(b.pools), b.is_subset, PRESETS.index(b.preset)), default=None)
