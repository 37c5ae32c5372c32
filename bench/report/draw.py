"""Figures as bytes: matplotlib's Agg, SVG and PDF back ends, no clock, no global state, no user settings.

Drawing takes most of the time of a report, so a Painter shares it with worker processes where there are cores.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import fmt
from .figures import DRAW, Spec

_HERE = Path(__file__).parent
STYLE = _HERE / "style.mplstyle"
ENOUGH = 8  # figures that make starting a worker worth its second of imports
_META: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_OPTIONS: dict[str, dict[str, Any]] = {"png": {"pil_kwargs": {"compress_level": 1}}}  # twice as fast, 8 % larger
_DIGITS = re.compile(r"(?<=[ML C])-?\d+\.\d{3,}|(?<=[\" ][xy]=\")-?\d+\.\d{3,}")  # 0.01 pt cannot be seen


def matplotlib_version() -> str:
    """Of the library that would draw (without importing it); figures of another version may differ in their bytes."""
    return importlib.metadata.version("matplotlib")


@cache
def code_hash() -> str:
    """Changes with whatever decides how a specification is drawn."""
    digest = hashlib.sha256(matplotlib_version().encode())
    for file in (_HERE / "draw.py", *sorted((_HERE / "figures").glob("*.py")), STYLE):
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


class Painter:
    """Draws figures, in worker processes where that pays: `start` hands them out, `finish` draws the rest and collects.

    The workers are plain `python -m bench.report.worker`: no fork of a process with threads, no guard in the caller's
    script. A worker that fails costs time only, its figures are drawn here.
    """

    def __init__(self, formats: Sequence[str], jobs: int | None = None) -> None:
        self.formats = tuple(formats)
        self.jobs = jobs if jobs is not None else min(_cores(), 4)
        self._own: list[Spec] = []
        self._shares: list[tuple[subprocess.Popen[bytes], list[Spec]]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._warm: list[subprocess.Popen[bytes]] = []

    def warm(self) -> None:
        """Start workers before there is work, so that they import matplotlib while records are read."""
        self._warm = [self._spawn() for _ in range(self.jobs - 1)]

    def start(self, specs: Sequence[Spec]) -> None:
        """Hand out the work and return at once."""
        workers = self.jobs - 1 if len(specs) >= ENOUGH else 0
        parts = workers * 2 + 1  # of three figures a single worker gets two: we have tables to make meanwhile
        shares: list[list[Spec]] = [[] for _ in range(workers)]
        for at, spec in enumerate(specs):
            slot = at % parts
            (shares[slot // 2] if slot < workers * 2 else self._own).append(spec)
        if workers:
            self._folder = tempfile.TemporaryDirectory(prefix="bench-figures-")
        for share in shares:
            self._shares.append((self._worker(share), share))

    def _worker(self, share: Sequence[Spec]) -> subprocess.Popen[bytes]:
        assert self._folder is not None
        worker = self._warm.pop() if self._warm else self._spawn()
        task = {
            "folder": self._folder.name,
            "formats": self.formats,
            "specs": [{k: getattr(s, k) for k in ("name", "kind", "title", "alt", "data")} for s in share],
        }
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps(task).encode())
            worker.stdin.close()
        except OSError:  # it died; `finish` notices
            pass
        return worker

    def _spawn(self) -> subprocess.Popen[bytes]:
        root = str(_HERE.parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "bench.report.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env,
        )  # fmt: skip

    def finish(self) -> dict[str, dict[str, bytes]]:
        """Every figure: name -> format -> bytes."""
        found = {spec.name: render(spec, self.formats) for spec in self._own}
        for worker, share in self._shares:
            worker.wait()
            for spec in share:
                files = {f: Path(self._folder.name, f"{spec.name}.{f}") for f in self.formats} if self._folder else {}
                done = worker.returncode == 0 and all(file.is_file() for file in files.values())
                found[spec.name] = (
                    {f: file.read_bytes() for f, file in files.items()} if done else render(spec, self.formats)
                )
        return found

    def close(self) -> None:
        """End what still runs and remove what it wrote."""
        for worker in [*self._warm, *(worker for worker, _ in self._shares)]:
            if worker.stdin and not worker.stdin.closed:
                worker.stdin.close()
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        if self._folder:
            self._folder.cleanup()


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def render(spec: Spec, formats: Sequence[str]) -> dict[str, bytes]:
    """One figure: format -> bytes."""
    if "MPLCONFIGDIR" not in os.environ and not os.access(Path.home(), os.W_OK):
        os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="bench-mpl-")  # matplotlib would print two lines about it
    import matplotlib  # 0.6 s, and only who draws needs it

    with matplotlib.rc_context(fname=str(STYLE)):
        figure = DRAW[spec.kind](spec.data)
        found = {}
        for form in formats:
            out = io.BytesIO()
            figure.savefig(out, format=form, metadata=_META[form], **_OPTIONS.get(form, {}))
            found[form] = _accessible(out.getvalue(), spec) if form == "svg" else out.getvalue()
    return found


def _accessible(svg: bytes, spec: Spec) -> bytes:
    """Title and description into the SVG, where screen readers look for them; fewer digits, no trailing spaces."""
    text = svg.decode()
    at = text.index(">", text.index("<svg ")) + 1
    words = f"\n <title>{fmt.html(spec.title)}</title>\n <desc>{fmt.html(spec.alt)}</desc>"
    head = text[: at - 1].replace("<svg ", '<svg role="img" ', 1)
    body = _DIGITS.sub(lambda m: m.group()[: m.group().index(".") + 3], re.sub(r"[ \t]+\n", "\n", text[at:]))
    return (head + ">" + words + body).encode()
