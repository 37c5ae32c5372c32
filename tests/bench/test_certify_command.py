"""`bench certify`, on a tiny run from end to end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from bench import Eps, lirpa, planning, posthoc
from bench.certification import OUTCOMES
from bench.data.dataset import Split

needed = pytest.mark.skipif(not lirpa.is_installed(), reason=f"auto_LiRPA is not installed: {lirpa.INSTALL}")


def call(*arguments: Any) -> Result:
    from bench.cli import main

    before = torch.get_num_threads()
    try:
        return CliRunner().invoke(main, list(map(str, arguments)))
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run."""
    place = tmp_path_factory.mktemp("certify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(planning, "estimate", lambda cells, **k: {})
        few = ("--set", "epochs=3", "--device", "cpu", "--threads", 1)
        done = call("run", "-m", "standard", "-d", "digits", *few, *at(place))
    assert done.exit_code == 0, done.output
    return place


def at(folder: Path) -> tuple[Any, ...]:
    return "--results", folder / "results", "--runs-dir", folder / "runs"


def run_of(folder: Path) -> str:
    (run,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    return str(run["cell"])


def certify(folder: Path, *arguments: Any) -> Result:
    return call("certify", run_of(folder), "--device", "cpu", "--threads", 1, *arguments, *at(folder))


def test_json_names_both_sides_and_every_outcome(folder: Path) -> None:
    done = certify(folder, "--certifier", "ibp", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["method"], told["certifier"], told["cls"]) == ("standard", "ibp", "F32")
    assert sum(told[name] for name in OUTCOMES) == told["n"] == told["n_test"] == 360


@needed
def test_a_better_certifier_certifies_more_and_the_report_shows_both_sides(folder: Path, tmp_path: Path) -> None:
    done = certify(folder, "--certifier", "crown", "--n", 60)
    assert done.exit_code == 0, done.output
    assert "on the first 60 of 360 examples" in done.stdout
    made = call("report", "--results", folder / "results", "--out", tmp_path)
    assert made.exit_code == 0, made.output
    table = (tmp_path / "tables" / "posthoc.csv").read_text(encoding="utf-8").splitlines()
    header = table[0].split(",")
    crown = next(line for line in table if "crown (R)" in line)
    values = dict(zip(header[-15:], crown.rsplit(",", len(header) - 1)[-15:], strict=True))
    assert float(values["certified"]) > float(values["own"])


def test_what_a_time_limit_does_not_reach_is_a_timeout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posthoc, "_choose", lambda *_: posthoc.Engine("fake", lambda *_: time.sleep(30)))  # type: ignore
    told = json.loads(certify(folder, "--certifier", "crown_ibp", "--n", 30, "--time-limit", "0.2s", "--json").stdout)
    assert told["timeout"] == 30 - told["misclassified"]
    assert told["certified"] == told["unknown"] == 0


def test_too_little_memory_for_one_example_is_out_of_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(posthoc, "_choose", lambda *_: posthoc.Engine("fake", bound))
    told = json.loads(certify(folder, "--certifier", "crown", "--n", 10, "--json").stdout)
    assert told["out_of_memory"] == 10 - told["misclassified"]


def test_a_certificate_that_the_records_attacks_contradict_is_unsound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound that says yes to everything: what the probe misses, the record's own attacks know."""
    from bench import Bound

    def bound(x: torch.Tensor, y: torch.Tensor) -> Bound:
        return Bound(torch.full((len(y),), 1e-9, dtype=torch.float64), "crown", "R")

    monkeypatch.setattr(posthoc, "_choose", lambda *_: posthoc.Engine("fake", bound))
    monkeypatch.setattr(posthoc, "_points", lambda *_: iter(()))
    done = certify(folder, "--certifier", "crown", "--n", 200, "--json")
    told = json.loads(done.stdout)
    assert told["unsound"] > 0
    assert "broken by the record's attacks" in told["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nosuch", "--certifier", "ibp"), 1, 'no record "nosuch"'),
        (("RUN", "--certifier", "psychic"), 2, "choose one of ibp, crown_ibp, crown, alpha_crown"),
        (("RUN", "--certifier", "ibp", "--n", 361), 2, "has 360 examples"),
        (("RUN", "--certifier", "crown", "--engine", "own"), 2, "has no crown bound of its own"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, arguments: tuple[Any, ...], code: int, words: str) -> None:
    named = [run_of(folder) if a == "RUN" else a for a in arguments]
    done = call("certify", *named, "--device", "cpu", "--threads", 1, *at(folder))
    assert done.exit_code == code
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@needed
def test_a_net_that_auto_lirpa_cannot_bound_is_named_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """As a distance net is: scatter is no operation it knows."""

    class Scatters(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)
            return torch.as_tensor(self.last(flat.scatter(1, flat.argsort(1), flat)))

    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.arange(3), torch.arange(3), 256)
    with pytest.raises(lirpa.Unsupported, match="cannot bound this network"):
        posthoc.certify_with(Scatters(), split, "crown", eps=Eps("0.1"))
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_without_auto_lirpa_the_error_names_the_command_that_installs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lirpa, "is_installed", lambda: False)
    lirpa.load.cache_clear()
    done = certify(folder, "--certifier", "alpha_crown")
    assert done.exit_code == 1
    assert lirpa.INSTALL in done.stderr


def test_weights_that_are_gone_are_named(folder: Path, tmp_path: Path) -> None:
    name = run_of(folder)
    done = call("certify", name, "--certifier", "ibp", "--results", folder / "results", "--runs-dir", tmp_path)
    assert done.exit_code == 1
    assert "holds no trained weights" in done.stderr
