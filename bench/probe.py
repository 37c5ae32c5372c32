"""Whether importing a third party's plugin is survivable, tried out in a process of its own. Imports no torch.

An exception on import, sys.exit included, is caught where it happens. A hang, os._exit or a crash is not, and one
installed plugin of that kind would take every `bench list methods` along.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .environment import child_environment

LIMIT_S = 60.0  # torch alone takes up to 20 s to import on a busy machine
_ALIVE = "alive after all imports"
_SCRIPT = f"""
import os, sys
from bench.registry import Registry
package, group, names, *files = sys.argv[1:]
found = Registry(package, group)
for file in files:
    found.add_file(file)
for name in names.split():
    try:
        found.get(name)
    except BaseException:
        pass
os.write(1, b"{_ALIVE}")
os._exit(0)
"""


def importing(
    names: Sequence[str], *, package: str, group: str, files: Sequence[Path] = (), limit_s: float = LIMIT_S
) -> str | None:
    """None if these methods can be imported, be it with an exception; else what their import does to a process."""
    command = [sys.executable, "-c", _SCRIPT, package, group, " ".join(names), *map(str, files)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        start_new_session=True,
    ) as child:
        try:
            output, _ = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"importing it does not end within {limit_s:.0f} s"
        finally:
            end_group(child)
    return None if output.endswith(_ALIVE.encode()) else f"importing it {how_it_ended(child.returncode)}"


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a child that leads its own session, and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def how_it_ended(code: int) -> str:
    """A process's return code as the end of a sentence."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"crashed the process ({signal.Signals(-code).name})"
    return f"ended the process (exit code {code})"
