"""A study file: a set of cells in TOML, so that a league is one reproducible command.

    title = "Quick recipes on MNIST"

    [[cells]]
    method = ["linf_dist_v2", "ibp"]
    dataset = "mnist"
    eps = ["0.1", "0.3"]
    preset = "quick"
    seed = [0, 1, 2]
    set = { batch_size = 256 }

Each `[[cells]]` entry is what one `bench run` line says with the options of these names; `method = "all"` stands for
every registered method that has such a recipe. Cells run in the order of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UsageError
from .recipe import PRESETS
from .report.toml import loads

ALL = "all"
SELECTORS = ("method", "dataset", "eps", "preset", "seed", "set")


@dataclass(frozen=True)
class Selection:
    """Selectors that are multiplied, as on a command line."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...] = ()
    eps: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    changes: Mapping[str, str] = field(default_factory=dict)
    open: bool = False  # `method = "all"`: a method without such a recipe is no gap worth a line


@dataclass(frozen=True)
class Study:
    """A title and its selections."""

    title: str
    selections: tuple[Selection, ...]


def read(path: Path) -> Study:
    """Read and check a study file.

    Raises:
        UsageError: it cannot be read, or an entry is not understood; one line naming file, entry and key.
    """
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--study {path}: {error.strerror or error}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"--study {path}: {error}") from None
    unknown = set(content) - {"title", "cells"}
    if unknown:
        raise UsageError(f"--study {path}: unknown key {sorted(unknown)[0]!r}; a study has title and [[cells]]")
    title, entries = content.get("title", path.stem), content.get("cells")
    if not isinstance(title, str):
        raise UsageError(f"--study {path}: title must be a text")
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise UsageError(f"--study {path}: it has no [[cells]] entries")
    return Study(title, tuple(_selection(f"--study {path}, cells entry {k}", e) for k, e in enumerate(entries, 1)))


def _selection(where: str, entry: Mapping[str, Any]) -> Selection:
    unknown = [key for key in entry if key not in SELECTORS]
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; choose from {', '.join(SELECTORS)}")
    methods = _texts(where, entry, "method")
    if not methods:
        raise UsageError(f'{where}: method is missing (a name, a list of names, or "{ALL}")')
    presets = _texts(where, entry, "preset")
    for preset in presets:
        if preset not in PRESETS:
            raise UsageError(f"{where}: preset {preset!r}; choose from {', '.join(PRESETS)}")
    seeds = _list(entry.get("seed", 0))
    if not seeds or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds):
        raise UsageError(f"{where}: seed must be a whole number from 0 on, or a list of them")
    changes = entry.get("set", {})
    if not isinstance(changes, dict):
        raise UsageError(f"{where}: set must be a table, as in set = {{ lr = 0.01 }}")
    every = methods == (ALL,)
    if every:
        from . import registry

        methods = tuple(registry.names())
    return Selection(
        methods,
        _texts(where, entry, "dataset"),
        _texts(where, entry, "eps"),
        presets,
        tuple(seeds),
        {name: _as_option(where, name, value) for name, value in changes.items()},
        every,
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _texts(where: str, entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _list(entry[key]) if key in entry else []
    if not all(isinstance(value, str) for value in values):
        raise UsageError(f'{where}: {key} must be a text or a list of texts, as in {key} = "0.1"')
    return tuple(values)


def _as_option(where: str, name: str, value: Any) -> str:
    """As the user would have written it after `--set NAME=`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(_as_option(where, name, v) for v in value)
    if isinstance(value, (str, int, float)):
        return str(value)
    raise UsageError(f"{where}: set.{name} must be a number, a text, true, false or a list of them")
