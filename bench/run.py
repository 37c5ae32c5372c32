"""One cell from data to record: train, evaluate, measure, write. Each part is kept on disk and never done twice.

A run's folder holds state-*.safetensors while it trains, then weights.safetensors, part-*.npz while it evaluates, then
evaluation.json and .npz; the record goes to the results folder last. Whatever kills the process, the next call
continues with the first part missing.
"""

from __future__ import annotations

import datetime
import functools
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from . import certification, reattack, registry
from . import record as records
from .attack import AttackConfig
from .cell import Cell, Planned
from .cost import measure_cost
from .data import Dataset, Split, load
from .environment import code_version, environment, machine, method_sha256, source_sha256, training_code
from .eps import Eps
from .errors import BenchError, Interrupted
from .evaluate import Evaluation, evaluate
from .files import check_writable, locked, remove, write_atomic
from .kept import Kept, parts_key
from .options import Options
from .progress import Progress, StoppingProgress
from .recipe import recorded
from .record import Record
from .state import (
    SCHEMA,
    StateStore,
    net_tensors,
    read_meta,
    save_tensors,
    weights_sha256,
)
from .train import RESUMED_ADVICE, seed_everything, train
from .trained import WEIGHTS, Trained, restore

EVALUATION, ARRAYS = "evaluation.json", "evaluation.npz"
RESTARTED = "restarted"  # marks a run begun with --fresh: an older record of its cell does not count as finished
STATE_COPIES = 3 * 3  # weights and two moments, in two kept states and the one being written
REBUILD_ROWS = 64  # images on which the reloaded net must agree with the trained one, bit for bit


