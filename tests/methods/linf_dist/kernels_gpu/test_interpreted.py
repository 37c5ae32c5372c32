"""The checks of `checks.py` on the CPU, in Triton's interpreter: one subprocess, as the switch is read at import."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch's CUDA wheels")

CHECKS = Path(__file__).with_name("checks.py")
ROOT = Path(__file__).parents[4]
NAMES = [node.name for node in ast.parse(CHECKS.read_text()).body
         if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]


@pytest.fixture(scope="module")
def outcome() -> dict[str, str]:
    """{check: "" or its traceback}."""
    # Only what a subprocess needs to start: no PYTHONWARNINGS, no settings of the tests around it.
    env = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
           **{k: os.environ[k] for k in ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR") if k in os.environ}}
    done = subprocess.run([sys.executable, str(CHECKS)], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(900)  # 25 s on an idle core; the first test waits for all
@pytest.mark.parametrize("name", NAMES)
def test_the_interpreted_kernels_pass(name: str, outcome: dict[str, str]) -> None:
    assert outcome[name] == "", outcome[name]
