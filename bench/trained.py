"""A finished training: its weights in the run's folder, and the net made of them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import registry
from .cell import reopen
from .contract import DataSpec, Method
from .data import spec as data_spec
from .errors import BenchError
from .record import Record
from .state import StateError, load_net, load_tensors, weights_sha256

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Trained:
    """A finished training: what is needed to ask the net anything."""

    method: Method
    recipe: Any
    net: nn.Module
    spec: DataSpec  # as the network sees the data
    summary: dict[str, Any]
    environment: dict[str, Any]


def restore(
    folder: Path,
    method: Method,
    recipe: Any,
    spec: DataSpec,
    device: torch.device,
    *,
    check: Callable[[Path, dict[str, Any]], None] | None = None,
) -> Trained:
    """The trained net of a run's folder, in eval mode.

    Args:
        spec: as the network sees the data (cropped where the recipe crops).
        check: called with (path, meta) before the weights are used; raises if they belong to another run.

    Raises:
        StateError: no weights there, damaged, or of another network.
    """
    path = folder / WEIGHTS
    if not path.exists():
        raise StateError(
            f"{folder} holds no trained weights; name its folder with --runs-dir, or train it again with --results DIR"
        )
    try:
        state = load_tensors(path)
    except StateError as error:
        raise StateError(f"{error}; `bench run ... --fresh` trains it again") from error
    if check is not None:
        check(path, state.meta)
    net = method.build(spec, recipe).to(device)
    load_net(net, state.tensors, str(path))
    net.eval()
    return Trained(method, recipe, net, spec, state.meta["training"], state.meta["environment"])


def of_record(record: Record, runs_dir: Path, device: torch.device) -> Trained:
    """The trained net that a record speaks about, from its run's folder, checked to be the very one.

    Raises:
        StateError: the folder is gone or holds other weights.
        BenchError: the method's recipe is no longer what the record was made with.
    """
    try:
        planned = reopen(record.data["cell"])
    except ValueError as error:  # a field is gone, or takes other values now
        raise BenchError(f"record {record.short}: {error}; {_mend(record)}") from None
    recipe = planned.recipe
    if planned.cell.recipe_hash != record.data["recipe"]["hash"]:
        raise BenchError(f"record {record.short}: the recipe of {record.method} has changed since; {_mend(record)}")
    spec = data_spec(record.dataset).cropped(recipe.crop)
    classes = (record.data["data"]["subset"] or {}).get("classes", spec.classes)
    spec = dataclasses.replace(spec, classes=classes)
    trained = restore(runs_dir / record.path.name, registry.get(record.method), recipe, spec, device)
    if weights_sha256(trained.net) != record.data["weights_sha256"]:
        raise StateError(f"the weights in {runs_dir / record.path.name} are not those of record {record.short}")
    return trained


def _mend(record: Record) -> str:
    commit = [record.data["code"], *record.trained_by][-1]["commit"] or "the version it was made with"
    return f"check out {commit[:12]}, or repeat the run"
