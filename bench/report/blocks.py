"""Rows that may be compared, and how each stands among them: paired tests on the same images, Holm over the block.

A block is what trust.md allows to be ranked together: same data (checksum, split, images), eps, norm and preset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import stats
from .checked import KINDS
from .pool import Pool, Setting

CERTIFIES = 1  # percent certified from which a row competes for the best clean and robust accuracy


@dataclass(frozen=True)
class Standing:
    """Where a row stands in its block for one kind of accuracy."""

    best: bool = False  # separable from every other row: neither intervals nor paired flags leave a doubt
    tied: bool = False  # not separable from the best of the whole block, whatever its class


@dataclass(frozen=True)
class Block:
    """Rows that may be compared, best certified first, and how each stands."""

    setting: Setting
    preset: str
    pools: tuple[Pool, ...]

    @property
    def n(self) -> int:
        return self.pools[0].n

    @property
    def is_subset(self) -> bool:
        return any(r.is_subset for r in self.pools[0].records)

    @cached_property
    def standings(self) -> dict[tuple[int, str], Standing]:
        """(position of the row, kind) -> Standing."""
        found: dict[tuple[int, str], Standing] = {}
        # Clean accuracy without a certificate is another discipline: it would win every block.
        certifying = {at for at, p in enumerate(self.pools) if p.may_be_best and p.percent("certified") >= CERTIFIES}
        for kind in KINDS:
            rows = [at for at, p in enumerate(self.pools) if p.may_be_best and (kind != "certified" or p.cls)]
            if kind != "certified" and certifying:
                rows = [at for at in rows if at in certifying]
            if kind == "robust" and len({self.pools[at].suite for at in rows}) > 1:
                continue  # no column names the suite: a bold among the weakly attacked would look like a win over all
            _, tied = self._tied(kind, rows)
            found |= {(at, kind): Standing(tied=True) for at in tied}
            # Certificates of what runs (D, F32) and of the real-number network (R) never compete for one bold.
            for real in (False, True) if kind == "certified" else (None,):
                group = [at for at in rows if real in (None, self.pools[at].cls == "R")]
                best, close = self._tied(kind, group)
                if best is not None and not close and self._is_apart(kind, best, group):
                    found[best, kind] = Standing(best=True, tied=best in tied)
        return found

    def _tied(self, kind: str, group: Sequence[int]) -> tuple[int | None, list[int]]:
        """The best row of a group, None where it has no rival, and the rows that cannot be told from it."""
        if len(group) < 2:
            return None, []
        best = max(group, key=lambda at: (self.pools[at].count(kind), -at))
        others = [at for at in group if at != best]
        adjusted = stats.holm([paired_p(self.pools[best], self.pools[at], kind) for at in others])
        return best, [at for at, p in zip(others, adjusted, strict=True) if p >= 0.05]

    def _is_apart(self, kind: str, best: int, group: Sequence[int]) -> bool:
        lo, _ = self.pools[best].interval(kind)
        return all(self.pools[at].interval(kind)[1] < lo for at in group if at != best)


def paired_p(a: Pool, b: Pool, kind: str) -> float:
    """Exact McNemar p on the same images, the largest over the seeds that both rows have (lowest seeds if none).

    1.0, no difference can be claimed, where the images differ or some seed does not point the way the means do.
    """
    both = sorted({r.seed for r in a.records} & {r.seed for r in b.records})
    pairs = [(a.of(seed), b.of(seed)) for seed in both] or [(a.members[0], b.members[0])]
    direction = a.count(kind) - b.count(kind)
    largest = 0.0
    for one, two in pairs:
        if not np.array_equal(one.index, two.index):
            return 1.0
        only_one = int((one.flags[kind] & ~two.flags[kind]).sum())
        only_two = int((two.flags[kind] & ~one.flags[kind]).sum())
        if (only_one - only_two) * direction <= 0:
            return 1.0
        largest = max(largest, stats.mcnemar(only_one, only_two))
    return largest
