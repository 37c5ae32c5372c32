"""Every vice that a plugin can have is found, by the check that is there for it, in one line."""

from __future__ import annotations

import json
import locale
import os
import random
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import registry
from bench.conformance import TITLES, Outcome, failed, lines, run_check
from bench.conformance.child import outcome_of
from bench.conformance.parent import main
from bench.conformance.subject import Subject
from bench.conformance.surroundings import Surroundings

# A sound method as small as can be; every vice below is one replacement in this text.
VIRTUOUS = """
import os, random, sys
import numpy as np
import torch
from dataclasses import dataclass
from torch import nn
from bench import Bound, Losses, Method, Recipe, margin, register

class Layer(nn.Linear):
    def forward(self, z):
        w = self.weight
        return nn.functional.linear(z, w / w.abs().sum(1, keepdim=True).clamp(min=1), self.bias)

class Net(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.flat, self.last = nn.Flatten(), Layer(data.pixels, data.classes)

    def forward(self, x):
        return self.last(self.flat(x))

class Base(Method):
    name, title = "vice", "Vice"

    def recipes(self):
        yield Recipe(dataset="synthetic", eps="0.1", preset="quick", source="ours", epochs=3, lr=0.01)

    def build(self, data, recipe):
        return Net(data)

    def loss(self, net, x, y, step):
        short = (1.0 - margin(net(x), y)).clamp(min=0).mean()
        return Losses(short, {"short": short.detach()})

    def margin_bound(self, net, x, y, eps):
        gap = margin(net(x), y)
        return Bound(gap - 2 * float(eps), certificate="lipschitz", cls="R")

@register
class Vice(Base):
    name, title = "vice", "Vice"
    # HERE
"""

VICES = {
    name: (int(number), phrase, code)
    for name, number, phrase, code in re.findall(
        r"^=== (\w+) (\d+) (.+)\n((?:(?!===).*\n)+)", Path(__file__).with_name("vices.txt").read_text(), re.MULTILINE
    )
}

EXTRAS = """
class Double(nn.Module):
    def forward(self, z): return z.double()

class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def forward(self, z): return z * self.factor

class Zero(nn.Module):
    def forward(self, z): return z.zero_()

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(4))
    def forward(self, z): return z @ self.w
"""


def with_vice(code: str) -> str:
    """The virtuous plugin's text with this code in the class."""
    text = VIRTUOUS.replace("    # HERE", textwrap.indent(code, "    "))
    return text.replace("class Base", EXTRAS + "\nclass Base")


@pytest.fixture(autouse=True)
def everything_put_back() -> Iterator[None]:
    """Some vices change the process for good."""
    kept_rng, kept_random, kept_numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    threads, folder, term = torch.get_num_threads(), os.getcwd(), signal.getsignal(signal.SIGTERM)
    relu, environment, place = torch.nn.functional.relu, dict(os.environ), locale.setlocale(locale.LC_ALL)
    with warnings.catch_warnings():
        yield
    torch.set_rng_state(kept_rng)
    random.setstate(kept_random)
    np.random.set_state(kept_numpy)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, term)
    locale.setlocale(locale.LC_ALL, place)
    torch.nn.functional.relu = relu


def subject_of(folder: Path, text: str) -> Subject:
    """The method of a plugin text, loaded as `bench check --plugin` loads it."""
    (folder / "vice.py").write_text(text)
    found = registry.Registry("no_such_package", "no.such.group")
    found.add_file(folder / "vice.py")
    before = Surroundings.now()
    method = found.get("vice")
    return Subject(method, before.changes(of_import=True))


@pytest.mark.parametrize("vice", VICES)
def test_vice_is_found_by_its_check_in_one_line(vice: str, tmp_path: Path) -> None:
    number, phrase, code = VICES[vice]
    subject = subject_of(tmp_path, with_vice(code))
    outcome = outcome_of(number, subject)
    assert outcome.ok is False and re.search(phrase, outcome.detail), outcome.detail
    assert outcome.detail.isprintable() and "vice" in outcome.detail


def test_exact_bound_is_not_taken_for_unsound(tmp_path: Path) -> None:
    """The linear net's true minimum over the ball, attained by the descent: the tightest bound there can be."""
    code = VICES["exact_bound_and_a_little_more"][2]
    assert " + 3e-4" in code
    outcome = outcome_of(5, subject_of(tmp_path, with_vice(code.replace(" + 3e-4", ""))))
    assert outcome.ok, outcome.detail


def test_method_that_sheds_its_guard_is_found(tmp_path: Path) -> None:
    unguarded = (
        "\nVice.margin_bound = lambda self, n, x, y, e: Bound(margin(n(x.float()), y) - 2 * float(e), 'a', 'R')\n"
    )
    outcome = outcome_of(11, subject_of(tmp_path, VIRTUOUS + unguarded))
    assert outcome.ok is False and "takes float64 images" in outcome.detail


