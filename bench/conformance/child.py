"""The side that may be broken: loads the method and runs the checks one by one, each failure a line of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable

from .. import registry
from ..errors import BenchError, UsageError, one_line, place, printable
from .catalogue import CHECKS
from .outcome import TITLES, Outcome
from .subject import Breach, NotApplicable, Subject
from .surroundings import Surroundings


def check_method(
    name: str, *, on_start: Callable[[int], None] | None = None, on_outcome: Callable[[Outcome], None] | None = None
) -> list[Outcome]:
    """See `bench.conformance.check`."""
    before = Surroundings.now()
    method = registry.get(name)
    subject = Subject(method, imported=before.changes(of_import=True))
    outcomes = []
    for number in TITLES:
        if on_start:
            on_start(number)
        outcomes.append(outcome_of(number, subject))
        if on_outcome:
            on_outcome(outcomes[-1])
    return outcomes


def outcome_of(number: int, subject: Subject) -> Outcome:
    """One check, in this process."""
    started = time.monotonic()
    ok, detail = _verdict(CHECKS[number], subject)
    return Outcome(number, TITLES[number], ok, printable(detail, 400), time.monotonic() - started)


def _verdict(run: Callable[[Subject], str], subject: Subject) -> tuple[bool | None, str]:
    try:
        return True, run(subject)
    except NotApplicable as reason:
        return None, str(reason)
    except Breach as breach:
        return False, f"{subject.name}: {breach}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the plugin raises, SystemExit included, is a failed check
        return False, f"{subject.name}: {one_line(error)}{place(error)}"


def serve(name: str, pipe: int, files: list[str]) -> None:
    """Speak JSON lines into the pipe: {"start": n}, {"outcome": {...}}, at the end {"done": true}."""

    def say(**what: object) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    try:
        for file in files:
            registry.add_file(file)
        check_method(
            name,
            on_start=lambda number: say(start=number),
            on_outcome=lambda outcome: say(outcome=dataclasses.asdict(outcome)),
        )
    except BenchError as error:
        say(error=str(error), usage=isinstance(error, UsageError))
    else:
        say(done=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
