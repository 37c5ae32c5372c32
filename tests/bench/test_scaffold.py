"""`bench new-method`: the folder it writes is a plugin that works as it stands, from a file and installed by pip."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from bench import Eps, margin, registry, scaffold
from bench.conformance import failed, lines, main
from bench.conformance.child import outcome_of
from bench.conformance.outcome import TITLES
from bench.conformance.subject import Subject
from bench.data import load
from bench.errors import UsageError
from bench.progress import Progress
from bench.train import train

ROOT = Path(scaffold.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("new")
    scaffold.new_method("my_method", parent)
    return parent / "my_method"


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    found = registry.Registry("no_such_package", "no.such.group")
    found.add_file(folder / "my_method.py")
    return Subject(found.get("my_method"), [])


def test_folder_holds_the_method_its_packaging_and_its_test(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["my_method.py", "pyproject.toml", "test_my_method.py"]


def test_method_is_short_and_imports_only_bench_and_torch(folder: Path) -> None:
    text = (folder / "my_method.py").read_text()
    assert len(text.splitlines()) <= 55
    imported = {node.module.split(".")[0] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert imported == {"bench", "torch", "dataclasses"}


@pytest.mark.parametrize("number", TITLES)
def test_method_keeps_the_contract_as_it_stands(number: int, subject: Subject) -> None:
    outcome = outcome_of(number, subject)
    assert outcome.ok is not False, outcome.detail


def test_method_learns_digits_and_certifies_more_than_half(subject: Subject) -> None:
    """What a newcomer sees first should work well: 90 % and 69 % on the validation images when this was written."""
    data, recipe = load("digits"), subject.recipe
    net = subject.build()
    train(
        subject.method,
        recipe,
        net,
        data.train,
        spec=data.spec,
        seed=0,
        eps=recipe.radius,
        store=None,
        progress=Progress(quiet=True),
    )
    x, y = data.val.pixels(slice(None)), data.val.labels
    with torch.no_grad():
        bound = subject.method.margin_bound(net.eval(), x, y, Eps("0.1")).lower
        clean = margin(net(x), y)
    assert float((clean > 0).float().mean()) > 0.85 and float((bound > 0).float().mean()) > 0.6


def test_check_finds_the_folder_without_being_told_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`bench new-method my_method && bench check my_method`, in a process of its own."""
    fresh = registry.Registry("no_such_package", "no.such.group")
    for function in ("names", "get", "add_file", "plugin_files"):
        monkeypatch.setattr(registry, function, getattr(fresh, function))
    monkeypatch.chdir(folder.parent)
    assert main(["my_method"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert len(out) == len(TITLES) + 1 and out[-1].startswith("my_method  keeps the contract")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Method", "is no name for a method: snake_case"),
        ("../up", "is no name for a method"),
        ("", "is no name for a method"),
        ("a" * 41, "at most 40 characters"),
        ("\x1b[31m", r"\x1b[31m"),
        ("linf_dist", 'there is a method "linf_dist" already'),
        ("lambda", "taken in Python"),
        ("random", "taken in Python"),
        ("torch", "taken in Python"),
        ("nul", "taken in Python"),
    ],
)
def test_name_that_would_cause_trouble_is_refused_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        scaffold.new_method(name, tmp_path)
    assert message in str(caught.value) and str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.py").write_text("years of it")
    with pytest.raises(UsageError, match="mine exists already; choose another name or remove it"):
        scaffold.new_method("mine", tmp_path)
    assert (tmp_path / "mine" / "work.py").read_text() == "years of it"


def test_missing_parent_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be made"):
        scaffold.new_method("mine", tmp_path / "nowhere")


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError, match="No space left on device"):
        scaffold.new_method("mine", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_advice_names_the_commands() -> None:
    advice = scaffold.advice("mine")
    assert "bench check mine" in advice and "pip install -e mine" in advice


def test_scaffold_imports_no_torch() -> None:
    code = "import sys, bench.scaffold; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_installed_by_pip_it_is_found_and_keeps_the_contract(tmp_path: Path) -> None:
    """In a fresh environment that sees this one's packages, away from the checkout."""
    scaffold.new_method("my_method", tmp_path)
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "outside.pth").write_text("\n".join([*(p for p in sys.path if p.endswith("site-packages")), str(ROOT)]))
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = ["-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, *install, str(tmp_path / "my_method")], check=True, env=plain, timeout=200)
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import json; from bench import registry; "
        "print(json.dumps([[entry.name, entry.origin, entry.error] for entry in registry.load_all()]))"
    )
    shown = subprocess.run([python, "-c", code], check=True, env=plain, cwd=tmp_path / "elsewhere", capture_output=True)
    assert ["my_method", "entry point", None] in json.loads(shown.stdout)
    checked = subprocess.run(
        [python, "-m", "bench.conformance", "my_method"],
        env=plain,
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_written_test_passes_and_can_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's own test, with the check itself stood in for: it must look at what run_check says."""
    spec = importlib.util.spec_from_file_location("written_test", folder / "test_my_method.py")
    assert spec is not None and spec.loader is not None
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    asked = []
    good, bad = [_outcome(True)], [_outcome(False)]
    monkeypatch.setattr(written, "run_check", lambda name, plugins: asked.append((name, plugins)) or good)
    written.test_keeps_the_contract()
    assert asked == [("my_method", [folder / "my_method.py"])]
    monkeypatch.setattr(written, "run_check", lambda name, plugins: bad)
    with pytest.raises(AssertionError, match="breaks the contract"):
        written.test_keeps_the_contract()
    assert failed(bad) and lines("my_method", bad)


def _outcome(ok: bool):  # type: ignore[no-untyped-def]
    from bench.conformance import Outcome

    return Outcome(5, TITLES[5], ok, "as told", 0.0)
