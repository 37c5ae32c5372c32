"""How long planned cells would take on this machine, timed in a process of its own that may fail or hang."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cell import Cell, reopen
from .environment import worker_environment
from .errors import one_line

BUDGET_S = 9.0  # for all cells of a plan together; each has at least SHARE_S
SHARE_S = 0.5
PATIENCE_S = 120.0  # then the plan goes on without the estimates that are missing


@dataclass(frozen=True)
class Estimate:
    """Seconds of training and of evaluation, and what was measured; or why nothing was."""

    train_s: float | None
    eval_s: float | None
    how: str
    at_least: bool = False

    @property
    def total_s(self) -> float | None:
        """Training and evaluation."""
        return None if self.train_s is None or self.eval_s is None else self.train_s + self.eval_s


def estimate(
    cells: Sequence[Cell], *, device: str, threads: int, plugins: Sequence[str] = (), patience_s: float = PATIENCE_S
) -> dict[str, Estimate]:
    """Cell id -> estimate. Cells that differ in their seed only are timed once."""
    alike: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        alike.setdefault((cell.method, cell.dataset, cell.recipe_hash, cell.split), []).append(cell)
    first = [group[0] for group in alike.values()]
    job = {
        "cells": [cell.as_record() for cell in first],
        "device": device,
        "threads": threads,
        "plugins": list(plugins),
        "budget_s": max(SHARE_S, BUDGET_S / max(1, len(first))),
    }
    found = {cell.id: Estimate(None, None, "timing took too long") for cell in cells}
    for line in _ask(job, patience_s):
        answer = json.loads(line)
        timed = answer.pop("cell")
        group = next(group for group in alike.values() if group[0].id == timed)
        found |= {cell.id: Estimate(**answer) for cell in group}
    return found


def _ask(job: dict[str, Any], patience_s: float) -> list[str]:
    """Lines that the timing process wrote before it ended or patience did."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.estimate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=worker_environment(job["threads"]),
        text=True,
    )
    try:
        out, _ = process.communicate(json.dumps(job), timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    except BaseException:  # Ctrl-C while the plan is made
        process.kill()
        process.wait()
        raise
    return [line for line in out.splitlines() if line.startswith("{")]


def main() -> None:
    """Entry point of `python -m bench.estimate`: a job on stdin, one JSON line per cell on stdout."""
    job = json.loads(sys.stdin.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a method prints goes nowhere
    import torch

    from . import registry

    torch.set_num_threads(job["threads"])
    for path in job["plugins"]:
        registry.add_file(Path(path))
    for fields in job["cells"]:
        try:
            answer = _timed(fields, torch.device(job["device"]), job["budget_s"])
        except Exception as error:
            answer = Estimate(None, None, f"no estimate: {one_line(error)}")
        answers.write(json.dumps({"cell": fields["id"], **dataclasses.asdict(answer)}) + "\n")
        answers.flush()


def _timed(fields: dict[str, Any], device: Any, budget_s: float) -> Estimate:
    from . import registry
    from .data.catalogue import entry
    from .data.loading import spec
    from .run import attack_budget
    from .timing import Timer

    planned = reopen(fields)
    sizes = entry(fields["dataset"])
    held_out = fields["split"] == "val"
    n_train = sizes.n_train - (sizes.n_val if held_out else 0)
    timer = Timer(registry.get(fields["method"]), planned.recipe, spec(fields["dataset"]), n_train, device)
    timer.run(budget_s)
    timing = timer.result(sizes.n_val if held_out else sizes.n_test, attack_budget(fields["preset"]))
    return Estimate(timing.train_s, timing.eval_s, timing.how, timing.at_least)


if __name__ == "__main__":
    main()
