"""Errors that end a command: one line for the user, an exit code for the shell, no traceback."""

from __future__ import annotations


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
