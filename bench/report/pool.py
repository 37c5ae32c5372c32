"""One row of a table: every seed of one method and recipe in one setting, and the marks its numbers carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from ..record import Record
from . import columns, stats, styles
from .checked import Checked, suite_of
from .published import Cell as Published

PRESET_MARK = {"paper": "", "short": "sh", "hour": "h", "quick": "q"}
PRESET_MEANS = {
    "paper": "as published",
    "short": "published network, fewer epochs",
    "hour": "about an hour on a CPU",
    "quick": "minutes on a CPU",
}
LEVELS = ("cifar10", "tinyimagenet")  # radii of these are read in 1/255


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


def leaders(pools: Sequence[Pool], kind: str) -> list[Pool]:
    """Every row with the largest count: an exact tie has no single winner."""
    most = max((p.count(kind) for p in pools), default=Fraction(0))
    return [p for p in pools if p.count(kind) == most]


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
        return stats.spread([float(m.percent(kind)) for m in self.members])

    def of(self, seed: int) -> Checked:
        """The record of one seed."""
        return next(m for m in self.members if m.record.seed == seed)

    def on(self, machine: tuple[str, int]) -> Pool:
        """The seeds that ran on one of `machines`: only their times may be averaged."""
        return replace(self, members=tuple(m for m in self.members if m.record.machine == machine))

    @property
    def machines(self) -> list[tuple[str, int]]:
        """(device, threads) of every seed, sorted, once each."""
        return sorted({r.machine for r in self.records})

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
        return suite_of(self.members)

    @property
    def hardest(self) -> tuple[Checked, ...]:
        """The seeds attacked hardest: what lies between attacks and certificates is less known of the others."""
        most = max((m.met_autoattack, len(m.later)) for m in self.members)
        return tuple(m for m in self.members if (m.met_autoattack, len(m.later)) == most)

    @property
    def is_unevenly_attacked(self) -> bool:
        """Its seeds met different attacks, so that their robust accuracies differ by that too."""
        return len({suite_of([m]) for m in self.members}) > 1

    @property
    def is_weakly_attacked(self) -> bool:
        """Some seed met less than the standard attacks, or one that warned it may have been fooled."""
        return not all(m.is_standard for m in self.members)

    def mean(self, get: Callable[[Record], Any]) -> float | None:
        """Mean of a cost over the seeds that have it."""
        values = [v for v in map(get, self.records) if v is not None]
        return sum(values) / len(values) if values else None

    def cost(self, key: str) -> float | None:
        """Mean of a cost; None also where seeds ran on several machines and it is one of a machine."""
        if key not in ("params", "flops") and len(self.machines) > 1:
            return None
        return self.mean(lambda r: r.s_per_epoch if key == "s_per_epoch" else r.data["cost"].get(key))

    @property
    def is_compiled(self) -> bool:
        """Some part of it ran on kernels of our own that were compiled, for a CPU or a GPU."""
        kernels = self.first.data["environment"].get("kernels") or {}
        backends = [v.get("backend") if isinstance(v, dict) else v for v in kernels.values()]
        return any(backend in ("native", "triton") for backend in backends)

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
        if kind == "certified" and any(m.n_contradicted for m in self.members):
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
