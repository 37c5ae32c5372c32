"""What `bench run` prints: plans as JSON, results as a table or JSON on stdout, advice on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .child import Outcome
from .plan import DEFAULT_RESULTS, Plan
from .progress import duration
from .record import Record
from .text import columns

SUMMARY = ("method", "dataset", "eps", "preset", "seed", "n", "clean", "robust", "certified", "class", "time", "status")


def _row(record: Record, status: str) -> dict[str, Any]:
    row = record.row()
    row |= {"class": record.certificate_class, "time": duration(record.train_s), "status": status}
    return row


def summarise(plan: Plan, outcomes: Sequence[Outcome], say: Callable[[str], None]) -> None:
    """Results on stdout, advice on stderr."""
    by_id = {o.task.cell.id: o for o in outcomes}
    rows: list[dict[str, Any]] = []
    machine: list[dict[str, Any]] = []
    folders = []
    for one in plan.planned:
        cell = one.cell
        record = plan.done.get(cell.id)
        outcome = by_id.get(cell.id)
        status = "finished before" if record else "finished"
        record = record or (outcome.record if outcome else None)
        if record is not None:
            rows.append(_row(record, status))
            machine.append({**record.row(), "cell": cell.id, "status": status, "folder": str(record.path)})
            folders.append(str(record.path))
            continue
        words = {1: "failed", 3: "diverged", 4: "stopped, resumable"}
        assert outcome is not None, cell.label
        about = {k: getattr(cell, k) for k in ("method", "dataset", "eps", "preset", "seed")}
        word = words.get(outcome.code, "failed") if outcome.message != "not started" else "not started"
        rows.append({**about, "status": word})
        machine.append({**about, "cell": cell.id, "status": word, "reason": outcome.message})
    for gap in plan.missing:
        about = {"method": gap.method, "dataset": gap.dataset, "eps": gap.eps, "preset": gap.preset}
        rows.append({**about, "status": f"skipped: {gap.reason}"})
        machine.append({**about, "status": "skipped", "reason": gap.reason})
    if plan.request.as_json:
        print(json.dumps(machine, indent=1))
        return
    print(columns(rows, SUMMARY))
    sys.stdout.flush()
    if plan.request.quiet or not folders:
        return
    say(f"record: {folders[0]}" if len(folders) == 1 else f"{len(folders)} records below {plan.request.results_dir}")
    if plan.request.split == "val":
        say("tuning runs (--split val) enter no table")
    else:
        where = plan.request.results_dir
        say("next: bench report" + ("" if where == Path(DEFAULT_RESULTS) else f" --results {where}"))


def show_dry(plan: Plan) -> None:
    if not plan.request.as_json:
        print("\n".join(plan.lines()))
        return
    rows = []
    for one in plan.planned:
        guess = plan.estimates.get(one.cell.id)
        rows.append(
            {
                **one.cell.as_record(),
                "finished": one.cell.id in plan.done,
                "trained_share": plan.begun.get(one.cell.id, 0.0),
                "train_s": guess.train_s if guess else None,
                "eval_s": guess.eval_s if guess else None,
                "how": guess.how if guess else None,
                "data_here": one.cell.dataset not in plan.absent,
            }
        )
    rows += [{**vars(m), "skipped": m.reason} for m in plan.missing]
    print(json.dumps(rows, indent=1))
