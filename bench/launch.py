"""Many cells: one child process per cell, with its own time limit and process group; a failure costs only its row.

The parent never runs a method's training. It draws what the children report, forwards stops, ends what does not stop,
and turns whatever a child does, a crash included, into one outcome.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from .child import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NUMERICAL, EXIT_OK, Child, Outcome, Slot, Task
from .errors import BenchError
from .progress import Progress, duration

GRACE_S = 120.0  # between SIGTERM and SIGKILL: a step of a big net on a CPU, and writing its state
POLL_S = 0.1


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
    if not codes:  # also where a stop came too late to stop anything
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
    _at_work.append(launcher)
    try:
        with launcher.handling_signals():
            launcher.run(list(tasks))
    finally:
        _at_work.remove(launcher)
    order = {id(task): place for place, task in enumerate(tasks)}
    launcher.outcomes.sort(key=lambda outcome: order[id(outcome.task)])
    return launcher.outcomes, launcher.stops > 0


_at_work: list[_Launcher] = []  # the launches in progress in this process


def wind_down() -> None:
    """Let everything that is running in this process save and end, and wait for it.

    For a signal handler that is going to end the process: the launch it interrupts must not go on.
    """
    for launcher in _at_work:
        launcher.wind_down()


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
        self.running: list[Child] = []
        self.outcomes: list[Outcome] = []
        self.stops = 0  # signals received
        self.selector = selectors.DefaultSelector()

    def handling_signals(self) -> _Handlers:
        return _Handlers(self._on_signal)

    def _on_signal(self) -> None:
        self.stops += 1

    def wind_down(self) -> None:
        self.stops = max(self.stops, 1)
        self.run([])

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
        except BaseException:
            if not self.stops:  # a fault of ours: let the children save before it goes on
                self.wind_down()
            raise
        finally:  # whatever happens to the parent, no child stays behind
            for child in self.running:
                child.kill()

    def _start(self, task: Task) -> None:
        slot = self.free.pop(0)
        try:
            child = Child(task, slot, self.progress(task.label))
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

    def _reap(self, child: Child) -> None:
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
