"""The build and its cache: private, verified, built once, and torch instead of an error where it cannot be."""

import hashlib
import math
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from methods.linf_dist.kernels import build, dist, kernel_info

BACKENDS_RTOL = 5e-6  # two roundings of a sum of 90 powers and a root

ROOT = Path(build.__file__).resolve().parents[3]
PROCESS_TIMEOUT_S = 250  # a process that has to import torch on a busy machine
REPORT = "from methods.linf_dist.kernels import kernel_info; print(kernel_info()['backend'])"


@pytest.fixture(scope="session")
def compiled() -> Path:
    """A real library from this machine's cache."""
    try:
        build.build_any()
    except build.KernelsUnavailable as error:
        pytest.skip(str(error))
    folder = build.private_cache()
    if folder is None:
        pytest.skip("this machine's cache is not private")
    return max(folder.glob("*.so"), key=lambda path: path.stat().st_mtime)


class Stub:
    """A compiler that is a shell script, and a cache of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.script = folder, folder / "stub-cxx"
        monkeypatch.setenv("CXX", str(self.script))
        monkeypatch.setenv("BENCH_HOME", str(folder))
        monkeypatch.delenv("BENCH_KERNELS", raising=False)

    def does(self, action: str) -> "Stub":
        """After --version, run `action` with the output's path in $2; every call is counted."""
        self.script.write_text(
            "#!/bin/sh\n"
            "[ \"$1\" = --version ] && { echo stub 1.0; exit 0; }\n"
            f"echo called >> '{self.folder}/calls'\n"
            "while [ \"$1\" != -o ]; do shift; done\n"
            f"{action}\n"
        )
        self.script.chmod(0o755)
        return self

    @property
    def calls(self) -> int:
        log = self.folder / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    @property
    def cache(self) -> Path:
        return self.folder / "kernels"


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(tmp_path, monkeypatch)


@pytest.fixture
def copying(stub: Stub, compiled: Path) -> Stub:
    """A stub that needs a moment to copy a real library."""
    return stub.does(f"sleep 0.2; cp '{compiled}' \"$2\"")


def test_built_once_when_two_start_together(copying: Stub) -> None:
    """Test workers start together: each compiling would take minutes, a half-written library would crash."""
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: build.build_any(), range(4)))) == 4
    build.build_any()
    assert copying.calls == 1
    assert stat.S_IMODE(copying.cache.stat().st_mode) == 0o700
    assert not list(copying.cache.glob(".build-*"))


@pytest.mark.slow
def test_built_once_by_two_processes(copying: Stub) -> None:
    """As above, with the real thing."""
    pair = [subprocess.Popen([sys.executable, "-c", REPORT], cwd=ROOT, text=True, stdout=subprocess.PIPE)
            for _ in range(2)]
    for process in pair:
        out, _ = process.communicate(timeout=PROCESS_TIMEOUT_S)
        assert process.returncode == 0 and out.strip() == "native"
    assert copying.calls == 1


def test_corrupted_library_is_rebuilt(copying: Stub) -> None:
    """One flipped byte: the hash in the name no longer fits, and it is not loaded."""
    build.build_any()
    library = next(copying.cache.glob("*.so"))
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.unlink()  # it is mapped into this process: write another file, not into the mapping
    library.write_bytes(bytes(content))
    build.build_any()
    assert copying.calls == 2
    fresh = next(copying.cache.glob("*.so"))
    assert fresh.stem.endswith(hashlib.sha256(fresh.read_bytes()).hexdigest())


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_cache_that_others_can_write_is_not_used(copying: Stub, mode: int) -> None:
    """Whoever can write there could make this process load anything: build for this process alone instead."""
    copying.cache.mkdir()
    copying.cache.chmod(mode)
    build.build_any()
    assert not list(copying.cache.iterdir())


def test_symlinked_cache_and_library_are_not_used(copying: Stub, tmp_path: Path) -> None:
    """A link may lead where others write."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    copying.cache.symlink_to(elsewhere)
    build.build_any()
    assert not list(elsewhere.iterdir())
    target = tmp_path / f"key-{hashlib.sha256(b'x').hexdigest()}.so"
    target.write_bytes(b"x")
    link = tmp_path / "link" / target.name
    link.parent.mkdir()
    link.symlink_to(target)
    target.chmod(0o600)
    assert build._verified(target) and not build._verified(link)


def test_world_writable_parent_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can rename a parent can put another cache in its place (a sticky one, like /tmp, is fine)."""
    parent = tmp_path / "open"
    parent.mkdir()
    monkeypatch.setenv("BENCH_HOME", str(parent))
    assert build.private_cache() == parent / "kernels"
    parent.chmod(0o777)
    assert build.private_cache() is None
    parent.chmod(0o1777)
    assert build.private_cache() == parent / "kernels"


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the fall-back, beside that which announces a compilation."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "compiling" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_missing_compiler_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine with python only must still train, and say why it is slow."""
    for name, value in (("PATH", str(tmp_path)), ("BENCH_HOME", str(tmp_path)), ("CXX", ""), ("BENCH_KERNELS", "")):
        monkeypatch.setenv(name, value)
    library, reason = build._choose()
    assert library is None and "no C++ compiler" in reason and reason in one_line(capsys)
    monkeypatch.setenv("BENCH_KERNELS", "native")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        build._choose()