@pytest.fixture(scope="module")
def virtuous(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(tmp_path_factory.mktemp("virtuous"), VIRTUOUS)


@pytest.mark.parametrize("number", TITLES)
def test_sound_method_passes(number: int, virtuous: Subject) -> None:
    outcome = outcome_of(number, virtuous)
    assert outcome.ok is not False, outcome.detail


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("torch.manual_seed(1)", "torch's global generator"),
        ("torch.set_default_dtype(torch.float64)", "the default dtype"),
        ("os.chdir('/')", "the working directory"),
        ("torch.set_grad_enabled(False)", "grad mode"),
        ("nn.functional.relu = abs", "torch.nn.functional.relu"),
    ],
)
def test_side_effect_of_the_import_is_found(code: str, what: str, tmp_path: Path) -> None:
    try:
        outcome = outcome_of(7, subject_of(tmp_path, VIRTUOUS.replace("class Net", f"{code}\nclass Net")))
    finally:
        torch.set_grad_enabled(True)
    assert outcome.ok is False and f"importing it changes {what}" in outcome.detail


def test_outcome_lines_carry_the_name_and_the_verdict() -> None:
    outcomes = [Outcome(1, "builds", True, "fine", 0.1), Outcome(2, "loss", False, "it: bad", 0.2)]
    shown = lines("it", outcomes)
    assert all(line.startswith("it ") for line in shown)
    assert "breaks the contract: check 2" in shown[-1] and failed(outcomes)


def built_ins() -> list[str]:
    return [name for name in registry.names() if registry.is_name(name)]


@pytest.mark.parametrize("number", [2, 8, 9])
@pytest.mark.parametrize("name", built_ins())
def test_methods_of_the_house_keep_the_contract_where_that_is_quickly_seen(name: str, number: int) -> None:
    outcome = outcome_of(number, Subject(registry.Registry().get(name), []))
    assert outcome.ok, outcome.detail


@pytest.mark.slow
@pytest.mark.parametrize("name", built_ins())
def test_methods_of_the_house_keep_the_whole_contract(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("names", "get", "add_file", "plugin_files"):
        monkeypatch.setattr(registry, function, getattr(registry.Registry(), function))
    outcomes = run_check(name)
    assert not failed(outcomes), "\n".join(lines(name, outcomes))
    assert sum(outcome.seconds for outcome in outcomes) < 120


# --- the process of its own -------------------------------------------------------------------------------------------


def run(folder: Path, name: str, code: str, limit_s: float = 60.0) -> list[Outcome]:
    path = folder / f"{name}.py"
    path.write_text(with_vice(code).replace('"vice"', f'"{name}"'))
    return run_check(name, plugins=[path], limit_s=limit_s)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks in the current folder first")
def test_the_code_that_is_checked_is_this_one_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the user's with packages called as ours."""
    for name in ("bench", "methods"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    assert not failed(run(tmp_path, "elsewhere", ""))


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugin files of these tests are nobody else's."""
    fresh = registry.Registry("no_such_package", "no.such.group")
    for function in ("names", "get", "load_all", "add_file", "plugin_files"):
        monkeypatch.setattr(registry, function, getattr(fresh, function))


def test_plugin_that_crashes_the_process_costs_only_its_check(tmp_path: Path) -> None:
    outcomes = run(tmp_path, "crashes", "def build(self, d, r): import ctypes; ctypes.string_at(0)")
    assert [o.number for o in outcomes] == list(TITLES)
    assert outcomes[0].ok is False and outcomes[0].detail == "crashes crashed the process (SIGSEGV)"
    assert all(o.ok is None for o in outcomes[1:])


def test_plugin_that_hangs_is_ended_at_the_limit(tmp_path: Path) -> None:
    outcomes = run(tmp_path, "hangs", "def build(self, d, r):\n    while True: pass", limit_s=2.0)
    assert outcomes[0].ok is False and "hangs did not end within 2 s" in outcomes[0].detail


def test_plugin_that_exits_on_import_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "leaves.py"
    path.write_text('import os\nos._exit(3)\n@register\nclass Leaves: name = "leaves"\n')
    assert main(["leaves", "--plugin", str(path)]) == 1
    assert capsys.readouterr().err == ('method "leaves" is broken: importing it ended the process (exit code 3)\n')


def test_unknown_method_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nobody", "--json"]) == 2
    assert 'no method "nobody"' in capsys.readouterr().err


def test_plugin_that_exits_and_prints_spoils_no_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 in the middle is no success, and stdout carries one JSON array, whatever the plugin writes."""
    path = tmp_path / "exits.py"
    text = with_vice("def loss(self, n, x, y, s): print('noise', flush=True); os._exit(0)")
    path.write_text(text.replace('"vice"', '"exits"'))
    assert main(["exits", "--plugin", str(path), "--json"]) == 1
    out, err = capfd.readouterr()
    first, second, *others = json.loads(out)
    assert first["ok"] and second["ok"] is False and second["detail"] == "exits ended the process (exit code 0)"
    assert len(others) == 9 and all(row["ok"] is None for row in others) and "noise" in err
