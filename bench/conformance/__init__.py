"""`bench check NAME`: does a method keep the contract? Eleven checks on any plugin, in a process of its own.

`run_check` is what a command calls: it starts the process, ends it when time is up, and outlives whatever the plugin
does to it. `check` does the work, in this process. This module and `outcome`, `parent` import no torch.
"""

from __future__ import annotations

from collections.abc import Callable

from .outcome import TITLES, Outcome, failed, lines
from .parent import LIMIT_S, main, run_check

__all__ = ["LIMIT_S", "TITLES", "Outcome", "check", "failed", "lines", "main", "run_check"]


def check(
    name: str, *, on_start: Callable[[int], None] | None = None, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """All checks on a registered method, in this process. A plugin that hangs or exits takes the caller along.

    Args:
        name: of the method, known to `bench.registry`.
        on_start: called with the number of each check before it runs. on_outcome: called with each outcome.

    Raises:
        UsageError: no such method. PluginError: it cannot be loaded.
    """
    from .child import check_method

    return check_method(name, on_start=on_start, on_outcome=on_outcome)