def test_failing_compiler_is_one_line(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    """The compiler's first error is the reason; its pages of output are not shown."""
    stub.does("echo In file x >&2; echo 'x.cpp:1: error: no such thing' >&2; echo more >&2; exit 1")
    assert build._choose()[0] is None
    assert "no such thing" in one_line(capsys)


@pytest.mark.parametrize("action", ["echo not a library > \"$2\"", "kill -9 $$", ":"])
def test_useless_compiler_falls_back(stub: Stub, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that does not load, a compiler that is killed, an empty result."""
    stub.does(action)
    assert build._choose()[0] is None
    one_line(capsys)


def test_the_environment_chooses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compiled: Path
) -> None:
    """`reference` never builds, `native` insists, anything else is a mistake."""
    monkeypatch.setenv("BENCH_KERNELS", "reference")
    assert build._choose() == (None, "BENCH_KERNELS=reference")
    one_line(capsys)
    monkeypatch.setenv("BENCH_KERNELS", "native")
    assert build._choose()[0] is not None
    monkeypatch.setenv("BENCH_KERNELS", "nativ")
    with pytest.raises(ValueError, match="nativ"):
        build._choose()


def test_reference_and_native_agree(monkeypatch: pytest.MonkeyPatch, compiled: Path) -> None:
    """The same layer on a machine without a compiler: the same bits at p = inf, rounding elsewhere."""
    x, w = torch.randn(20, 90), torch.randn(12, 90)
    for p in (8.0, 20.3, 1000.0, math.inf):
        monkeypatch.setattr(build, "_choice", (build.build_any(), ""))
        native = dist(x, w, p)
        monkeypatch.setattr(build, "_choice", (None, "test"))
        assert kernel_info()["backend"] == "reference" and kernel_info()["reason"] == "test"
        plain = dist(x, w, p)
        assert torch.equal(native, plain) if math.isinf(p) else torch.allclose(native, plain, rtol=BACKENDS_RTOL)


def test_self_test_refuses_wrong_numbers(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miscompiled kernel is found before it is used."""
    lib = build._open(compiled)
    build.self_test(lib)
    right = build.reference.oracle_dist
    monkeypatch.setattr(build.reference, "oracle_dist", lambda x, w, p: right(x, w, p) * 1.001)
    with pytest.raises(build.KernelsUnavailable, match="self-test"):
        build.self_test(lib)


FAULTS = {
    "the last feature is left out by the path without code": (
        "KERNEL run_inf(const float *xt, const float *w, const int32_t *list, int n, vf *state) {\n",
        "KERNEL run_inf(const float *xt, const float *w, const int32_t *list, int n, vf *state) {\n    n -= V == 8;\n",
    ),
    "lists leave out what is two percent above the bound": (
        "int32_t *list, int32_t *seg) {\n    int count = 0;",
        "int32_t *list, int32_t *seg) {\n    threshold *= 1.02f;\n    int count = 0;",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_self_test_finds_a_fault_of_the_paths_that_certify(
    fault: str, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are compiled and run: what class D stands on is exactly what the self-test must reach."""
    source = build.SOURCE.read_text()
    old, new = FAULTS[fault]
    assert source.count(old) == 1
    faulty = tmp_path / "native.cpp"
    faulty.write_text(source.replace(old, new))
    monkeypatch.setattr(build, "SOURCE", faulty)
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    with pytest.raises(build.KernelsUnavailable, match="self-test of certificates"):
        build.build(build.compilers()[0], (*build.BASE_FLAGS, *build.FLAG_SETS[0]))


def test_interface_version_is_checked(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale library called with new arguments would write anywhere."""
    monkeypatch.setattr(build, "ABI_VERSION", build.ABI_VERSION + 1)
    with pytest.raises(build.KernelsUnavailable, match="interface version"):
        build._open(compiled)


def test_import_neither_builds_nor_changes_the_process(tmp_path: Path) -> None:
    """Importing a method must be free: no compiler, no output, no flushing of subnormal numbers."""
    code = "import torch, methods.linf_dist.kernels\nprint((torch.tensor([1e-40]) * 0.5).item() != 0)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "BENCH_HOME": str(tmp_path)}, cwd=ROOT,
                          capture_output=True, text=True, timeout=PROCESS_TIMEOUT_S, check=False)
    assert done.stdout.strip() == "True" and done.stderr == "" and not (tmp_path / "kernels").exists()
