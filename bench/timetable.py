"""`bench time`: what several methods cost on one data set, on this machine, measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import registry
from .cost import measure_cost
from .data import Split
from .data.catalogue import entry
from .data.loading import spec as data_spec
from .environment import device_name
from .errors import BenchError
from .progress import Progress, duration
from .timing import Timer

ROUNDS = 3  # each method is timed in each, so that a busy minute of the machine hits all of them
YARDSTICK = "ibp"  # whose epochs the others are told in, as in the ICML 2021 paper's Table 4; else the first method's
COLUMNS = (
    "method",
    "preset",
    "params",
    "flops",
    "batch",
    "timed_batch",
    "s_per_epoch",
    "relative",
    "lowest",
    "highest",
    "training",
    "forward_ms",
    "certify_ms",
    "note",
)


def timetable(
    methods: Sequence[str], dataset: str, eps: str, preset: str, *, device: str, budget_s: float, progress: Progress
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per method, and one line per method that has no such recipe or cannot be timed.

    Seconds per epoch are extrapolated from steps on noise at six points of the schedule; `lowest` and `highest` are
    the cheapest and dearest of these phases, `relative` is in epochs of `relative_to`.
    """
    where, data = torch.device(device), data_spec(dataset)
    timers: dict[str, Timer] = {}
    problems = []
    for name in dict.fromkeys(methods):
        try:
            method = registry.get(name)
            recipe = registry.recipe(method, dataset, eps, preset)
            timers[name] = Timer(method, recipe, data, entry(dataset).n_train, where)
        except BenchError as error:
            problems.append(str(error))
    progress.phase("time", ROUNDS * len(timers))
    for turn in range(ROUNDS):
        for place, timer in enumerate(timers.values()):
            timer.run(budget_s / ROUNDS)
            progress.update(turn * len(timers) + place + 1)
    progress.close()
    rows = [_row(name, timer) for name, timer in timers.items()]
    base = next((row for row in rows if row["method"] == YARDSTICK), rows[0] if rows else None)
    for row in rows:
        assert base is not None
        row |= {"relative": row["s_per_epoch"] / base["s_per_epoch"], "relative_to": base["method"]}
    return rows, problems


def _row(name: str, timer: Timer) -> dict[str, Any]:
    timing = timer.result(0)
    levels = timer.spec.levels
    images = (timer.x[: timer.batch] * (levels - 1)).round().to(torch.uint8)
    split = Split(images, timer.y[: timer.batch], torch.arange(len(images), device=images.device), levels)
    cost = measure_cost(timer.method, timer.recipe, timer.net, split, spec=timer.spec, eps=timer.recipe.radius)
    return {
        "method": name,
        "dataset": timer.recipe.dataset,
        "eps": timer.recipe.eps,
        "preset": timer.recipe.preset,
        "device": device_name(timer.device),
        "threads": torch.get_num_threads(),
        "batch": timing.recipe_batch,
        "timed_batch": timing.batch,
        "params": timing.params,
        "flops": timing.flops,
        "s_per_epoch": timing.s_per_epoch,
        "lowest": min(timing.step_s) * timing.per_epoch,
        "highest": max(timing.step_s) * timing.per_epoch,
        "epochs": timing.epochs,
        "train_s": timing.train_s,
        "training": duration(timing.train_s),
        "forward_ms": cost["forward_ms"],
        "certify_ms": cost["certify_ms"],
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "note": "lower bound" if timing.at_least else "",
        "how": timing.how,
    }
