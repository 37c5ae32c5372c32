"""The wheel holds what a user needs and nothing else; the repository holds no data sets, checkpoints or paths."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FILE = 2_000_000  # bytes; records of 10,000 examples are a tenth of this


def tracked() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from the tracked files alone: a leftover build/ folder would smuggle deleted modules in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if name.startswith(("bench/", "methods/", "results/published/", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", str(out)]
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_is_pure_python_and_holds_two_packages(wheel):
    assert wheel.filename and wheel.filename.endswith("-py3-none-any.whl")
    tops = {n.split("/")[0] for n in wheel.namelist()}
    assert {t for t in tops if not t.startswith("certbench-")} == {"bench", "methods"}


def test_the_wheel_holds_every_tracked_file_of_the_packages(wheel):
    names = set(wheel.namelist())
    missing = [n for n in tracked() if n.startswith(("bench/", "methods/")) and n not in names]
    assert missing == []


def test_the_wheel_carries_the_published_numbers(wheel):
    published = [n for n in tracked() if n.startswith("results/published/")]
    carried = [n for n in wheel.namelist() if "/share/certbench/published/" in n]
    assert len(published) >= 17 and len(carried) == len(published)


def test_the_wheel_gives_the_bench_command(wheel):
    entry = next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "bench = bench.cli:main" in wheel.read(entry).decode()


def test_no_tracked_file_is_large_or_a_checkpoint():
    large = [n for n in tracked() if (ROOT / n).is_file() and (ROOT / n).stat().st_size > LARGEST_FILE]
    assert large == [] and not [n for n in tracked() if n.endswith((".safetensors", ".pt", ".pth", ".ckpt"))]


def test_no_tracked_text_names_a_machine_or_a_home_folder():
    pattern = re.compile(r"/(work|home|root)/[a-z]")
    found = []
    for name in tracked():
        path = ROOT / name
        if path.suffix in {".npz", ".png", ".pdf"} or not path.is_file() or name == "tests/test_packaging.py":
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{name}: {m.group(0)}" for m in pattern.finditer(text) if "test" not in name.split("/")[0]]
    assert found == []
