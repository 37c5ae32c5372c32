"""Progress of a run: a bar on a terminal, a line every few seconds elsewhere, JSON lines from a child to its parent."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from .errors import Interrupted

BAR_WIDTH = 24  # characters
REDRAW_S = 0.1  # a bar is redrawn at most ten times a second
LINE_S = 5.0  # off a terminal, one line every so many seconds
SMOOTHING_S = 30.0  # the rate behind the ETA forgets what is older than about this


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `2 min 05 s`, `1 h 03 min`, `3 d 04 h`: how times are written everywhere."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def show_value(name: str, value: Any) -> str:
    """One value of a progress line; accuracies (names ending in `acc`) are fractions shown as percent."""
    if isinstance(value, float):
        return f"{100 * value:.2f} %" if name.endswith("acc") else f"{value:.4g}"
    return str(value)


class Unfailing:
    """A text stream whose reader may go away (`2>&1 | head`) or disk fill up: what cannot be shown ends no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


class Progress:
    """What a long piece of work reports to. Writes to `stream` (stderr unless told otherwise), never to stdout."""

    def __init__(
        self,
        stream: TextIO | Unfailing | None = None,
        *,
        quiet: bool = False,
        label: str = "",
        terminal: bool | None = None,
    ) -> None:
        self.stream = stream if stream is not None else Unfailing(sys.stderr)
        self.quiet = quiet
        self.label = f"{label}: " if label else ""
        self.terminal = self.stream.isatty() if terminal is None else terminal
        self._name, self._total, self._done = "", 0, 0
        self._baseline: int | None = None
        self._rate = 0.0
        self._drawn_at = self._measured_at = time.monotonic()
        self._width = 0

    def phase(self, name: str, total: int) -> None:
        """Begin a piece of work of `total` units; what was shown before is finished."""
        self._end_bar()
        self._name, self._total, self._done, self._rate = name, total, 0, 0.0
        self._baseline = None
        self._measured_at = self._drawn_at = time.monotonic()

    def update(self, done: int, **values: Any) -> None:
        """`done` units of the phase are complete; `values` are shown beside it."""
        now = time.monotonic()
        self._measure(done, now)
        if self.quiet or now - self._drawn_at < (REDRAW_S if self.terminal else LINE_S):
            return
        self._drawn_at = now
        text = self._line(values)
        if self.terminal:
            columns = _columns(self.stream)
            text = text[: max(columns - 1, 20)]
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def note(self, text: str) -> None:
        """One line that stays, whatever is drawn after it."""
        if self.quiet:
            return
        self._end_bar()
        self.stream.write(f"{self.label}{text}\n")
        self.stream.flush()

    def close(self) -> None:
        """End the last phase."""
        self._end_bar()

    def _measure(self, done: int, now: float) -> None:
        """Exponentially forgetting rate: steps get dearer and cheaper as p grows, the ETA follows."""
        if self._baseline is None:  # the first report may be a resumed run's: it says where we are, not how fast
            self._baseline, self._done, self._measured_at = done, done, now
            return
        elapsed, moved = now - self._measured_at, done - self._done
        if moved <= 0 or elapsed < REDRAW_S:
            return
        keep = 0.5 ** (elapsed / SMOOTHING_S) if self._rate else 0.0
        self._rate = keep * self._rate + (1 - keep) * moved / elapsed
        self._done, self._measured_at = done, now

    def _line(self, values: dict[str, Any]) -> str:
        share = self._done / self._total if self._total else 0.0
        shown = "  ".join(f"{name} {show_value(name, value)}" for name, value in values.items())
        left = f"{duration((self._total - self._done) / self._rate)} left" if self._rate else ""
        if self.terminal:
            full = round(BAR_WIDTH * min(share, 1.0))
            bar = "#" * full + "-" * (BAR_WIDTH - full)
            return f"{self.label}{self._name} [{bar}] {100 * share:3.0f} %  {shown}  {left}".rstrip()
        return f"{self.label}{self._name} {100 * share:.0f} %  {shown}  {left}".rstrip()

    def _end_bar(self) -> None:
        if self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self.stream.flush()
            self._width = 0


class EventProgress(Progress):
    """A child's progress: JSON lines on a pipe, at most five a second; the parent draws them.

    `gone` is set when the parent has vanished (the pipe is broken): the run then saves and stops.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(sys.stderr, quiet=True, terminal=False)
        self._fd = fd
        self._sent_at = 0.0
        self.gone = False

    def send(self, kind: str, **fields: Any) -> None:
        """One event; a vanished parent is remembered, not raised."""
        try:
            data = (json.dumps({"event": kind, **fields}, default=str) + "\n").encode()
            while data:
                data = data[os.write(self._fd, data) :]
        except BrokenPipeError:
            self.gone = True

    def phase(self, name: str, total: int) -> None:
        self.send("phase", name=name, total=total)
        self._sent_at = 0.0

    def update(self, done: int, **values: Any) -> None:
        now = time.monotonic()
        if now - self._sent_at < 0.2:
            return
        self._sent_at = now
        self.send("update", done=done, values=values)

    def note(self, text: str) -> None:
        self.send("note", text=text)

    def close(self) -> None:
        self.send("close")


class StoppingProgress(Progress):
    """Raises `Interrupted` from `update` once a stop was asked for: how work without a loop of ours is interrupted."""

    def __init__(self, inner: Progress, should_stop: Callable[[], bool]) -> None:
        super().__init__(inner.stream, quiet=True)
        self._inner, self._should_stop = inner, should_stop

    def phase(self, name: str, total: int) -> None:
        self._check()
        self._inner.phase(name, total)

    def update(self, done: int, **values: Any) -> None:
        self._check()
        self._inner.update(done, **values)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def close(self) -> None:
        self._inner.close()

    def _check(self) -> None:
        if self._should_stop():
            raise Interrupted(
                "stopped in the evaluation; the trained weights are saved, the same command (without --fresh) continues"
            )


def _columns(stream: TextIO | Unfailing) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # 0: a terminal that does not say
    except (OSError, ValueError, AttributeError):
        return 80
