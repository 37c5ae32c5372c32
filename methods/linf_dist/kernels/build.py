"""Compile `native.cpp` at first use, keep the library in a private cache, load it and check it.

A wheel ships the source only; installing never compiles. The library is found by a key over the source, the flags, the
compiler's version and the processor's features, so a build is never reused where its instructions may not exist. It is
loaded only from a directory and a file that no other user can write, and only if the file's hash is the one in its
name; otherwise it is built afresh in a temporary directory for this process alone.

Environment: `BENCH_KERNELS=reference` never builds, `BENCH_KERNELS=native` turns every failure into an error,
`BENCH_HOME` holds the cache (`kernels` in it; default `~/.cache/certbench`), `CXX` is the compiler.
"""

import contextlib
import ctypes
import hashlib
import math
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from methods.linf_dist.kernels import reference

ABI_VERSION = 1  # of the C functions below: cb_abi_version() must agree
SOURCE = Path(__file__).with_name("native.cpp")

# Not -ffast-math: it drops the NaN checks, and older compilers then set flush-to-zero for the whole process.
BASE_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-w", "-shared",
              "-fPIC")
FLAG_SETS = (("-march=native", "-fopenmp"), ("-march=native",), ("-mavx2", "-mfma", "-fopenmp"), ("-fopenmp",), ())

COMPILE_TIMEOUT_S = 180  # 10-25 s on a free core
LOCK_TIMEOUT_S = 200  # a compilation by another process; after that build beside it, the loser of the race is harmless

LIST_MODES = (0, 1, 2)  # the library decides, never, always
SELF_TEST_TOLERANCE = 1e-4  # relative; far above rounding, far below any wrong kernel
RETURN_OK, RETURN_NO_MEMORY, RETURN_NON_FINITE, RETURN_UNSUPPORTED = range(4)


class KernelsUnavailable(RuntimeError):
    """Why there is no native library, in one line."""


@dataclass(frozen=True)
class Native:
    """A loaded library and what a record says of it."""

    lib: ctypes.CDLL
    source_sha256: str
    flags: str
    compiler: str
    isa: str


# ---------------------------------------------------------------------------------------------------------------------
# The compiler and the key


def compilers() -> list[list[str]]:
    """Commands to try, best first: `$CXX` (with its own flags) alone if set, else what PATH has."""
    chosen = os.environ.get("CXX")
    if chosen:
        command = shlex.split(chosen)
        return [command] if command and shutil.which(command[0]) else []
    return [[name] for name in ("g++", "c++", "clang++") if shutil.which(name)]


def _version(compiler: list[str]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailable(f"{compiler[0]} --version failed ({type(error).__name__})") from error
    lines = done.stdout.splitlines()
    return lines[0] if lines else "unknown"


def cpu_features() -> str:
    """What -march=native depends on: the sorted flags of the first core, or the platform's name for the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return " ".join(sorted(value.split()))
    except OSError:
        pass
    return f"{platform.machine()} {platform.processor()}"


def _key(source: bytes, flags: tuple[str, ...], version: str) -> str:
    parts = [source, " ".join(flags).encode(), version.encode(), cpu_features().encode(), str(ABI_VERSION).encode()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


# ---------------------------------------------------------------------------------------------------------------------
# The cache


def cache_dir() -> Path:
    """Where libraries are kept; not created here."""
    home = os.environ.get("BENCH_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "certbench") / "kernels"


def _is_private(info: os.stat_result) -> bool:
    return info.st_uid == os.geteuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def private_cache() -> Path | None:
    """The cache directory if nobody else can put a library there (created if missing), else None."""
    folder = cache_dir()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not stat.S_ISDIR(os.lstat(folder).st_mode) or not _is_private(os.lstat(folder)):
            return None
        for parent in folder.resolve().parents:  # who can rename a parent can replace the folder
            mode = parent.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return None
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    return folder


def _verified(path: Path) -> bool:
    """Whether `path` is a private plain file whose content has the hash in its name."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or not _is_private(info):
            return False
        return path.stem.endswith("-" + hashlib.sha256(file.read()).hexdigest())


def _cached(folder: Path, key: str) -> Path | None:
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _verified(path):
            return path
        with contextlib.suppress(OSError):
            path.unlink()
    return None


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One compilation at a time, so that the workers of a test run do not all compile."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: a lost race only costs time
        yield
        return
    with open(folder / "lock", "w") as file:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.1)
        yield  # closing the file releases the lock


