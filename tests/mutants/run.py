"""`make mutants`: apply every fault of the catalogue to a copy of the tree and see that a test notices.

Nothing is changed in the checkout. A fault counts as noticed only where a test fails or runs out of time: a copy that
cannot even be collected would be noticed by anybody. Exit code 1 if a fault survives or the unharmed tree fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: threads do not survive a fork

import pytest
import torch  # noqa: F401 (loaded once for all forks)
from catalogue import MUTANTS, Mutant

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = ("bench", "methods", "tests", "results/published", "pyproject.toml", "README.md", "constraints.txt")
LIMIT_S = 300.0  # per mutant; the unharmed tests of one take under a minute


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants to run [default: all]")
    parser.add_argument("--skip-baseline", action="store_true", help="do not run the tests on the unharmed tree first")
    asked = parser.parse_args()
    unknown = set(asked.names) - {m.name for m in MUTANTS}
    if unknown:
        parser.error(f"unknown mutant {sorted(unknown)[0]}; see tests/mutants/catalogue.py")
    chosen = [m for m in MUTANTS if not asked.names or m.name in asked.names]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        copy(tree)
        if not asked.skip_baseline:
            tests = tuple(dict.fromkeys(test for m in chosen for test in m.tests))
            code, said, seconds = run_tests(tree, tests, limit=LIMIT_S * 5)
            print(f"{'(unharmed)':42} {'ok' if code == 0 else 'FAILS: ' + said} ({seconds:.0f} s)", flush=True)
            if code:
                return 1
        verdicts = [judge(tree, mutant) for mutant in chosen]
    survived = [m.name for m, killed in zip(chosen, verdicts, strict=True) if not killed]
    print(
        f"{len(chosen) - len(survived)} of {len(chosen)} mutants killed" + "".join(f"; {n} SURVIVED" for n in survived)
    )
    return 1 if survived else 0


def copy(tree: Path) -> None:
    """What the tests need of the checkout, without compiled leftovers."""
    for part in PARTS:
        source, target = ROOT / part, tree / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)


def judge(tree: Path, mutant: Mutant) -> bool:
    """Whether a test notices; prints the row of the table."""
    path = tree / mutant.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(mutant.old) != 1:
        print(f"{mutant.name:42} STALE: its text stands {whole.count(mutant.old)} times in {mutant.file}", flush=True)
        return False
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, said, seconds = run_tests(tree, mutant.tests, limit=LIMIT_S)
    finally:
        path.write_text(whole, encoding="utf-8")
    killed = code == 1 or code == TIMED_OUT
    word = said if killed else "SURVIVED" if code == 0 else f"BROKEN (pytest ended with {code}: {said})"
    print(f"{mutant.name:42} {word} ({seconds:.0f} s)", flush=True)
    return killed


TIMED_OUT = -1


def run_tests(tree: Path, tests: tuple[str, ...], *, limit: float) -> tuple[int, str, float]:
    """pytest's exit code (TIMED_OUT for none), the first failure, and the seconds it took.

    In a fork, which has torch and pytest loaded already: importing them takes longer than most of these tests.
    """
    began, log = time.monotonic(), tree.parent / "log"
    child = os.fork()
    if not child:
        _be_pytest(tree, tests, log)
    status = None
    while status is None:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(found)
        elif time.monotonic() - began > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = TIMED_OUT
        else:
            time.sleep(0.02)
    text = log.read_text(encoding="utf-8", errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+\.py)(\S*)", text, re.MULTILINE)
    said = Path(failed[1]).name + failed[2] if failed else (text.strip().splitlines() or ["nothing was said"])[-1]
    return status, "the time limit" if status == TIMED_OUT else said, time.monotonic() - began


def _be_pytest(tree: Path, tests: tuple[str, ...], log: Path) -> NoReturn:
    """What the forked child does; it never comes back."""
    code = 70
    try:
        os.setpgid(0, 0)  # what the tests start is ended with them
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(tree)
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ["BENCH_KERNELS"] = "reference"  # a changed tree would compile its own kernels each time
        sys.dont_write_bytecode = True  # a stale .pyc of the same second and size would hide a mutant
        sys.path[:] = [str(tree), *(p for p in sys.path if Path(p).resolve() not in (ROOT, HERE))]
        import bench  # before an installed copy: what is tested is this tree

        if not str(bench.__file__).startswith(str(tree)):
            print("the copy of the tree is not what Python imports; is another certbench in its way?")
        else:
            code = int(pytest.main(["-x", "-rfE", "--tb=no", "--no-header", "-p", "no:cacheprovider", *tests]))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
