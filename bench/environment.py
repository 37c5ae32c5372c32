"""Facts about this machine and this code, for records and for `bench doctor`; no host, user or folder names."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import os
import platform
import subprocess
import sys
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import UsageError, one_line

if TYPE_CHECKING:
    import torch

KERNEL_MODULES = ("methods.linf_dist.kernels",)  # the one place where the suite knows who has kernels of its own
ROOT = Path(__file__).resolve().parent.parent  # holds bench/ and methods/: a checkout or site-packages
_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve")  # change kernels
_WIDEST = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("sve", "SVE"), ("asimd", "NEON"))


def cache_home() -> Path:
    """`$BENCH_HOME`, else `~/.cache/certbench`.

    Raises:
        UsageError: there is no home folder to speak of.
    """
    home = os.environ.get("BENCH_HOME")
    if home:
        return Path(home).expanduser()
    try:
        return Path.home() / ".cache" / "certbench"
    except RuntimeError as error:
        raise UsageError("no home folder is known; choose where runs go with --runs-dir or $BENCH_HOME") from error


def cpu_count() -> int:
    """Cores this process may use: those it may run on, or a container's share of time if that is less."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control groups, or "max": no limit
        return count


def default_threads(jobs: int = 1) -> int:
    """Threads per worker: what OMP_NUM_THREADS says, else an equal share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) > 0 else max(1, cpu_count() // max(1, jobs))


def wait_briefly(environ: MutableMapping[str, str]) -> None:
    """Let waiting OpenMP threads spin for part of a millisecond, not for many; to be set before torch loads.

    On free cores it changes no time; where other work wants the cores too, libgomp's default makes a run of many small
    steps several times slower, because threads that wait keep those that work from running.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", "30000")


def child_environment() -> dict[str, str]:
    """A child process's: this very code first on its path, whatever folder the user stands in."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def worker_environment(threads: int) -> dict[str, str]:
    """The same for a cell on so many threads."""
    made = child_environment() | {"OMP_NUM_THREADS": str(threads)}
    wait_briefly(made)
    return made


def resolve_device(name: str) -> str:
    """`auto` becomes `cuda:0` where there is a GPU, else `cpu`; other names are checked.

    Raises:
        UsageError: no such device on this machine.
    """
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if available else "cpu"
    if name == "cpu":
        return "cpu"
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index == "" or index.isdigit()):
        raise UsageError(f"--device {name}: write auto, cpu, cuda or cuda:N")
    if int(index or 0) >= available:
        has = f"{available} CUDA devices (from 0)" if available else "no CUDA device that this torch can use"
        raise UsageError(f"--device {name}: this machine has {has}; `bench doctor` says more")
    return f"cuda:{int(index or 0)}"


def gpu_count() -> int:
    """CUDA devices that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def environment(device: torch.device) -> dict[str, Any]:
    """The record's "environment", without the switches that the evaluation adds."""
    import numpy as np
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{sys.platform}-{platform.machine()}",
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "kernels": kernels_in_use(),
        "cpu_flags": cpu_flags(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What times were measured on: only those of one machine may be compared."""
    import torch

    return {"device": device_name(device), "threads": torch.get_num_threads()}


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`, or `CPU: Intel(R) Xeon(R) Processor (AVX-512)`."""
    if device.type == "cuda":
        import torch

        return str(torch.cuda.get_device_name(device))
    flags = cpu_flags()
    widest = next((f" ({shown})" for flag, shown in _WIDEST if flag in flags), "")
    return f"CPU: {_cpu_model()}{widest}"


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_model() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The instruction sets that decide which kernels run, in a fixed order."""
    info = _cpuinfo()
    have = set((info.get("flags") or info.get("Features") or "").split())
    return [flag for flag in _FLAGS if flag in have]


def kernel_modules(*, load: bool = False) -> list[ModuleType]:
    """Kernel packages of the methods: those already imported, or all with `load`; broken ones are left out."""
    found = []
    for name in KERNEL_MODULES:
        if load:
            try:
                importlib.import_module(name)
            except Exception:
                continue  # a broken kernel package is a broken method: `bench list methods` says so
        if name in sys.modules:
            found.append(sys.modules[name])
    return found


def kernels_in_use() -> dict[str, Any]:
    """What every kernel package says about itself (`kernel_info()`), by method."""
    facts: dict[str, Any] = {}
    for module in kernel_modules():
        info = getattr(module, "kernel_info", None)
        owner = module.__name__.split(".")[1]
        try:
            facts[owner] = info() if info else {}
        except Exception as error:
            facts[owner] = {"error": one_line(error)}
    return facts


def code_version() -> dict[str, Any]:
    """The record's "code": version, git commit, whether it is dirty (null: git cannot tell), hash of the sources."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", "bench", "methods")
    return {
        "version": __version__,
        "commit": commit or None,
        "dirty": None if commit is None or status is None else bool(status),
        "source_sha256": source_sha256(),
    }


def training_code(method: object) -> dict[str, Any]:
    """`code_version` and, for a method that is not of this repository, the hash of the file that defines it."""
    return {**code_version(), "method_sha256": method_sha256(method)}


def method_sha256(method: object) -> str | None:
    """sha256 of the file that defines a plugin's class; None for a built-in, which `source_sha256` covers."""
    try:
        path = Path(inspect.getfile(type(method))).resolve()
        if any(path.is_relative_to(ROOT / package) for package in ("bench", "methods")):
            return None
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, TypeError):  # made at run time, in a notebook
        return None


def _git(*arguments: str) -> str | None:
    """Output of a git command in the checkout, or None where there is none (or no git)."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def source_sha256() -> str:
    """sha256 over path and content of every Python, C++ and CUDA source of bench/ and methods/."""
    digest = hashlib.sha256()
    for package in ("bench", "methods"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".cpp", ".cu", ".h") and "__pycache__" not in path.parts:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(ROOT).as_posix()}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()
