"""What a method must leave as it found it: global generators, torch's switches, the process, others' functions."""

from __future__ import annotations

import builtins
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import contract, threat
from ..exact import flush_to_zero

# imports of third parties set these as a matter of course (scikit-learn the environment, torch warning filters)
_MAY_CHANGE_ON_IMPORT = {"os.environ", "warnings.filters", "sys.path"}
_WATCHED = (torch, torch.nn.functional, torch.Tensor, nn.Module, nn.Linear, torch.optim.Adam, np, builtins)
_OURS = (contract, threat)


def _values() -> dict[str, Callable[[], Any]]:
    """Name -> how to read it, as something that compares by value."""
    return {
        "torch's global generator": lambda: bytes(torch.get_rng_state().numpy()),
        "Python's global generator": random.getstate,
        "numpy's global generator": lambda: repr(np.random.get_state(legacy=False)),
        "the default dtype": torch.get_default_dtype,
        "the default device": lambda: str(torch.get_default_device()),
        "the number of threads": torch.get_num_threads,
        "grad mode": torch.is_grad_enabled,
        "inference mode": torch.is_inference_mode_enabled,
        "CPU autocast": lambda: torch.is_autocast_enabled("cpu"),
        "matmul precision": torch.get_float32_matmul_precision,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
        "cudnn's switches": lambda: (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ),
        "flushing of denormals": flush_to_zero,
        "numpy's error mode": np.geterr,
        "the working directory": os.getcwd,
        "os.environ": lambda: dict(os.environ),
        "the locale": lambda: locale.setlocale(locale.LC_ALL),
        "signal handlers": lambda: [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "sys.path": lambda: list(sys.path),
        "sys.stdout or stderr": lambda: (id(sys.stdout), id(sys.stderr)),
        "the recursion limit": sys.getrecursionlimit,
        "warnings.filters": lambda: list(warnings.filters),
    }


@dataclass(frozen=True)
class Surroundings:
    """A snapshot; `changes()` compares the present with it."""

    values: dict[str, Any]
    functions: dict[str, int]

    @classmethod
    def now(cls) -> Surroundings:
        return cls({name: read() for name, read in _values().items()}, _functions())

    def changes(self, *, of_import: bool = False) -> list[str]:
        """Names of what differs by now; `of_import` overlooks what imports may change."""
        later = Surroundings.now()
        changed = [name for name, value in later.values.items() if value != self.values[name]]
        if of_import:
            changed = [name for name in changed if name not in _MAY_CHANGE_ON_IMPORT]
        return changed + [name for name, now in later.functions.items() if self.functions.get(name, now) != now]


def _functions() -> dict[str, int]:
    """`torch.relu` -> identity, for every function and class of the watched modules and classes."""
    found = {}
    for owner in (*_WATCHED, *_OURS):
        label = owner.__name__ if not isinstance(owner, type) else f"{owner.__module__}.{owner.__qualname__}"
        for name, value in vars(owner).items():
            if callable(value):
                found[f"{label}.{name}"] = id(value)
    return found


def net_changes(net: nn.Module) -> Callable[[], list[str]]:
    """A function that names what has changed in the net since now: tensors, modes, gradients, hooks, attributes."""
    before = _net_state(net)
    kept = {name: tensor.detach().clone() for name, tensor in _tensors(net)}

    def changes() -> list[str]:
        after = _net_state(net)
        changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
        now = dict(_tensors(net))
        changed += [name for name in kept if name not in now or not same_bits(now[name], kept[name])]
        return changed + [name for name in now if name not in kept]

    return changes


def _tensors(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal as bytes: NaN equals NaN, and -0 differs from +0."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat


def _net_state(net: nn.Module) -> dict[str, Any]:
    """Everything about the modules that compares by value."""
    state: dict[str, Any] = {}
    for name, parameter in net.named_parameters():
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"grad of {name}"] = parameter.grad if parameter.grad is None else parameter.grad._version
    for name, module in net.named_modules():
        where = name or "the net"
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"hooks of {where}"] = [len(h) for h in hooks]
        for key, value in vars(module).items():
            if isinstance(value, (int, float, str, bool, tuple, type(None))) and not key.startswith("__"):
                state[f"{key} of {where}"] = repr(value)
    return state
