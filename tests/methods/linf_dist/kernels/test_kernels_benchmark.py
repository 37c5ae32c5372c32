"""The command `bench kernels`: its rows, and that a wrong kernel shows in them."""

import importlib
import math

import pytest
import torch
from torch import Tensor

from methods.linf_dist import kernels
from methods.linf_dist.kernels import ops

benchmark = importlib.import_module("methods.linf_dist.kernels.benchmark")  # the package's `benchmark` is its `run`

KEYS = {"device", "pass", "p", "batch", "n_in", "n_out", "inputs", "seconds", "gops", "ratio_to_cdist",
        "ratio_to_reference", "max_rel_error", "floor_fraction"}
ERROR = 3e-5  # float32 gradients at p = 20; see test_kernels_api.py
SMALL = [benchmark.Case(what, p, 9, 40, 6, kind) for what, p, kind in
         [("forward", math.inf, "gaussian"), ("forward_backward", 20, "identity"), ("bounds", math.inf, "gaussian")]]


def test_rows_have_the_promised_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and the reports read them by name."""
    monkeypatch.setattr(benchmark, "cases", lambda: SMALL)
    rows = kernels.benchmark(seconds=1000)  # a limit, not a duration
    assert [row["pass"] for row in rows] == ["forward", "forward_backward", "bounds"]
    for row in rows:
        assert row.keys() == KEYS
        assert isinstance(row["max_rel_error"], float) and row["max_rel_error"] < ERROR
        assert row["batch"] == 9 and isinstance(row["p"], str)


def test_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without time only the first case runs: a slow machine gets a short table, not a long wait."""
    monkeypatch.setattr(benchmark, "cases", lambda: SMALL)
    assert len(benchmark.run(seconds=0)) == 1


def test_a_wrong_kernel_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check must be able to fail: one wrong weight in one output."""
    right = ops.dist

    def wrong(x: Tensor, w: Tensor, p: float) -> Tensor:
        return right(x, w + torch.tensor(0.01) * (torch.arange(len(w)) == len(w) - 1)[:, None], p)

    monkeypatch.setattr(benchmark.ops, "dist", wrong)
    for case in SMALL[:2]:
        assert benchmark.max_rel_error(case, *benchmark.inputs(case, "cpu")) > ERROR


def test_cases_cover_every_path() -> None:
    """p = 8, even, real, large and infinite exponents, both kinds of inputs, all three passes, in about 30 rows."""
    chosen = benchmark.cases()
    assert {c.p for c in chosen} >= {8, 20, 20.3, 100, 1000, math.inf} and len(chosen) <= 32
    assert {c.what for c in chosen} == {"forward", "forward_backward", "bounds"}
    assert {c.inputs for c in chosen} == {"gaussian", "identity"}