def _compile(compiler: list[str], flags: tuple[str, ...], folder: Path, key: str) -> Path:
    """Build into `folder` under a name that carries the hash of the content; the rename is atomic."""
    handle, name = tempfile.mkstemp(prefix=".build-", suffix=".so", dir=folder)
    os.close(handle)
    try:
        done = subprocess.run([*compiler, *flags, "-o", name, str(SOURCE)], capture_output=True, text=True,
                              timeout=COMPILE_TIMEOUT_S, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
            raise KernelsUnavailable(f"{compiler[0]} failed: {lines[0].strip()[:200]}")
        with open(name, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
            os.fsync(file.fileno())
        os.chmod(name, 0o700)
        path = folder / f"{key}-{digest}.so"
        os.replace(name, path)
        return path
    except subprocess.TimeoutExpired as error:
        raise KernelsUnavailable(f"{compiler[0]} took more than {COMPILE_TIMEOUT_S} s") from error
    except OSError as error:
        raise KernelsUnavailable(f"{compiler[0]} could not be run or its result kept: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def _open(path: Path) -> ctypes.CDLL:
    """dlopen and declare. torch is imported by now: its OpenMP runtime serves this library too (one thread pool)."""
    try:
        lib = ctypes.CDLL(str(path))
        lib.cb_abi_version.restype = ctypes.c_int
        lib.cb_isa.restype = ctypes.c_char_p
        found = lib.cb_abi_version()
    except (OSError, AttributeError) as error:
        raise KernelsUnavailable(f"the built library does not load ({type(error).__name__})") from error
    if found != ABI_VERSION:
        raise KernelsUnavailable(f"the library has interface version {found}, this code wants {ABI_VERSION}")
    pointer, size, real, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
    lib.cb_dist.argtypes = [*[pointer] * 4, *[size] * 3, real, whole, whole]
    lib.cb_interval.argtypes = [*[pointer] * 5, *[size] * 3, whole, whole]
    lib.cb_dist_backward.argtypes = [*[pointer] * 6, *[size] * 3, real, whole, whole]
    lib.cb_inf_backward.argtypes = [*[pointer] * 4, *[size] * 3, whole]
    lib.cb_probe.argtypes, lib.cb_probe.restype = [size, whole], real
    return lib


def self_test(lib: ctypes.CDLL) -> None:
    """Distances, gradients and bounds of one small layer against the oracle; raises `KernelsUnavailable`."""
    n, i, o = 19, 70, 17
    ramp = torch.arange(n * i + o * i + n * o, dtype=torch.float64)
    values = (torch.sin(ramp * 12.9898) * 2).float()  # no global random state is touched
    x, w, g = (part.contiguous() for part in values.split([n * i, o * i, n * o]))
    x, w, g = x.view(n, i), w.view(o, i), g.view(n, o)
    y = torch.empty(n, o)
    code, dx, dw = torch.empty(n, o, dtype=torch.int32), torch.empty(n, i), torch.empty(o, i)
    gp, xp, wp, yp, dxp, dwp = (t.data_ptr() for t in (g, x, w, y, dx, dw))
    for p in (8.0, 20.3, 100.0, math.inf):
        result = lib.cb_dist(xp, wp, yp, code.data_ptr() if p == math.inf else None, n, i, o, p, 0, 1)
        if p == math.inf:
            result |= lib.cb_inf_backward(gp, code.data_ptr(), dxp, dwp, n, i, o, 1)
        else:
            result |= lib.cb_dist_backward(gp, xp, wp, yp, dxp, dwp, n, i, o, p, 0, 1)
        wanted = (reference.oracle_dist(x, w, p), *reference.oracle_grads(g, x, w, p))
        for got, want in zip((y, dx, dw), wanted, strict=True):
            if result or not (got - want).abs().max() <= SELF_TEST_TOLERANCE * want.abs().max():
                raise KernelsUnavailable(f"the library failed its self-test at p = {p}")
    _self_test_of_certificates(lib)


def _self_test_of_certificates(lib: ctypes.CDLL) -> None:
    """What class D stands on, bit for bit: distances and bounds at p = inf, with candidate lists and without.

    Large enough for full vector tiles and for lists; outliers as trained nets have them, and many ties.
    """
    n, i, o = 150, 200, 24
    ramp = torch.arange((n + o) * i, dtype=torch.float64)
    values = ((torch.sin(ramp * 78.233) * 16).round() / 8).float()
    x, w = values[: n * i].view(n, i), values[n * i :].view(o, i).clone()
    w[torch.arange(0, o, 2), torch.arange(0, o, 2)] -= 12
    lower, upper = (x - 0.3).contiguous(), (x + 0.3).contiguous()
    wanted = (x[:, None] - w[None]).abs().amax(-1), *reference.oracle_interval(lower, upper, w)
    y, low, high = (torch.empty(n, o) for _ in range(3))
    code = torch.empty(n, o, dtype=torch.int32)
    for lists in LIST_MODES:
        for codes in (None, code.data_ptr()):
            result = lib.cb_dist(x.data_ptr(), w.data_ptr(), y.data_ptr(), codes, n, i, o, math.inf, lists, 1)
            ends = low.data_ptr(), high.data_ptr()
            result |= lib.cb_interval(lower.data_ptr(), upper.data_ptr(), w.data_ptr(), *ends, n, i, o, lists, 1)
            if result or not all(map(torch.equal, (y, low, high), wanted)):
                raise KernelsUnavailable("the library failed its self-test of certificates")
            for made in (y, low, high):
                made.fill_(math.nan)


def build(compiler: list[str], flags: tuple[str, ...], *, quiet: bool = False) -> Native:
    """The library for one compiler and flag set, from the cache or compiled. Raises `KernelsUnavailable`."""
    source = SOURCE.read_bytes()
    version = _version(compiler)
    key = _key(source, flags, f"{' '.join(compiler)} {version}")
    folder = private_cache()
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="certbench-")))
        path = _cached(folder, key)
        if path is None:
            with _lock(folder):
                path = _cached(folder, key)  # another process may have built it meanwhile
                if path is None:
                    if not quiet:
                        print("certbench: compiling the distance kernels (once per machine, about 10 s)",
                              file=sys.stderr, flush=True)
                    path = _compile(compiler, flags, folder, key)
        lib = _open(path)
    self_test(lib)
    return Native(lib, hashlib.sha256(source).hexdigest(), " ".join(flags), version, lib.cb_isa().decode())


