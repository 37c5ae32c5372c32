"""What `bench list` shows: methods, data sets, recipes and runs as flat objects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import DataSpec, Method, Recipe

COLUMNS = {
    "methods": ("name", "title", "norm", "paper", "recipes", "origin", "error"),
    "datasets": ("name", "title", "shape", "classes", "n_train", "n_val", "n_test", "here"),
    "recipes": ("method", "dataset", "eps", "preset", "epochs", "params", "flops", "source"),
    "runs": ("cell", "method", "dataset", "eps", "preset", "seed", "n", "clean", "robust", "certified",
             "certificate_class", "train_s", "overrides"),
}  # fmt: skip


def methods() -> list[dict[str, Any]]:
    """One row per method; a broken one carries its error."""
    from . import registry

    found = []
    for entry in registry.load_all():
        row: dict[str, Any] = {"name": entry.name, "title": None, "norm": None, "paper": None, "recipes": None}
        error = entry.error
        if entry.method is not None:
            try:
                count = len(registry.recipes(entry.method))
                row |= {"title": entry.method.title, "norm": entry.method.norm, "paper": entry.method.paper}
                row["recipes"] = count
            except registry.PluginError as problem:
                error = str(problem)
        found.append(row | {"origin": entry.origin, "error": error})
    return found


def datasets(data_root: Path | None = None) -> list[dict[str, Any]]:
    """One row per data set; `here` says whether it would be found without a download."""
    from .data.catalogue import entry, names

    found = []
    for name in names():
        data = entry(name)
        found.append(
            {
                "name": name,
                "title": data.title,
                "channels": data.channels,
                "height": data.height,
                "width": data.width,
                "shape": f"{data.channels}x{data.height}x{data.width}",
                "classes": data.classes,
                "n_train": data.n_train,
                "n_val": data.n_val,
                "n_test": data.n_test,
                "licence": data.licence,
                "here": is_here(name, data_root),
            }
        )
    return found


def is_here(name: str, data_root: Path | None = None) -> bool:
    """Whether a data set is embedded or lies in a folder that is searched; its files are not read."""
    from .data.catalogue import entry
    from .data.errors import DataError

    data = entry(name)
    if data.embedded:
        return True
    from .data.locate import find

    try:
        find(data, data_root, offline=True)
    except DataError:
        return False
    return True


def recipes(
    method_names: Sequence[str] = (), dataset_names: Sequence[str] = (), presets: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """One row per recipe, with the size of its network."""
    from . import registry
    from .data.catalogue import names as known_datasets
    from .data.loading import spec

    for name in method_names or [e.name for e in registry.load_all() if e.method is not None]:
        method = registry.get(name)
        for recipe in _recipes_of(method, quiet=not method_names):
            wanted = not dataset_names or recipe.dataset in dataset_names
            if not wanted or (presets and recipe.preset not in presets):
                continue
            data = spec(recipe.dataset) if recipe.dataset in known_datasets() else None
            params, flops = size(method, recipe, data) if data is not None else (None, None)
            yield {
                "method": name,
                "dataset": recipe.dataset,
                "eps": recipe.eps,
                "preset": recipe.preset,
                "epochs": recipe.epochs,
                "source": recipe.source,
                "params": params,
                "flops": flops,
            }


def _recipes_of(method: Method, *, quiet: bool) -> Iterable[Recipe]:
    """The recipes; of a method that was not asked for by name a broken list is an empty one."""
    from . import registry

    if not quiet:
        return registry.recipes(method)
    with contextlib.suppress(registry.PluginError):
        return registry.recipes(method)
    return []


def size(method: Method, recipe: Recipe, data: DataSpec) -> tuple[int | None, int | None]:
    """(parameters, operations per image) of a recipe's network, without the memory or time to fill it if possible."""
    import torch

    seen = data.cropped(recipe.crop)
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                net = method.build(seen, recipe)
                params = sum(p.numel() for p in net.parameters())
                return params, int(method.flops(net, seen))
        except (
            Exception
        ) as error:  # a net that cannot be built without data is built for real; a broken one has no size
            failure = error
    del failure
    return None, None


def runs(
    results: Path, method_names: Sequence[str] = (), dataset_names: Sequence[str] = (), presets: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per record of these methods, data sets and presets, and one line per record that cannot be read.

    Robust and certified as in the tables of reports: after later attacks on the whole split too.
    """
    from . import reattack, record
    from .report.checked import check

    found, problems = record.scan(results)
    rows = []
    for r in found:
        asked = r.method in (method_names or (r.method,)) and r.dataset in (dataset_names or (r.dataset,))
        if not asked or r.preset not in (presets or (r.preset,)):
            continue
        later, unusable = reattack.of_record(r)
        problems += unusable
        checked = check(r, later)
        if checked.broken:  # no table shows its numbers either
            problems.append(record.Problem(r.path, checked.broken))
            continue
        rows.append({**checked.row(), "cell": r.cell_id, "folder": r.path.name})
    return rows, [f"{p.path}: {p.reason}" for p in problems]


def broken_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """One red line per broken method."""
    return [f"{row['name']} ({row['origin']}): {row['error']}" for row in rows if row["error"]]
