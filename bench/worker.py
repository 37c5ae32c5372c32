"""The process one cell runs in: reads a job as JSON from stdin, reports events on a pipe, ends with an exit code.

Imports as little as possible before the signal handlers stand, so that a stop is never lost.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from .errors import BenchError, one_line, place
from .progress import EventProgress

HOSTILE = 4  # exit code of a process told again to stop: the last saved state is what counts
AGAIN_S = 5.0  # a second signal sooner is the same stop: a whole process group was told, and the launcher passes it on


def main() -> None:
    """Entry point of `python -m bench.worker`."""
    asked = threading.Event()
    first = time.monotonic()

    def stop(signum: int, frame: Any) -> None:
        nonlocal first
        if not asked.is_set():
            first = time.monotonic()
            asked.set()
        elif time.monotonic() - first > AGAIN_S:
            os._exit(HOSTILE)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if hasattr(signal, "SIGUSR2"):  # Slurm's warning to every process of a job, a minute before it is cut short
        signal.signal(signal.SIGUSR2, stop)
    job = json.loads(sys.stdin.read())
    events = EventProgress(job["events"])
    try:
        record = _run(job, events, lambda: asked.is_set() or events.gone)
    except BenchError as error:
        events.send("failed", code=error.exit_code, message=str(error))
        raise SystemExit(error.exit_code) from None
    except BaseException as error:
        traceback.print_exc()
        events.send("failed", code=1, message=_unexpected(error))
        raise SystemExit(1) from None
    events.send("finished", path=str(record.path))


def _run(job: dict[str, Any], events: EventProgress, should_stop: Any) -> Any:
    from . import registry
    from .cell import reopen
    from .run import Options, run

    for path in job["plugins"]:
        registry.add_file(Path(path))
    planned = reopen(job["cell"])
    if planned.cell.id != job["cell"]["id"]:
        raise BenchError(f"the recipe of {planned.cell.label} changed while the run was starting; start it again")
    return run(planned, Options(**job["options"]), progress=events, should_stop=should_stop)


def _unexpected(error: BaseException) -> str:
    text = one_line(error)
    if "out of memory" in text.lower() or "can't allocate memory" in text.lower() or isinstance(error, MemoryError):
        return f"out of memory ({text[:120]}); try a smaller --set batch_size=..., or another --device"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return text + place(error)


if __name__ == "__main__":
    main()
