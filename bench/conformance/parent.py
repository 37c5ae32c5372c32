"""The side that must survive: starts the checks in a process of their own and reads their outcomes from a pipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import registry
from ..environment import child_environment
from ..errors import BenchError, UsageError
from ..probe import end_group, how_it_ended
from .outcome import TITLES, Outcome, failed, lines

LIMIT_S = 120.0
START_S = 120.0  # for importing torch, on a busy machine, and the method; it does not count against the limit
SLOW = "it hangs, or its network is too large for a check (a smaller quick recipe, or --limit, would help)"


def run_check(
    name: str,
    *,
    plugins: Sequence[Path] = (),
    limit_s: float = LIMIT_S,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Check a method in its own process.

    Whatever the plugin does there, hang, exit, crash or fork, is the outcome of the check it happened in; what could
    not run after it has `ok=None`. A folder NAME here, as `bench new-method` writes it, is found without `plugins`.

    Args:
        name: of the method.
        plugins: files to load methods from, beside the built-ins and the installed ones.
        limit_s: wall time after which the process is ended, from the first check on.

    Raises:
        UsageError: no such method or plugin file.
        PluginError: the method cannot be loaded; the message says why.
    """
    files = [Path(p) for p in plugins] or _beside(name)
    for file in files:
        registry.add_file(file)
    if name not in registry.names():
        registry.get(name)  # raises, with a suggestion
    conversation = _Conversation(name, limit_s, on_outcome)
    conversation.conclude(_talk(name, [*registry.plugin_files()], conversation))
    return conversation.outcomes


def _beside(name: str) -> list[Path]:
    """NAME/NAME.py in the current folder, if that is where the method is."""
    path = Path(name) / f"{name}.py"
    known = not registry.is_name(name) or name in registry.names()
    return [path] if not known and path.is_file() else []


class _Conversation:
    """What the child has said so far, and what its silence means."""

    def __init__(self, name: str, limit_s: float, on_outcome: Callable[[Outcome], None] | None) -> None:
        self.name, self.on_outcome = name, on_outcome or (lambda outcome: None)
        self.outcomes: list[Outcome] = []
        self.current: int | None = None  # the check that is running
        self.since = time.monotonic()
        self.limit_s = limit_s
        self.deadline = self.since + START_S
        self.error: tuple[str, bool] | None = None  # (message, is usage): the child could not begin
        self.done = False

    def hear(self, line: bytes) -> None:
        said = json.loads(line)
        if "start" in said:
            if not self.outcomes:
                self.deadline = time.monotonic() + self.limit_s
            self.current, self.since = said["start"], time.monotonic()
        elif "outcome" in said:
            self._add(Outcome(**said["outcome"]))
            self.current = None
        elif "error" in said:
            self.error = said["error"], said["usage"]
        else:
            self.done = True

    def conclude(self, ending: str | None) -> None:
        """The child is gone: fill in what it did not say. ending: how, None if time was up.

        Raises:
            UsageError, PluginError: it never began.
        """
        if self.error is not None:
            raise (UsageError if self.error[1] else registry.PluginError)(self.error[0])
        if self.done:
            return
        begun = self.current is not None or bool(self.outcomes)
        if ending is None:
            ending = f"did not end within {self.limit_s if begun else START_S:.0f} s"
            ending += f"; {SLOW}" if begun else ""
        if not begun:
            raise registry.PluginError(f'method "{self.name}" is broken: importing it {ending}')
        broken_at = self.current or max(o.number for o in self.outcomes) + 1
        for number, title in TITLES.items():
            if number == broken_at:
                self._add(Outcome(number, title, False, f"{self.name} {ending}", time.monotonic() - self.since))
            elif number > broken_at:
                self._add(Outcome(number, title, None, f"not reached, check {broken_at} did not end", 0.0))

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.on_outcome(outcome)


def _talk(name: str, files: Sequence[Path], conversation: _Conversation) -> str | None:
    """Run the child to its end and say how it ended, or to the limit: None."""
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "bench.conformance.child", name, str(write_end), *map(str, files)]
    # its prints go to our stderr: stdout is for results
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=(write_end,),
        env=child_environment(),
        start_new_session=True,
    )
    os.close(write_end)
    try:
        return _ending(child) if _listen(read_end, conversation) else None
    finally:
        os.close(read_end)
        end_group(child)


def _listen(pipe: int, conversation: _Conversation) -> bool:
    """Hear whole lines until the pipe closes (True), the child says it is done (True), or time is up (False)."""
    buffer = b""
    while not conversation.done:
        left = conversation.deadline - time.monotonic()
        if left <= 0:
            return False
        if not select.select([pipe], [], [], left)[0]:
            continue
        chunk = os.read(pipe, 65536)
        if not chunk:
            return True
        *whole, buffer = (buffer + chunk).split(b"\n")
        for line in whole:
            conversation.hear(line)
    return True


def _ending(child: subprocess.Popen[bytes]) -> str:
    """How a child ended that said it was done or whose pipe is closed, as the end of a sentence."""
    try:
        return how_it_ended(child.wait(timeout=10))
    except subprocess.TimeoutExpired:
        return "stopped talking and went on"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 all passed, 1 some check failed, 2 usage."""
    parser = argparse.ArgumentParser(prog="python -m bench.conformance", description="Check a method's contract.")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--plugin", action="append", type=Path, default=[], metavar="FILE")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS")
    parser.add_argument("--json", action="store_true", help="print one JSON array of outcomes")
    given = parser.parse_args(argv)
    show = None if given.json else (lambda outcome: print(lines(given.name, [outcome])[0], flush=True))
    try:
        outcomes = run_check(given.name, plugins=given.plugin, limit_s=given.limit, on_outcome=show)
    except BenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.json:
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print(lines(given.name, outcomes)[-1])
    return int(failed(outcomes))
