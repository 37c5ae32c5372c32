"""`bench verify` and `bench attack`: a finished run looked at again, with its weights where they are still there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .attack import AttackConfig
from .data import Split, load
from .eps import Eps
from .errors import BenchError
from .evaluate import Evaluation, evaluate
from .progress import Progress
from .record import Record
from .trained import WEIGHTS, Trained, of_record
from .verify import Finding, verify_record, verify_run


@dataclass(frozen=True)
class Again:
    """Where a run's parts are, and on what to look at them."""

    runs_dir: Path
    device: str = "cpu"
    threads: int = 1
    data_root: Path | None = None
    offline: bool = False

    def has_weights(self, record: Record) -> bool:
        """Whether the run's folder still holds its weights."""
        return (self.runs_dir / record.path.name / WEIGHTS).exists()

    def open(self, record: Record) -> tuple[Trained, Split]:
        """The net and the split a record speaks about, both checked to be the very ones.

        Raises:
            StateError, DataError, BenchError: they are gone or differ.
        """
        torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        trained = of_record(record, self.runs_dir, device)
        data = load(record.dataset, data_root=self.data_root, offline=self.offline, device=device)
        if data.info["checksum"] != record.data["data"]["checksum"]:
            raise BenchError(
                f"{record.dataset}: these images are not those of record {record.short} (checksum differs)"
            )
        return trained, data.test() if record.split == "test" else data.val


def verify(record: Record, again: Again, *, level: int, progress: Progress) -> list[Finding]:
    """Level 0 looks at the record alone, level 1 replays a sample on the weights."""
    found = verify_record(record)
    if level == 0 or not all(f.ok for f in found):
        return found
    trained, split = again.open(record)
    return found + verify_run(
        record, trained.method, trained.net, split, spec=trained.spec, recipe=trained.recipe, progress=progress
    )


def attack(record: Record, again: Again, config: AttackConfig, *, seed: int, progress: Progress) -> Evaluation:
    """The record's net under another attack.

    Raises:
        Violation: it broke a class D or F32 certificate; the evidence is in the run's folder.
    """
    trained, split = again.open(record)
    return evaluate(
        trained.method,
        trained.recipe,
        trained.net,
        split,
        spec=trained.spec,
        eps=Eps(record.data["cell"]["eps"]),
        seed=seed,
        attacks=config,
        progress=progress,
        bundle_dir=again.runs_dir / record.path.name,
    )


def union(record: Record, found: Evaluation) -> dict[str, Any]:
    """What is left when the record's attacks and the new ones count together."""
    before = record.arrays("robust")["robust"]
    both = before & found.arrays["robust"]
    n = record.n
    return {
        "n": n,
        "robust_before": 100.0 * int(before.sum()) / n,
        "robust_now": 100.0 * int(found.arrays["robust"].sum()) / n,
        "robust_both": 100.0 * int(both.sum()) / n,
        "certified": record.certified,
        "newly_broken": int((before & ~np.asarray(found.arrays["robust"])).sum()),
        "attacks": found.summary["attacks"],
    }
