"""Many cells: one child process per cell, with its own time limit and process group; a failure costs only its row.

The parent never runs a method's training. It draws what the children report, forwards stops, ends what does not stop,
and turns whatever a child does, a crash included, into one outcome.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from . import record as records
from .cell import Cell
from .environment import worker_environment
from .errors import BenchError, printable
from .files import check_writable
from .options import Options
from .progress import Progress, duration
from .record import Record

GRACE_S = 120.0  # between SIGTERM and SIGKILL: a step of a big net on a CPU, and writing its state
LOG_BYTES = 1 << 20  # of a child's output are kept, and as much of its end
POLL_S = 0.1

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NUMERICAL, EXIT_INTERRUPTED = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Task:
    """A cell to run, where, and with what; `label` names it in output."""

    cell: Cell
    options: Options
    label: str
    plugins: tuple[str, ...] = ()
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its record, or an exit code and one line."""

    task: Task
    code: int
    message: str
    record: Record | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Slot:
    """A place to run one cell at a time."""

    device: str
    threads: int


def slots_for(
    device: str, *, jobs: int | None, gpus: int, threads: int | None, cores: Callable[[int], int]
) -> list[Slot]:
    """Places for workers: one per GPU, or one on all cores, or `jobs` of them that share both.

    Args:
        device: resolved name; a GPU given as `auto` may spread over all of them (`gpus` > 0).
        cores: workers -> threads of each.
    """
    devices = [f"cuda:{i}" for i in range(gpus)] if gpus else [device]
    count = jobs or len(devices)
    each = threads or cores(count)
    return [Slot(devices[i % len(devices)], each) for i in range(count)]


def exit_code(outcomes: Sequence[Outcome], *, stopped: bool) -> int:
    """0 all done, 4 the user stopped it, 1 some cell failed, 3 diverged, 4 out of time."""
    codes = {o.code for o in outcomes if o.code}
    if not codes and not stopped:
        return EXIT_OK
    if stopped:
        return EXIT_INTERRUPTED
    for code in (EXIT_FAILED, EXIT_NUMERICAL, EXIT_INTERRUPTED):
        if code in codes:
            return code
    return EXIT_FAILED


def launch(
    tasks: Sequence[Task],
    slots: Sequence[Slot],
    *,
    progress: Callable[[str], Progress],
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    grace_s: float = GRACE_S,
) -> tuple[list[Outcome], bool]:
    """Run every task in a slot of its own; returns the outcomes in the order of the tasks and whether it was stopped.

    SIGINT or SIGTERM to this process stops all children once (they save), a second one ends them at once.

    Args:
        progress: label -> where a child's progress is drawn.
        on_outcome: called as each task ends.
    """
    launcher = _Launcher(list(slots), progress, on_outcome, grace_s)
    with launcher.handling_signals():
        launcher.run(list(tasks))
    order = {id(task): place for place, task in enumerate(tasks)}
    launcher.outcomes.sort(key=lambda outcome: order[id(outcome.task)])
    return launcher.outcomes, launcher.stops > 0