def run(
    planned: Planned,
    options: Options,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Record:
    """Execute one cell, or what is left of it, and return its record; a finished one is only read.

    Raises:
        Interrupted: `should_stop` said so; everything needed to continue is on disk.
        NumericalError: training diverged.
        BenchError: anything else the user can mend, in one line.
    """
    progress = progress or Progress(quiet=True)
    cell = planned.cell
    if not options.fresh and (
        done := finished(cell, Path(options.results), Path(options.runs_dir), autoattack=options.autoattack)
    ):
        return done
    folder = Path(options.runs_dir) / cell.folder
    with locked(folder):
        return _Run(planned, options, folder, progress, should_stop).execute()


def finished(cell: Cell, results: Path, runs_dir: Path, *, autoattack: bool = False) -> Record | None:
    """The record of a cell in a results folder, if there is a readable one that no --fresh run is about to replace.

    With `autoattack` one whose net was not attacked by it does not count.
    """
    folder = results / records.folder_name(cell.as_record())
    if not (folder / records.FILE).is_file() or (runs_dir / cell.folder / RESTARTED).exists():
        return None
    try:
        found = records.read(folder)
        found.arrays("index")
    except records.RecordError:
        return None  # `bench report` and `bench list runs` show it in red; running again replaces it
    return found if not autoattack or _has_autoattack(found.data["evaluation"]) else None


def _has_autoattack(evaluation: dict[str, Any]) -> bool:
    return {a["name"] for a in evaluation["attacks"]} >= {"aa_apgd_ce", "aa_square"}


def attack_budget(preset: str, autoattack: bool = False) -> AttackConfig:
    """Attacks of an evaluation: by preset, not by machine, because rows of one preset stand in one table."""
    budget = AttackConfig.thorough() if preset == "paper" else AttackConfig()
    return replace(budget, autoattack=autoattack)


def progress_of(cell: Cell, runs_dir: Path) -> float | None:
    """How much of a cell's training is on disk, in [0, 1]; None for none. Reads headers only."""
    folder = runs_dir / cell.folder
    if (folder / WEIGHTS).exists():
        return 1.0
    for path in sorted(folder.glob("state-*.safetensors"), reverse=True):
        meta = read_meta(path)
        if meta is not None and "iterations" in meta:
            return float(meta["iteration"]) / max(1, int(meta["iterations"]))
    return None


class _Run:
    """One execution; holds what its parts share."""

    def __init__(
        self,
        planned: Planned,
        options: Options,
        folder: Path,
        progress: Progress,
        should_stop: Callable[[], bool],
    ) -> None:
        self.cell, self.recipe, self.planned = planned.cell, planned.recipe, planned
        self.options, self.folder, self.progress, self.should_stop = options, folder, progress, should_stop
        self.device = torch.device(options.device)
        self.method = registry.get(self.cell.method)

    def execute(self) -> Record:
        torch.set_num_threads(self.options.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # libraries that name no device mean this one
        check_writable(Path(self.options.results), "--results")
        data = load(
            self.cell.dataset,
            data_root=Path(self.options.data_root) if self.options.data_root else None,
            offline=self.options.offline,
            device=self.device,
        )
        if self.options.fresh:  # not before it is known that the run can begin
            _clear(self.folder)
        self.spec = data.spec.cropped(self.recipe.crop)
        self.store = StateStore(
            self.folder,
            {**self.cell.identity(), "data": data.info["checksum"]},
            every_s=self.options.save_every_s,
            code=training_code(self.method),
            warn=self.progress.note,
        )
        self.store.tidy()
        trained = self._trained(data)
        kept = self._evaluated(trained, data)
        wall = trained.summary["train_s"] + kept["wall_s"]
        written = self._write(trained, data, kept, wall)
        remove(self.folder / RESTARTED)
        return written

    # --- training -----------------------------------------------------------------------------------------------------

    def _trained(self, data: Dataset) -> Trained:
        """The trained net: read from the run's folder, or trained now and then read from it."""
        before = (self.folder / WEIGHTS).exists()
        if not before:
            self._train(data)
        found = restore(self.folder, self.method, self.recipe, self.spec, self.device, check=self.store.check)
        trained_by = [code.get("method_sha256") for code in found.summary.get("code", [])]
        if before and trained_by and trained_by[-1] != method_sha256(self.method):
            self.progress.note("trained before by another version of the method's file; --fresh trains it again")
        return found

    def _train(self, data: Dataset) -> None:
        seed_everything(self.cell.seed, "build")
        net = self.method.build(self.spec, self.recipe).to(self.device)
        size = sum(t.numel() * t.element_size() for t in net_tensors(net).values())
        check_writable(self.folder, "--runs-dir", need_bytes=STATE_COPIES * size + (8 << 20))
        split = data.train_all if self.cell.split == "test" else data.train
        summary = train(
            self.method,
            self.recipe,
            net,
            split,
            spec=self.spec,
            seed=self.cell.seed,
            eps=Eps(self.cell.eps),
            store=self.store,
            progress=self.progress,
            should_stop=self.should_stop,
        )
        meta = {
            "schema": SCHEMA,
            "identity": self.store.identity,
            "training": {**summary, "code": self.store.code},
            "environment": environment(self.device),
        }
        save_tensors(self.folder / WEIGHTS, net_tensors(net), meta)
        self._check_rebuilt(net, split)
        self.store.clear()

    def _check_rebuilt(self, net: nn.Module, split: Split) -> None:
        """A net whose state is not all in its tensors would be another net after a restart: refuse it now."""
        other = restore(self.folder, self.method, self.recipe, self.spec, self.device).net
        rows = min(REBUILD_ROWS, len(split))
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (rows, self.spec.channels, self.spec.height, self.spec.width)
        x = torch.rand(shape, generator=generator, device=self.device)
        answers = []
        with torch.no_grad():
            for one in (net, other):
                one.eval()
                answers.append(one(x))
        # a GPU may pick another kernel from one call to the next
        near = self.device.type != "cpu" and torch.allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)
        if not near and not torch.equal(answers[0], answers[1]):
            remove(self.folder / WEIGHTS)
            raise BenchError(
                f"method {self.method.name}: a net rebuilt from its saved weights answers differently; everything that "
                "training or finish() changes must be a parameter or a buffer, or be the default of build()"
            )

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluated(self, trained: Trained, data: Dataset) -> dict[str, Any]:
        """The evaluation and costs: read from the run's folder, or measured now and written there."""
        weights = weights_sha256(trained.net)
        kept = _read_json(self.folder / EVALUATION)
        if kept is not None and not (self._is_of(kept, weights) and (self.folder / ARRAYS).exists()):
            kept = None
        if kept is not None and (not self.options.autoattack or _has_autoattack(kept["evaluation"])):
            return kept
        if self.should_stop():
            raise Interrupted(f"stopped before the evaluation; {RESUMED_ADVICE}")
        split = data.test() if self.cell.split == "test" else data.val
        watched = StoppingProgress(self.progress, self.should_stop)
        keep = Kept(self.folder, parts_key(self.method, weights, split.index, self.cell.eps, self.device))
        found = evaluate(
            self.method,
            self.recipe,
            trained.net,
            split,
            spec=self.spec,
            eps=Eps(self.cell.eps),
            seed=self.cell.seed,
            attacks=attack_budget(self.cell.preset, self.options.autoattack),
            progress=watched,
            bundle_dir=self.folder,
            keep=keep,
        )
        cost = _cost(trained, found, split, Eps(self.cell.eps))
        kept = {
            "weights_sha256": weights,
            "evaluation": found.summary,
            "switches": found.switches,
            "cost": cost,
            "code": code_version(),
            "method_sha256": method_sha256(self.method),
            "wall_s": keep.elapsed,
        }
        remove(self.folder / EVALUATION)  # a crash between the two files leaves none, not a mixture
        write_atomic(self.folder / ARRAYS, _npz(found.arrays))
        write_atomic(self.folder / EVALUATION, (json.dumps(kept, indent=1) + "\n").encode())
        keep.clear()
        return kept

    def _is_of(self, kept: dict[str, Any], weights: str) -> bool:
        """Whether a kept evaluation is of this net and was made by this code."""
        made = kept.get("weights_sha256"), kept.get("code", {}).get("source_sha256"), kept.get("method_sha256")
        return made == (weights, source_sha256(), method_sha256(self.method))

    # --- the record ---------------------------------------------------------------------------------------------------

    def _write(self, trained: Trained, data: Dataset, kept: dict[str, Any], wall_s: float) -> Record:
        with np.load(self.folder / ARRAYS, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        payload = {
            "cell": self.cell.as_record(),
            "recipe": {
                "fields": recorded(self.recipe),  # what the hash covers
                "source": self.recipe.source,
                "hash": self.cell.recipe_hash,
                "modified": self.planned.modified,
            },
            "method": {
                "name": self.method.name,
                "title": self.method.title,
                "paper": self.method.paper,
                "norm": self.method.norm,
            },
            "data": data.info,
            "environment": {**trained.environment, "switches": kept["switches"]},
            "code": kept["code"],
            "weights_sha256": kept["weights_sha256"],
            "training": trained.summary,
            "evaluation": kept["evaluation"],
            "cost": kept["cost"],
            "finished": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "wall_s": wall_s,
        }
        beside = self._beside(kept["weights_sha256"])
        record = records.write(Path(self.options.results), payload, arrays)
        for found in beside:
            try:
                found(record)
            except BenchError as error:
                self.progress.note(f"left out, it was beside the record that this one replaces: {error}")
        return record

    def _beside(self, weights_sha256: str) -> list[Callable[[Record], object]]:
        """Later attacks and certificates of the record that is about to be replaced, if its net is the very same."""
        folder = Path(self.options.results) / records.folder_name(self.cell.as_record())
        try:
            old = records.read(folder)
        except records.RecordError:
            return []
        if old.data["weights_sha256"] != weights_sha256:
            return []
        attacks = [functools.partial(reattack.carry, one) for one in reattack.of_record(old)[0]]
        return attacks + [functools.partial(certification.carry, one) for one in certification.of_record(old)[0]]


def _cost(trained: Trained, found: Evaluation, split: Split, eps: Eps) -> dict[str, Any]:
    """The record's "cost"."""
    measured = measure_cost(trained.method, trained.recipe, trained.net, split, spec=trained.spec, eps=eps)
    peaks = (measured["peak_memory_bytes"], trained.summary["peak_memory_bytes"])
    return {
        **measured,
        "train_s": trained.summary["train_s"],
        "s_per_epoch": trained.summary["s_per_epoch"],
        "attack_s": sum(line.get("seconds") or 0.0 for line in found.summary["attacks"]),
        "peak_memory_bytes": max((p for p in peaks if p is not None), default=None),
        "machine": machine(split.labels.device),  # of the evaluation and its times
    }


def start_over(cell: Cell, runs_dir: Path) -> None:
    """Forget what a cell has reached, as --fresh does, for a run that others continue.

    Raises:
        FileError: another process works on it, or its folder cannot be written.
    """
    folder = runs_dir / cell.folder
    with locked(folder):
        _clear(folder)


def _clear(folder: Path) -> None:
    """Forget everything of a run but its lock and its output; an older record of the cell counts no longer."""
    for path in folder.iterdir():
        if path.name in ("lock", "stdout"):
            continue
        remove(path)
    write_atomic(folder / RESTARTED, b"")


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
