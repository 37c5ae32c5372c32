"""An optimiser's state as named tensors and JSON, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import BenchError


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors `optimizer/<parameter>/<key>` and the JSON rest of `state_dict`.

    Raises:
        BenchError: the optimiser keeps something that is neither a tensor nor a number.
    """
    full = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in full["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                numbers.setdefault(str(index), {})[key] = value
            else:
                raise BenchError(
                    f"{type(optimizer).__name__} keeps {key} as {type(value).__name__}, which a state cannot hold; "
                    "use an optimiser whose state is tensors and numbers, or override Method.fit"
                )
    groups = [
        {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items() if _is_plain(v)}
        for group in full["param_groups"]
    ]
    return tensors, {"numbers": numbers, "groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Undo `pack_optimizer` on a fresh optimiser of the same kind."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    for index, entries in meta["numbers"].items():
        state.setdefault(int(index), {}).update(entries)
    groups = []
    for fresh, saved in zip(optimizer.state_dict()["param_groups"], meta["groups"], strict=True):
        for key, value in saved.items():
            now = fresh.get(key)
            if isinstance(now, Tensor):
                fresh[key] = now.clone().fill_(value)
            else:
                fresh[key] = tuple(value) if isinstance(now, tuple) else value
        groups.append(fresh)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str)) or (isinstance(value, Tensor) and not value.ndim)