class _Child:
    """A running cell: its process, the pipe of its events, the tail of its output."""

    def __init__(self, task: Task, slot: Slot, progress: Progress) -> None:
        self.task, self.slot, self.progress = task, slot, progress
        self.started = time.monotonic()
        self.kill_at: float | None = None
        self.stopped_for = ""  # why SIGTERM was sent
        self.final: dict[str, Any] | None = None
        self._partial = b""
        self._log_left = LOG_BYTES
        self._tail: deque[bytes] = deque(maxlen=64)
        folder = Path(task.options.runs_dir) / task.cell.folder
        check_writable(folder, "--runs-dir")
        self.log_path = folder / "stdout"
        too_long = self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES
        self._log = open(self.log_path, "wb" if too_long else "ab", buffering=0)  # noqa: SIM115 (closed in finish)
        self._log_start = self._log.tell()
        self.events, write_end = os.pipe()
        os.set_blocking(self.events, False)
        options = dataclasses.replace(task.options, device=slot.device, threads=slot.threads)
        job = {
            "cell": task.cell.as_record(),
            "options": dataclasses.asdict(options),
            "plugins": list(task.plugins),
            "events": write_end,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
            start_new_session=True,  # a terminal's Ctrl-C reaches the parent only, which forwards it once
            env=worker_environment(slot.threads),
        )
        os.close(write_end)
        assert self.process.stdin is not None and self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit is what will be reported
            self.process.stdin.write(json.dumps(job).encode())
            self.process.stdin.close()

    def read_events(self) -> bool:
        """Take in what the child reported; False at the end of the pipe."""
        try:
            data = os.read(self.events, 1 << 16)
        except BlockingIOError:
            return True
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        return bool(data)

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "phase":
            self.progress.phase(event["name"], event["total"])
        elif kind == "update":
            self.progress.update(event["done"], **event["values"])
        elif kind == "note":
            self.progress.note(event["text"])
        elif kind == "close":
            self.progress.close()
        else:
            self.final = {"kind": kind, **event}

    def read_log(self) -> bool:
        """Keep the beginning and the end of what the child prints; False at the end."""
        assert self.process.stdout is not None
        data = self.process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
        if data is None:
            return True
        head, rest = data[: self._log_left], data[self._log_left :]
        self._log_left -= len(head)
        self._log.write(head)
        if rest:
            self._tail.append(rest)
        return bool(data)

    def stop(self, why: str, grace_s: float) -> None:
        """Ask it to save and end; it has `grace_s` seconds."""
        if self.kill_at is None:
            self.stopped_for = why
            self.kill_at = time.monotonic() + grace_s
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything it started, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def has_ended(self) -> bool:
        """Whether the process is over; it is left a zombie, so that its number, and its group's, stay taken."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self.process.poll() is not None
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def finish(self) -> Outcome:
        """Reap it, end its grandchildren, and say what became of it."""
        self.kill()  # of the group only grandchildren are left
        code = self.process.wait()
        while self.read_events():
            pass
        self.read_log()
        self.progress.close()
        os.close(self.events)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self._tail:
            self._log.write(b"\n[...]\n" + b"".join(self._tail))
        self._log.close()
        return self._outcome(code)

    def _outcome(self, code: int) -> Outcome:
        seconds = time.monotonic() - self.started
        final = self.final or {}
        if final.get("kind") == "finished":
            try:
                return Outcome(self.task, EXIT_OK, "", records.read(Path(final["path"])), seconds)
            except records.RecordError as error:
                return Outcome(self.task, EXIT_FAILED, str(error), None, seconds)
        if final.get("kind") == "failed":
            message = final["message"]
            if self.stopped_for and final["code"] == EXIT_INTERRUPTED:
                message = f"{self.stopped_for}, {message}"
            elif final["code"] == EXIT_FAILED and _last_line(self.log_path, self._log_start):
                message = f"{message} (its output: {self.log_path})"
            return Outcome(self.task, final["code"], message, None, seconds)
        if self.stopped_for and code == -signal.SIGTERM:
            return Outcome(self.task, EXIT_INTERRUPTED, f"{self.stopped_for}, stopped before it began", None, seconds)
        if self.stopped_for:
            message = f"{self.stopped_for}, it did not stop by itself and was ended; its last saved state is kept"
            return Outcome(self.task, EXIT_INTERRUPTED, message, None, seconds)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; out of memory?" if code == -signal.SIGKILL else ""
        last = _last_line(self.log_path, self._log_start)
        said = f'; last line of its output: "{last}"' if last else ""
        message = f"its process {how}{hint}{said} ({self.log_path}); its last saved state is kept"
        return Outcome(self.task, EXIT_FAILED, message, None, seconds)


class _Launcher:
    """The loop over running children."""

    def __init__(
        self,
        slots: list[Slot],
        progress: Callable[[str], Progress],
        on_outcome: Callable[[Outcome], None],
        grace_s: float,
    ) -> None:
        self.free = list(slots)
        self.progress, self.on_outcome, self.grace_s = progress, on_outcome, grace_s
        self.running: list[_Child] = []
        self.outcomes: list[Outcome] = []
        self.stops = 0  # signals received
        self.selector = selectors.DefaultSelector()

    def handling_signals(self) -> _Handlers:
        return _Handlers(self._on_signal)

    def _on_signal(self) -> None:
        self.stops += 1

    def run(self, tasks: list[Task]) -> None:
        waiting = deque(tasks)
        told = 0
        try:
            while waiting or self.running:
                while waiting and self.free and not self.stops:
                    self._start(waiting.popleft())
                if self.stops > told:
                    told = self.stops
                    self._pass_on(told)
                if self.stops:
                    for task in waiting:
                        self._end(Outcome(task, EXIT_INTERRUPTED, "not started"))
                    waiting.clear()
                for key, _ in self.selector.select(timeout=POLL_S if self.running else 0):
                    if not key.data():
                        self.selector.unregister(key.fileobj)
                self._look_at_clocks()
                for child in [c for c in self.running if c.has_ended()]:
                    self._reap(child)
        finally:  # whatever happens to the parent, no child stays behind
            for child in self.running:
                child.kill()

    def _start(self, task: Task) -> None:
        slot = self.free.pop(0)
        try:
            child = _Child(task, slot, self.progress(task.label))
        except (BenchError, OSError) as error:
            self.free.append(slot)
            self._end(Outcome(task, EXIT_FAILED, str(error)))
            return
        self.running.append(child)
        self.selector.register(child.events, selectors.EVENT_READ, child.read_events)
        assert child.process.stdout is not None
        self.selector.register(child.process.stdout, selectors.EVENT_READ, child.read_log)

    def _pass_on(self, stops: int) -> None:
        for child in self.running:
            if stops > 1:
                child.kill()
            else:
                child.stop("as asked", self.grace_s)
        if stops == 1 and self.running:
            self.running[0].progress.note("stopping: the step is finished and the state saved (once more ends it now)")

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        for child in self.running:
            limit = child.task.time_limit_s
            if limit is not None and now - child.started >= limit:
                child.stop(f"at the time limit of {duration(limit)}", self.grace_s)
            if child.kill_at is not None and now >= child.kill_at:
                child.kill()

    def _reap(self, child: _Child) -> None:
        for stream in (child.events, child.process.stdout):
            with contextlib.suppress(KeyError):  # it reached its end before
                self.selector.unregister(stream)  # type: ignore[arg-type]
        self.running.remove(child)
        self.free.append(child.slot)
        self._end(child.finish())

    def _end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.on_outcome(outcome)


class _Handlers:
    """SIGINT and SIGTERM call a function while the block runs."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def handle(signum: int, frame: FrameType | None) -> None:
            self._call()

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, handle)
            except ValueError:  # not the main thread: whoever runs us there stops us his way
                return

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def _last_line(path: Path, start: int) -> str:
    """The last thing a child printed, fit for a message."""
    try:
        text = path.read_bytes()[start:][-2000:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1], 160) if lines else ""
