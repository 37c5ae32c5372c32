"""`bench doctor`: what this machine has and lacks, one line per fact, with the command that mends it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .environment import cache_home, cpu_count, cpu_flags, device_name, kernel_modules, kernels_in_use
from .errors import BenchError, one_line, printable
from .files import check_writable

NEEDED = ("torch", "numpy", "pandas", "matplotlib", "seaborn", "click", "safetensors", "jsonschema", "jinja2", "PIL")
OPTIONAL = {  # module -> (distribution, what it is for, how to get it)
    "torchvision": ("torchvision", "downloads of data sets", "pip install torchvision (the version that fits torch)"),
    "auto_LiRPA": ("auto_LiRPA", "CROWN certificates", "pip install --no-deps auto-LiRPA==0.3"),
    "sklearn": ("scikit-learn", "a cross-check of the digits", "pip install scikit-learn"),
    "pyautoattack": ("pyautoattack", "AutoAttack", "pip install pyautoattack==0.2.0"),
    "submitit": ("submitit", "Slurm", "pip install submitit"),
}
LOW_DISK_BYTES = 2_000_000_000  # states of a paper's net


@dataclass(frozen=True)
class Fact:
    """One line: ok True (fine), False (something does not work), None (absent, and nothing needs it)."""

    topic: str
    ok: bool | None
    text: str

    @property
    def line(self) -> str:
        mark = {True: "ok  ", False: "BAD ", None: "-   "}[self.ok]
        return f"{mark}{self.topic}: {self.text}"


def facts(results: Path, data_root: Path | None = None) -> Iterator[Fact]:
    """Everything worth knowing, in the order in which a newcomer needs it."""
    yield Fact("certbench", True, f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    yield from _packages()
    if importlib.util.find_spec("torch") is None:
        return
    yield from _devices()
    yield from _kernels()
    yield from _methods()
    yield from _data(data_root)
    yield from _folders(results)


def _packages() -> Iterator[Fact]:
    for name in NEEDED:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            yield Fact(name, False, f"cannot be imported ({one_line(error)}); install certbench again")
            continue
        if name in ("torch", "numpy"):
            yield Fact(name, True, str(getattr(module, "__version__", "?")))
    for name, (distribution, purpose, mend) in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Fact(name, None, f"not installed; only for {purpose}: {mend}")
            continue
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "present"
        yield Fact(name, True, f"{version}, for {purpose}")
    import methods

    from .environment import ROOT

    where = Path(str(methods.__file__)).resolve().parent.parent
    if where != ROOT:
        yield Fact("methods", False, f"another package of this name comes first on the path ({where}); ours is hidden")


def _devices() -> Iterator[Fact]:
    import torch

    flags = " ".join(cpu_flags()) or "no vector extensions known"
    cores = cpu_count()
    yield Fact("cpu", True, f"{device_name(torch.device('cpu'))}, {cores} cores for this process, {flags}")
    threads = torch.get_num_threads()
    yield Fact("threads", True, f"torch uses {threads}; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    if not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "no usable driver or device"
        yield Fact("gpu", None, f"none ({built}); everything runs on the CPU")
        return
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        yield Fact(
            "gpu", True, f"cuda:{i} {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, CUDA {torch.version.cuda}"
        )


def _kernels() -> Iterator[Fact]:
    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if compiler:
        yield Fact("compiler", True, f"{compiler}, for the fast kernels (built once)")
    else:
        yield Fact("compiler", None, "no C++ compiler; kernels fall back to plain torch (Debian: apt install g++)")
    kernel_modules(load=True)
    for owner, info in kernels_in_use().items():
        said = ", ".join(f"{k} {v}" for k, v in info.items() if v not in ("", None) and "sha" not in k and k != "flags")
        yield Fact("kernels", "error" not in info, f"{owner}: {printable(said, 200)}")


def _methods() -> Iterator[Fact]:
    from . import registry

    entries = registry.load_all()
    good = [e.name for e in entries if e.error is None]
    yield Fact("methods", bool(good), f"{len(good)}: {', '.join(good)}")
    for entry in entries:
        if entry.error is not None:
            yield Fact("method", False, f"{entry.name} ({entry.origin}): {entry.error}")


def _data(data_root: Path | None) -> Iterator[Fact]:
    from .listing import datasets

    rows = datasets(data_root)
    here = [row["name"] for row in rows if row["here"]]
    away = [row["name"] for row in rows if not row["here"]]
    yield Fact("data", True, f"found: {', '.join(here)}")
    if away:
        fetched = [name for name in away if name != "tinyimagenet"]
        how = f"; {', '.join(fetched)}: downloaded when first used" if fetched else ""
        yield Fact("data", None, f"not found: {', '.join(away)}{how} (--data-root or $BENCH_DATA names a folder)")


def _folders(results: Path) -> Iterator[Fact]:
    try:
        runs = cache_home() / "runs"
    except BenchError as error:
        yield Fact("runs", False, str(error))
    else:
        yield _folder("runs", runs, "--runs-dir")
    yield _folder("results", results, "--results")


def _folder(topic: str, folder: Path, option: str) -> Fact:
    """Whether a folder, or the nearest one above it that exists, can be written."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        check_writable(there, option)
    except BenchError as error:
        return Fact(topic, False, str(error))
    free = shutil.disk_usage(there).free
    low = f"; a paper's net needs {LOW_DISK_BYTES / 1e9:.0f} GB" if free < LOW_DISK_BYTES else ""
    return Fact(topic, not low, f"{folder}, {free / 1e9:.1f} GB free{low}")


def as_json(found: list[Fact]) -> list[dict[str, Any]]:
    """The facts as flat objects."""
    return [{"topic": f.topic, "ok": f.ok, "text": f.text} for f in found]
