"""Errors that end a command: one line for the user, an exit code for the shell, no traceback."""

from __future__ import annotations

import os
import re

_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")
_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "auto_LiRPA", "pyautoattack")
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


class BenchError(Exception):
    """Something the user can mend; the message says what, where and how, in one line. Exit code 1: a cell failed."""

    exit_code = 1


class UsageError(BenchError):
    """The command line asks for something that does not exist or cannot be."""

    exit_code = 2


class NumericalError(BenchError):
    """Training met a non-finite number; the last good checkpoint is kept."""

    exit_code = 3


class Interrupted(BenchError):
    """Stopped by a signal or a time limit; the run can be resumed."""

    exit_code = 4


def printable(text: str, limit: int = 80) -> str:
    """Text from outside, cut, its control characters shown instead of sent to the terminal."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def one_line(error: BaseException) -> str:
    """`TypeError: first line of the message`, fit for a table cell."""
    if isinstance(error, SystemExit):
        return f"calls sys.exit({error.code!r})"
    if isinstance(error, SyntaxError):
        return printable(f"SyntaxError: {error.msg} (line {error.lineno})", 300)
    try:
        text = str(error)
    except Exception:  # an exception class whose __str__ raises
        text = ""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return printable(f"{type(error).__name__}: {first}" if first else type(error).__name__, 300)


def place(error: BaseException) -> str:
    """` (my_method.py:31, in loss)`: the last line of a method's author that led to the error; empty if none did."""
    import sysconfig
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_OURS, "<"))]
    packages = [_INSTALLED.search(f.filename) for f in frames]
    stdlib = sysconfig.get_paths()["stdlib"] + os.sep
    mine = [f for f, p in zip(frames, packages, strict=True) if p is None and not f.filename.startswith(stdlib)]
    installed = [f for f, p in zip(frames, packages, strict=True) if p is not None and p[1] not in _LIBRARIES]
    found = mine or installed  # an installed plugin, where nothing of the user's own is on the way
    return f" ({os.path.basename(found[-1].filename)}:{found[-1].lineno}, in {found[-1].name})" if found else ""
