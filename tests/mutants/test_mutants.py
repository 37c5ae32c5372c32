"""The catalogue of seeded faults still fits the code; the long version runs it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutant_catalogue", HERE / "catalogue.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module.MUTANTS
    del sys.modules[spec.name]


def test_every_mutant_applies_exactly_once(mutants):
    for mutant in mutants:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, f"{mutant.name}: its text stands {text.count(mutant.old)} times"
        assert mutant.new != mutant.old, mutant.name


def test_every_mutant_is_still_python(mutants):
    for mutant in mutants:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        compile(text.replace(mutant.old, mutant.new), mutant.name, "exec")


def test_mutants_have_names_of_their_own_and_tests_that_exist(mutants):
    assert len({m.name for m in mutants}) == len(mutants) >= 42
    for mutant in mutants:
        assert mutant.tests and all((ROOT / test.split("::")[0]).is_file() for test in mutant.tests), mutant.name


@pytest.mark.slow
def test_every_mutant_is_killed():
    done = subprocess.run([sys.executable, str(HERE / "run.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
