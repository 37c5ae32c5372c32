"""Cells on other machines: the same cells, handed to an engine that labs already run (submitit: Slurm, or local).

A job is a list of cells that `launch` runs one after another on the machine it was given, with child processes, time
limits and resuming as everywhere. Results, run folders and data lie on a file system that all machines share; locks and
atomic records make a job that runs twice harmless. There is no scheduler here: the engine queues, starts and requeues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from .child import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Outcome, Slot, Task
from .errors import UsageError, one_line, printable
from .progress import Progress

POLL_S = 1.0
START_S = 300.0  # a job of cells with time limits: for imports, data and the last saved state of each
KILL_WAIT_S = 600.0  # at most: Slurm's KillWait is half a minute by default, a partition's GraceTime may be longer
DAY_MIN = 24 * 60  # a job whose cells have no time limit


@dataclass(frozen=True)
class Executor:
    """Which engine, and what it is told.

    engine: "slurm", or "local" (submitit's processes on this machine).
    at_once: jobs that may run at the same time; None leaves it to the engine, and "local" starts all.
    settings: further parameters of the engine, as submitit names them (`slurm_partition`, `gpus_per_node`, ...).
    """

    engine: str
    cells_per_job: int = 1
    at_once: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self,
        tasks: Sequence[Task],
        threads: int,
        *,
        device: str,
        on_outcome: Callable[[Outcome], None],
        say: Callable[[str], None],
    ) -> tuple[list[Outcome], bool]:
        """Submit the tasks, wait for them, and return their outcomes and whether the waiting was cut short.

        Args:
            threads: CPU cores asked for per job, and used by its cells.
            device: as given to `bench run`; "auto" is settled on the machine of the job.

        Raises:
            UsageError: submitit or the engine is missing, or it refuses the settings.
        """
        if not tasks:
            return [], False
        folder = (Path(tasks[0].options.runs_dir) / "jobs").resolve()
        size = self._cells_per_job(len(tasks))
        engine = self._engine(folder, tasks, size, threads)
        begun = [_begun(task) for task in tasks]  # not before it is known that the engine is there
        batches = [begun[k : k + size] for k in range(0, len(begun), size)]
        jobs = self._submit(engine, batches, threads, device)
        say(f"{len(tasks)} cells in {len(jobs)} {self.engine} jobs ({jobs[0].job_id} ...); their logs: {folder}")
        outcomes: list[Outcome] = []
        waiting = dict(enumerate(jobs))
        try:
            with _ended_like_interrupted():
                while waiting:
                    for k in [k for k, job in waiting.items() if job.done()]:
                        for outcome in _collect(waiting.pop(k), batches[k]):
                            outcomes.append(outcome)
                            on_outcome(outcome)
                    if waiting:
                        time.sleep(POLL_S)
        except KeyboardInterrupt:
            outcomes += self._let_go(waiting, batches, on_outcome, say)
        place = {id(task): k for k, task in enumerate(begun)}
        outcomes.sort(key=lambda outcome: place[id(outcome.task)])
        return outcomes, bool(waiting)

    def jobs_at_once(self, cells: int) -> int:
        """How many jobs of so many cells may run at the same time, as far as it is ours to say."""
        jobs = math.ceil(cells / self._cells_per_job(max(cells, 1)))
        return max(1, min(jobs, self.at_once or jobs))

    def _cells_per_job(self, cells: int) -> int:
        """On this machine nothing queues: at most `at_once` jobs means as few jobs, each with more cells."""
        if self.engine == "local" and self.at_once:
            return max(self.cells_per_job, math.ceil(cells / self.at_once))
        return self.cells_per_job

    def _engine(self, folder: Path, tasks: Sequence[Task], size: int, threads: int) -> Any:
        try:
            import submitit
        except ImportError:
            raise UsageError(f"--executor {self.engine}: submitit is not installed (pip install submitit)") from None
        known = [task.time_limit_s for task in tasks if task.time_limit_s is not None]
        minutes = math.ceil(size * (max(known) + START_S) / 60) if len(known) == len(tasks) else DAY_MIN
        asked: dict[str, Any] = {"timeout_min": minutes, "cpus_per_task": threads, "name": "bench", **self.settings}
        if self.engine == "slurm" and self.at_once:
            asked.setdefault("slurm_array_parallelism", self.at_once)
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.engine)
            executor.update_parameters(**asked)
        except Exception as error:  # the engine's own: no Slurm here, an unknown parameter
            raise UsageError(f"--executor {self.engine}: {one_line(error)}") from None
        return executor

    def _submit(self, engine: Any, batches: list[list[Task]], threads: int, device: str) -> list[Any]:
        try:
            return list(engine.map_array(Job(threads, device), [[_absolute(t) for t in b] for b in batches]))
        except Exception as error:  # a refused submission
            raise UsageError(f"--executor {self.engine}: {one_line(error)}") from None

    def _let_go(
        self,
        waiting: Mapping[int, Any],
        batches: list[list[Task]],
        on_outcome: Callable[[Outcome], None],
        say: Callable[[str], None],
    ) -> list[Outcome]:
        """Stopped: a cluster's jobs go on without us, local ones are ended; their cells keep their saved states."""
        ids = " ".join(str(job.job_id) for job in waiting.values())
        if self.engine == "slurm":
            say(f"the jobs go on: {ids} (scancel ends them); the same command shows later what they finished")
            message = "still with the cluster"
        else:
            for job in waiting.values():  # its number is its process; submitit's own cancel() prints a traceback
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.kill(int(job.job_id), signal.SIGTERM)
            message = "stopped as asked; its state is saved"
        left = [Outcome(task, EXIT_INTERRUPTED, message) for k in waiting for task in batches[k]]
        for outcome in left:
            on_outcome(outcome)
        return left


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """SIGTERM is heard as Ctrl-C: whoever ends us must not leave local jobs behind."""

    def heard(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, heard)
    except ValueError:  # not the main thread: whoever runs us there stops us his way
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` arguments for the engine; whole numbers become numbers.

    Raises:
        UsageError: one without `=`.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--job {pair}: write --job KEY=VALUE, as in --job slurm_partition=gpu")
        found[key.strip()] = int(value) if value.strip().isdecimal() else value.strip()
    return found


class Job:
    """What a machine of the cluster executes; picklable. A job that is about to be preempted is queued again."""

    def __init__(self, threads: int, device: str) -> None:
        self.threads, self.device = threads, device

    def __call__(self, tasks: list[Task]) -> list[tuple[int, str, str, float]]:
        """Run the cells one after another; (exit code, message, record folder, seconds) of each."""
        from .environment import resolve_device
        from .launch import launch

        slot = Slot(resolve_device(self.device), self.threads)
        outcomes, stopped = launch(tasks, [slot], progress=functools.partial(_log, count=len(tasks)))
        if stopped and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            # SIGTERM, and SIGKILL is to follow: a preempted job that is killed is queued again, one that ends is not.
            time.sleep(KILL_WAIT_S)
        return [(o.code, o.message, str(o.record.path) if o.record else "", o.seconds) for o in outcomes]

    def checkpoint(self, tasks: list[Task]) -> Any:
        """Called by submitit before a job is cut short: the same cells again, which continue from their states."""
        import submitit

        from .launch import wind_down

        wind_down()
        return submitit.helpers.DelayedSubmission(self, tasks)


def _log(label: str, count: int) -> Progress:
    return Progress(label=label if count > 1 else "", terminal=False)


def _begun(task: Task) -> Task:
    """--fresh is done once, here: a job that is queued again after a preemption goes on with what it reached."""
    if not task.options.fresh:
        return task
    from .run import start_over

    start_over(task.cell, Path(task.options.runs_dir))
    return dataclasses.replace(task, options=dataclasses.replace(task.options, fresh=False))


def _absolute(task: Task) -> Task:
    """The task with paths that hold on every machine sharing the file system, whatever its working directory."""
    options = task.options
    root = str(Path(options.data_root).resolve()) if options.data_root else None
    moved = dataclasses.replace(
        options,
        results=str(Path(options.results).resolve()),
        runs_dir=str(Path(options.runs_dir).resolve()),
        data_root=root,
    )
    return dataclasses.replace(task, options=moved, plugins=tuple(str(Path(p).resolve()) for p in task.plugins))


def _collect(job: Any, tasks: Sequence[Task]) -> list[Outcome]:
    """Outcomes of a job that is over; one that died is a failure of each of its cells without a record."""
    from . import record as records

    try:
        results = job.result()
    except Exception as error:
        last = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = printable(last[-1], 160) if last else type(error).__name__
        message = f"its job {job.job_id} died: {why} (log: {job.paths.stderr})"
        return [Outcome(task, EXIT_FAILED, message) for task in tasks]
    outcomes = []
    for task, (code, message, folder, seconds) in zip(tasks, results, strict=True):
        try:
            record = records.read(Path(folder)) if code == EXIT_OK else None
        except records.RecordError as error:
            code, message, record = EXIT_FAILED, str(error), None
        outcomes.append(Outcome(task, code, message, record, seconds))
    return outcomes
