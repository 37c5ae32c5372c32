"""Cells: what one run executes. Selectors are multiplied into cells; a combination without a recipe stays a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .eps import Eps
from .recipe import PRESETS, as_dict, content_hash, override

if TYPE_CHECKING:
    from .contract import Recipe

DEFAULT_DATASET = "digits"  # embedded: nothing to download
DEFAULT_EPS = {
    "digits": "0.1",
    "mnist": "0.3",
    "fashion_mnist": "0.1",
    "cifar10": "8/255",
    "tinyimagenet": "1/255",
    "synthetic": "0.1",
}
FALLBACK_EPS = "8/255"  # data sets of plugins
BIG_DATASETS = ("cifar10", "tinyimagenet")  # without --preset these mean the paper's recipe on every machine
SPLITS = ("test", "val")


@dataclass(frozen=True)
class Cell:
    """One run's identity; `id` is a hash of exactly these fields.

    overrides: (field, JSON value) of the recipe fields that `--set` changed, sorted by name; a value equal to the
    recipe's own is no override. recipe_hash: content hash of the recipe after the overrides.
    """

    method: str
    dataset: str
    eps: str
    preset: str
    seed: int
    overrides: tuple[tuple[str, Any], ...]
    split: str
    recipe_hash: str

    @property
    def id(self) -> str:
        """12 hex digits of a sha256 over the canonical JSON of the fields."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """`linf_dist digits 0.1 quick s0`: how lines of output call the cell."""
        changed = "".join(f" {k}={_short(v)}" for k, v in self.overrides)
        mark = " (val)" if self.split == "val" else ""
        return f"{self.method} {self.dataset} {self.eps} {self.preset} s{self.seed}{changed}{mark}"

    @property
    def folder(self) -> str:
        """Name of the run's folder, unique per cell."""
        eps = self.eps.replace("/", "_")
        return f"{self.method}-{self.dataset}-{eps}-{self.preset}-s{self.seed}-{self.id}"

    def identity(self) -> dict[str, Any]:
        """The fields that the id hashes, as JSON."""
        return {
            "method": self.method,
            "dataset": self.dataset,
            "eps": self.eps,
            "preset": self.preset,
            "seed": self.seed,
            "overrides": {k: v for k, v in self.overrides},
            "split": self.split,
            "recipe": self.recipe_hash,
        }

    def as_record(self) -> dict[str, Any]:
        """The record's "cell" entry: the fields and the id."""
        fields = self.identity()
        del fields["recipe"]
        return {**fields, "id": self.id}


@dataclass(frozen=True)
class Missing:
    """A combination of selectors that has no recipe, and why."""

    method: str
    dataset: str
    eps: str
    preset: str
    reason: str

    @property
    def label(self) -> str:
        """As `Cell.label`, without a seed."""
        return " ".join(part for part in (self.method, self.dataset, self.eps, self.preset) if part)


@dataclass(frozen=True)
class Planned:
    """A cell and its recipe, overrides applied."""

    cell: Cell
    recipe: Recipe
    base: Recipe  # as the method ships it

    @property
    def modified(self) -> bool:
        """Whether --set changed the recipe."""
        return bool(self.cell.overrides)


def resolve(method: str, base: Recipe, *, seed: int, changes: Mapping[str, str], split: str = "test") -> Planned:
    """The cell of one recipe.

    Raises:
        ValueError: an override that the recipe refuses, a negative seed, an unknown split.
    """
    if seed < 0:
        raise ValueError(f"--seed {seed}: a seed is a whole number from 0 on")
    if split not in SPLITS:
        raise ValueError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    recipe = override(base, changes)
    before, after = as_dict(base), as_dict(recipe)
    changed = tuple(sorted((k, _frozen(after[k])) for k in changes if after[k] != before[k]))
    cell = Cell(method, base.dataset, base.eps, base.preset, seed, changed, split, content_hash(recipe))
    return Planned(cell, recipe, base)