def build_any() -> Native:
    """The first compiler and flag set that work; `KernelsUnavailable` with the first failure's reason."""
    found = compilers()
    if not found:
        raise KernelsUnavailable("no C++ compiler ($CXX, g++, c++, clang++)")
    reasons = []
    for compiler in found:
        for flags in FLAG_SETS:
            try:
                return build(compiler, (*BASE_FLAGS, *flags))
            except KernelsUnavailable as error:
                reasons.append(str(error))
    raise KernelsUnavailable(reasons[0])


# ---------------------------------------------------------------------------------------------------------------------
# The choice, once per process

_guard = threading.Lock()
_choice: tuple[Native | None, str] | None = None
_forked = False


def _after_fork() -> None:
    global _guard, _forked
    _guard, _forked = threading.Lock(), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def choose() -> tuple[Native | None, str]:
    """(library, "") or (None, why not): decided at the first call, then fixed for the process."""
    global _choice
    if _choice is None:
        with _guard:
            if _choice is None:
                _choice = _choose()
    return _choice


def _choose() -> tuple[Native | None, str]:
    wanted = os.environ.get("BENCH_KERNELS", "")
    if wanted not in ("", "native", "reference"):
        raise ValueError(f"BENCH_KERNELS (={wanted!r}) must be native, reference or unset")
    try:
        if wanted == "reference":
            raise KernelsUnavailable("BENCH_KERNELS=reference")
        return build_any(), ""
    except KernelsUnavailable as error:
        if wanted == "native":
            raise RuntimeError(f"BENCH_KERNELS=native, but there are no native kernels: {error}") from error
        print(f"certbench: distances run in plain torch, 20 to 200 times slower than compiled: {error}",
              file=sys.stderr, flush=True)
        return None, str(error)


def threads() -> int:
    """Threads for the next call: torch's number, but 1 in a forked child, whose OpenMP pool did not survive."""
    return 1 if _forked else torch.get_num_threads()
