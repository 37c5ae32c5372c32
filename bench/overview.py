"""Many cells on one terminal: how many are done, and one line for each that runs.

One cell at a time is drawn as it always was, by its own `Progress`. Several at a time share a block of lines at the
bottom that is redrawn in place; finished cells and messages scroll above it. Off a terminal everything is plain lines.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from typing import Any, TextIO

from .progress import REDRAW_S, Progress, Unfailing

CLEAR_BELOW = "\x1b[J"


class Board:
    """What is drawn while cells run.

    Args:
        total: cells to run.
        many: whether several run at a time.
        quiet: draw nothing and say only what is always said.
    """

    def __init__(self, total: int, *, many: bool, quiet: bool, stream: TextIO | None = None) -> None:
        self.stream = stream if stream is not None else Unfailing(sys.stderr)
        self.total, self.quiet = total, quiet
        self.finished = self.failed = 0
        self._block = many and not quiet and self.stream.isatty()
        self._lines: dict[int, str] = {}  # of the running cells, by the order they were started in
        self._begun = self._height = 0
        self._drawn_at = 0.0

    def progress(self, label: str) -> Progress:
        """Where one cell's progress goes. A single cell needs no name and no number."""
        self._begun += 1
        if self._block:
            return _Line(self, self._begun, label)
        name = f"[{self._begun}/{self.total}] {label}" if self.total > 1 else ""
        return Progress(self.stream, quiet=self.quiet, label=name)

    def ended(self, code: int) -> None:
        """A cell is over, `code` 0 being success."""
        self.finished += 1
        self.failed += code != 0

    def say(self, text: str, *, always: bool = False) -> None:
        """A line that stays."""
        if self.quiet and not always:
            return
        self._erase()
        self.stream.write(text + "\n")
        self._draw()

    def show(self, place: int, text: str) -> None:
        """Set the line of a running cell; "" removes it."""
        if text:
            self._lines[place] = text
        elif self._lines.pop(place, None) is None:
            return
        if not text or time.monotonic() - self._drawn_at >= REDRAW_S:
            self._erase()
            self._draw()

    def close(self) -> None:
        """Leave the terminal as a plain log."""
        self._lines.clear()
        self._erase()
        self.stream.flush()

    def _erase(self) -> None:
        if self._height:
            self.stream.write(f"\r\x1b[{self._height}A{CLEAR_BELOW}")
            self._height = 0

    def _draw(self) -> None:
        if self._block and self._lines:
            size = shutil.get_terminal_size()
            failed = f", {self.failed} failed" if self.failed else ""
            head = f"{self.finished} of {self.total} cells done{failed}, {len(self._lines)} running"
            rows = [head, *(self._lines[k] for k in sorted(self._lines))][: max(size.lines - 1, 1)]
            self.stream.write("".join(row[: size.columns - 1] + "\n" for row in rows))
            self._height = len(rows)
        self._drawn_at = time.monotonic()
        self.stream.flush()


class _Line(Progress):
    """A cell's progress as one line of a board."""

    def __init__(self, board: Board, place: int, label: str) -> None:
        super().__init__(io.StringIO(), label=label, terminal=True)
        self._board, self._place = board, place

    def phase(self, name: str, total: int) -> None:
        super().phase(name, total)
        self._board.show(self._place, f"{self.label}{name}")

    def update(self, done: int, **values: Any) -> None:
        self._measure(done, time.monotonic())
        self._board.show(self._place, self._line(values))

    def note(self, text: str) -> None:
        self._board.say(f"{self.label}{text}")

    def close(self) -> None:
        self._board.show(self._place, "")