def reopen(fields: Mapping[str, Any]) -> Planned:
    """The cell that a record's (or a worker's) "cell" entry names, with its recipe as the method has it today.

    Raises:
        UsageError, PluginError, ValueError: the method, the recipe or an overridden field is gone.
    """
    from . import registry

    base = registry.recipe(fields["method"], fields["dataset"], fields["eps"], fields["preset"])
    changes: dict[str, Any] = {k: _frozen(v) for k, v in fields["overrides"].items()}
    unknown = [name for name in changes if not hasattr(base, name)]
    if unknown:
        raise ValueError(f"recipe {fields['method']}/{fields['dataset']}: it has no field {unknown[0]} any more")
    recipe = dataclasses.replace(base, **changes)
    changed = tuple(sorted(changes.items()))
    cell = Cell(
        fields["method"],
        base.dataset,
        base.eps,
        base.preset,
        fields["seed"],
        changed,
        fields["split"],
        content_hash(recipe),
    )
    return Planned(cell, recipe, base)


def default_preset(dataset: str, device_type: str) -> str:
    """The preset meant when none is given: the paper's on a GPU and for big data sets, else `quick`."""
    return "paper" if device_type == "cuda" or dataset in BIG_DATASETS else "quick"


def plan(
    methods: Sequence[str],
    datasets: Sequence[str],
    *,
    eps: Sequence[str] = (),
    presets: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    changes: Mapping[str, str] | None = None,
    split: str = "test",
    device_type: str = "cpu",
) -> tuple[list[Planned], list[Missing]]:
    """Every combination of the selectors, as cells; those without a recipe as reasons. Duplicates are dropped.

    Raises:
        ValueError: an eps that is no radius, an override that some recipe refuses.
        UsageError: an unknown method.
        PluginError: a method that cannot be loaded.
    """
    from . import registry

    planned: dict[str, Planned] = {}
    missing: list[Missing] = []
    for method in dict.fromkeys(methods):
        recipes = registry.recipes(registry.get(method))
        for dataset in dict.fromkeys(datasets or [DEFAULT_DATASET]):
            of_dataset = [r for r in recipes if r.dataset == dataset]
            if not of_dataset:
                has = ", ".join(dict.fromkeys(r.dataset for r in recipes)) or "none"
                missing.append(Missing(method, dataset, "", "", f"no recipe for this data set (it has: {has})"))
                continue
            for radius in dict.fromkeys(map(str, eps or [DEFAULT_EPS.get(dataset, of_dataset[0].eps)])):
                of_eps = [r for r in of_dataset if Eps(r.eps) == Eps(radius)]
                if not of_eps:
                    has = ", ".join(dict.fromkeys(r.eps for r in of_dataset))
                    missing.append(Missing(method, dataset, radius, "", f"no recipe for this eps (it has: {has})"))
                    continue
                for preset in dict.fromkeys(presets or [_implied(of_eps, dataset, device_type)]):
                    found = [r for r in of_eps if r.preset == preset]
                    if not found:
                        has = ", ".join(dict.fromkeys(r.preset for r in of_eps))
                        reason = f"no recipe for this preset (it has: {has})"
                        missing.append(Missing(method, dataset, radius, preset, reason))
                        continue
                    for seed in dict.fromkeys(seeds):
                        one = resolve(method, found[0], seed=seed, changes=changes or {}, split=split)
                        planned.setdefault(one.cell.id, one)
    return list(planned.values()), missing


def _implied(recipes: Sequence[Recipe], dataset: str, device_type: str) -> str:
    """The default preset, or the nearest one that exists: cheaper ones first."""
    have = {r.preset for r in recipes}
    wanted = default_preset(dataset, device_type)
    start = PRESETS.index(wanted)
    return next(p for p in PRESETS[start:] + PRESETS[:start][::-1] if p in have)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    return ",".join(map(_short, value)) if isinstance(value, tuple) else str(value)
