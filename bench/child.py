"""One cell in a process of its own: started, listened to, stopped, and whatever becomes of it put into one outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import record as records
from .cell import Cell
from .environment import worker_environment
from .errors import printable
from .files import check_writable
from .options import Options
from .progress import Progress
from .record import Record

PIPE_READS = 64  # of 64 KiB: more than a pipe holds
LOG_BYTES = 1 << 20  # of a child's output are kept, and as much of its end
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


class Child:
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
            with contextlib.suppress(ValueError):  # somebody else wrote into the pipe
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
        with contextlib.suppress(OSError):  # a full disk: the cell itself finds out when it saves, and says so
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
        # What it left in the pipes, and no more: a process that escaped its group may hold the other end for ever.
        for _ in range(PIPE_READS):
            if not self.read_events():
                break
        self.read_log()
        self.progress.close()
        os.close(self.events)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self._tail:
            with contextlib.suppress(OSError):
                self._log.write(b"\n[...]\n" + b"".join(self._tail))
        with contextlib.suppress(OSError):
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
        saved = any(self.log_path.parent.glob("*.safetensors"))
        kept = "its last saved state is kept" if saved else "no state was saved yet"
        message = f"its process {how}{hint}{said} ({self.log_path}); {kept}"
        return Outcome(self.task, EXIT_FAILED, message, None, seconds)


def _last_line(path: Path, start: int) -> str:
    """The last thing a child printed, fit for a message."""
    try:
        text = path.read_bytes()[start:][-2000:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[-1], 160) if lines else ""
