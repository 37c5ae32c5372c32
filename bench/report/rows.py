"""What tables and figures share: records pooled over seeds into rows, rows that may be compared into blocks.

A block is what trust.md allows to be ranked together: same data (checksum, split, images), eps, norm and preset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from .. import certification, reattack, record
from ..certification import Certification
from ..reattack import Reattack
from ..recipe import PRESETS
from ..record import Record
from . import columns, stats, styles
from .checked import KINDS, Checked, check
from .published import Cell as Published
from .published import headline

PRESET_MARK = {"paper": "", "short": "sh", "hour": "h", "quick": "q"}
PRESET_MEANS = {
    "paper": "as published",
    "short": "published network, fewer epochs",
    "hour": "up to an hour on two CPU cores",
    "quick": "minutes on two CPU cores",
}
LEVELS = ("cifar10", "tinyimagenet")  # radii of these are read in 1/255
STANDARD_STEPS, STANDARD_RESTARTS = 40, 2  # of the PGD every record is meant to carry
LOOK_TWICE = 3  # points above the published number that deserve a second look


@dataclass(frozen=True, order=True)
class Setting:
    """One question: a data set, a norm, an exact radius."""

    dataset_at: tuple[int, str]
    norm: str
    eps: Fraction

    @classmethod
    def of(cls, dataset: str, norm: str, eps: Fraction) -> Setting:
        return cls(styles.dataset_order(dataset), "" if norm == "linf" else norm, eps)

    @property
    def dataset(self) -> str:
        return self.dataset_at[1]

    @property
    def eps_text(self) -> str:
        """`0.3`, `8/255`: a short decimal where there is one, else a multiple of 1/255, else the fraction."""
        scaled = self.eps * 10_000
        if scaled.denominator == 1:
            return f"{int(scaled) / 10_000:.4f}".rstrip("0").rstrip(".") if scaled else "0"
        levels = self.eps * 255
        return f"{levels}/255" if levels.denominator == 1 else f"{self.eps.numerator}/{self.eps.denominator}"

    @property
    def slug(self) -> str:
        """`cifar10_8_255`, for file names and anchors."""
        return f"{self.dataset}_{self.eps_text.replace('/', '_')}" + (f"_{self.norm}" if self.norm else "")

    @property
    def title(self) -> str:
        """`CIFAR-10, eps = 8/255`."""
        norm = f" ({self.norm})" if self.norm else ""
        return f"{styles.dataset_title(self.dataset)}, eps = {self.eps_text}{norm}"


@dataclass(frozen=True)
class Pool:
    """One row of a table: every seed of one method, recipe, data set, eps and preset."""

    members: tuple[Checked, ...]  # by seed
    published: Published | None = None

    @property
    def first(self) -> Record:
        """The record of the lowest seed: curves, pairing and provenance speak of it."""
        return self.members[0].record

    @property
    def records(self) -> list[Record]:
        return [m.record for m in self.members]

    @property
    def broken(self) -> str | None:
        return next((m.broken for m in self.members if m.broken), None)

    @property
    def k(self) -> int:
        return len(self.members)

    @property
    def n(self) -> int:
        return self.first.n

    def count(self, kind: str) -> Fraction:
        """Mean over seeds of the number of `correct`, `robust` or `certified` examples."""
        return Fraction(sum(m.count(kind) for m in self.members), self.k)

    def percent(self, kind: str) -> Fraction:
        return 100 * self.count(kind) / self.n

    def interval(self, kind: str) -> tuple[float, float]:
        return stats.wilson(float(self.count(kind)), self.n)

    def over_seeds(self, kind: str) -> stats.Spread:
        return stats.spread([100.0 * m.count(kind) / m.record.n for m in self.members])

    @cached_property
    def flags(self) -> dict[str, np.ndarray]:
        return self.members[0].flags

    @cached_property
    def index(self) -> np.ndarray:
        """Which official image each example is; empty if the arrays cannot be read."""
        try:
            return self.first.arrays("index")["index"]
        except record.RecordError:
            return np.empty(0, np.int32)

    @property
    def method(self) -> str:
        return self.first.method

    @property
    def overrides(self) -> str:
        """`lr=0.01, epochs=5`, empty for an unchanged recipe."""
        changed = self.first.data["cell"]["overrides"]
        return ", ".join(f"{k}={changed[k]}" for k in sorted(changed))

    @property
    def title(self) -> str:
        return self.first.title + (f" ({self.overrides})" if self.overrides else "")

    @property
    def cls(self) -> str | None:
        return self.first.certificate_class

    @property
    def certifier(self) -> str:
        name = self.first.headline["name"]
        return f"{name}" if name else "none"

    @cached_property
    def suite(self) -> str:
        """`pgd 40x2 + pgd_p30 20x1`: name, steps x restarts; `+ later autoattack` after attacks on the whole split."""
        parts = []
        for attack in self.first.data["evaluation"]["attacks"]:
            size = "\u00d7".join(str(attack[k]) for k in ("steps", "restarts") if attack.get(k) is not None)
            parts.append(f"{attack['name']} {size}".strip())
        parts += [f"later {later.suite}" for later in self.members[0].later]
        return " + ".join(parts) or "no attack"

    @property
    def is_weakly_attacked(self) -> bool:
        attacks = [a for r in self.records for a in r.data["evaluation"]["attacks"]]
        attacks += [a for m in self.members for later in m.later for a in later.data["attacks"]]
        return not any(
            (a.get("steps") or 0) >= STANDARD_STEPS and (a.get("restarts") or 0) >= STANDARD_RESTARTS for a in attacks
        )

    def mean(self, get: Callable[[Record], Any]) -> float | None:
        """Mean of a cost over the seeds that have it."""
        values = [v for v in map(get, self.records) if v is not None]
        return sum(values) / len(values) if values else None

    def cost(self, key: str) -> float | None:
        return self.mean(lambda r: r.data["cost"].get(key))

    @property
    def train_s(self) -> float:
        return float(self.mean(lambda r: r.train_s) or 0.0)

    @property
    def device(self) -> str:
        names = sorted({r.device for r in self.records})
        return names[0] if len(names) == 1 else f"{len(names)} devices"

    def total(self, key: str) -> int:
        return sum(int(r.data["evaluation"].get(key, 0)) for r in self.records)

    def marks(self, kind: str = "") -> tuple[str, ...]:
        """The signs a number of this row carries; `kind` adds those of one column."""
        found = []
        if PRESET_MARK[self.first.preset]:
            found.append(PRESET_MARK[self.first.preset])
        if any(r.is_subset for r in self.records):
            found.append("s")
        if any(r.is_modified for r in self.records):
            found.append("m")
        if kind == "robust" and self.is_weakly_attacked:
            found.append("w")
        if kind == "robust" and any(m.later for m in self.members):
            found.append("a")
        if kind == "certified" and self.total("n_contradicted"):
            found.append("c")
        if kind == "certified" and self.cls == "R" and self.total("n_borderline"):
            found.append("b")
        if any(r.is_dirty for r in self.records):
            found.append("+")
        return tuple(found)

    @cached_property
    def csv_rows(self) -> list[dict[str, Any]]:
        """A row per record, for every csv that shows this pool."""
        return [columns.record_row(self, m) for m in self.members]

    @property
    def may_be_best(self) -> bool:
        """Never bold: subsets, dirty trees, changed recipes, broken guards."""
        return not (self.broken or any(r.is_subset or r.is_dirty or r.is_modified for r in self.records))


@dataclass(frozen=True)
class Standing:
    """Where a row stands in its block for one kind of accuracy."""

    best: bool = False  # separable from every other row: neither intervals nor paired flags leave a doubt
    tied: bool = False  # not separable from the best


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
        for kind in KINDS:
            groups: dict[Any, list[int]] = {}
            for at, pool in enumerate(self.pools):
                if pool.may_be_best:
                    # class D and R, or two attack suites, never compete for one bold
                    rival = {"certified": pool.cls, "robust": pool.suite}.get(kind)
                    groups.setdefault(rival, []).append(at)
            if kind == "robust" and len(groups) > 1:
                continue  # no column names the suite: a bold among the weakly attacked would look like a win over all
            for group in groups.values():
                found.update(self._stand(kind, group))
        return found

    def _stand(self, kind: str, group: list[int]) -> dict[tuple[int, str], Standing]:
        if len(group) < 2:
            return {}
        best = max(group, key=lambda at: (self.pools[at].count(kind), -at))
        others = [at for at in group if at != best]
        adjusted = stats.holm([paired_p(self.pools[best], self.pools[at], kind) for at in others])
        tied = [at for at, p in zip(others, adjusted, strict=True) if p >= 0.05]
        lo, _ = self.pools[best].interval(kind)
        apart = all(self.pools[at].interval(kind)[1] < lo for at in others)
        found = {(at, kind): Standing(tied=True) for at in tied}
        if not tied and apart:
            found[best, kind] = Standing(best=True)
        return found


def paired_p(a: Pool, b: Pool, kind: str) -> float:
    """Exact McNemar p on the same images; 1.0 (no difference can be claimed) where the images differ."""
    one, two = a.flags, b.flags
    if not np.array_equal(a.index, b.index):
        return 1.0
    only_a = int((one[kind] & ~two[kind]).sum())
    only_b = int((two[kind] & ~one[kind]).sum())
    return stats.mcnemar(only_a, only_b)


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
            checked.broken is not None,
        )  # fmt: skip
        seeds = groups.setdefault(key, {})
        if one.seed in seeds:
            older = seeds[one.seed].record
            inputs.notices.append(
                f"{older.short} and {one.short} are one cell and seed; tables use the newer, {one.short}"
            )
        seeds[one.seed] = checked
    if left_out:
        inputs.notices.append(
            f"{left_out} validation-split record{'s' if left_out > 1 else ''} left out of every table"
        )
    for key in sorted(groups, key=str):
        inputs.pools.append(Pool(tuple(groups[key][seed] for seed in sorted(groups[key]))))
    inputs.pools = [_with_published(inputs, pool) for pool in inputs.pools]
    for one in inputs.records:
        certified, unusable = certification.of_record(one)
        inputs.certifications += [(one, found) for found in certified]
        inputs.reattacks += [(one, found) for found in later[one.id]]
        inputs.problems += [f"{p.path.parent.name}: {p.path.name}: {p.reason}" for p in unusable]
    return inputs


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
