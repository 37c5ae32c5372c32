"""What one optimiser step of the training loop needs: its `Step`, its seeds, its lr, sums of scalars, a thread."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .contract import Method, Step
from .eps import Eps
from .seeding import seed_of

T = TypeVar("T")


def in_training_thread(device: torch.device, work: Callable[[], T]) -> T:
    """Call `work` in a thread of its own, which has worker threads of its own, where subnormals are flushed to zero."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        torch.set_flush_denormal(True)  # before this thread's first parallel operation: its workers inherit it
        if device.type == "cuda":
            torch.cuda.set_device(device)  # also a property of threads
        try:
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="train", daemon=True)  # an interrupted wait ends the process
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)  # in slices, so that signal handlers run in this, the main, thread
    if errors:
        raise errors[0]
    return outcome[0]


def make_step(recipe: Any, method: Method, *, iteration: int, per_epoch: int, eps: Eps, generator: Any) -> Step:
    """The `Step` of one iteration."""
    return Step(
        epoch=iteration // per_epoch,
        epochs=recipe.epochs,
        iteration=iteration,
        iterations=recipe.epochs * per_epoch,
        iterations_per_epoch=per_epoch,
        eps=eps,
        eps_now=float(method.eps_schedule(recipe, iteration / per_epoch)),
        recipe=recipe,
        generator=generator,
    )


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's lr becomes its initial one times `factor`."""
    for group in optimizer.param_groups:
        value = group.setdefault("initial_lr", group["lr"]) * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def seed_everything(*parts: int | str) -> None:
    """Seed every global generator a method might draw from.

    Not by torch.manual_seed: before CUDA is used, that formats three stack traces per call, 1 ms of every step.
    """
    value = seed_of(*parts)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
    random.seed(value)
    np.random.seed(value % 2**32)  # the legacy generator: plugins use it


@dataclass
class Sums:
    """Running sums of an epoch's scalars, weighted by batch rows; tensors stay on the device until they are read."""

    rows: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)  # 0-dimensional float64
    floats: dict[str, float] = field(default_factory=dict)

    def add(self, scalars: Mapping[str, Tensor | float], rows: int) -> None:
        self.rows += rows
        for name, value in scalars.items():
            if isinstance(value, Tensor):
                term = value.detach().double().reshape(()) * rows
                held = self.tensors.get(name)
                self.tensors[name] = term if held is None else held + term
            else:
                self.floats[name] = self.floats.get(name, 0.0) + float(value) * rows

    def means(self) -> dict[str, float]:
        return self.since(Sums())

    def since(self, before: Sums) -> dict[str, float]:
        """Means over what was added after `before` was copied from here; waits for the device."""
        rows = max(self.rows - before.rows, 1)
        found = {name: float(value) - float(before.tensors.get(name, 0.0)) for name, value in self.tensors.items()}
        found |= {name: value - before.floats.get(name, 0.0) for name, value in self.floats.items()}
        return {name: value / rows for name, value in found.items()}

    def copy(self) -> Sums:
        return Sums(self.rows, dict(self.tensors), dict(self.floats))
