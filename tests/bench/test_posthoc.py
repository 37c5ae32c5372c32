"""Certifying finished nets: every example has one outcome, and each outcome comes from what its name says."""

from __future__ import annotations

import contextlib
import json
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import Bound, Eps, lirpa, margin, posthoc, registry
from bench.data.dataset import Split
from bench.errors import BenchError, UsageError
from bench.posthoc import OUTCOMES, Engine, certify_with, conv_mode
from methods.nets import ReluNet

needed = pytest.mark.skipif(not lirpa.is_installed(), reason=f"auto_LiRPA is not installed: {lirpa.INSTALL}")
R = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "methods" / "conftest.py")))
EPS = Eps("1/999")
N = 24


def made(kind: str = "mlp", count: int = N) -> tuple[ReluNet, Split]:
    """A random net and images it classifies as labelled, but for every fourth."""
    net, (x, _) = R.make_net(kind), R.make_images(kind, count)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    y[::4] = (y[::4] + 1) % 5
    return net, Split((x * 255).round().to(torch.uint8), y, torch.arange(count), 256)


def fake(monkeypatch: pytest.MonkeyPatch, bound: Callable[[Tensor, Tensor], Tensor], cls: str = "R") -> None:
    """Make every certifier this one."""

    def work(x: Tensor, y: Tensor) -> Bound:
        return Bound(bound(x, y).double(), "fake", cls)

    monkeypatch.setattr(posthoc, "_choose", lambda *_: Engine("fake", work))


def names(result: posthoc.Posthoc) -> list[str]:
    return [OUTCOMES[code] for code in result.outcome]


def test_own_intervals_certify_what_the_method_certifies() -> None:
    net, split = made()
    method = registry.get("ibp")
    result = certify_with(net, split, "ibp", eps=EPS, method=method)
    x, y = split.pixels(slice(None)), split.labels
    lower = method.margin_bound(net, x, y, EPS).lower.numpy()
    right = (margin(net(x).detach(), y) > 0).numpy()
    assert (result.certified == (right & (lower > 0))).all()
    assert result.certified.any()
    assert result.summary["engine"] == "own"
    assert result.summary["cls"] == "F32"


def test_every_example_has_an_outcome_and_the_summary_counts_them() -> None:
    net, split = made()
    result = certify_with(net, split, "crown_ibp", eps=Eps("0.01"), method=registry.get("standard"))
    assert sum(result.summary["counts"].values()) == N
    assert result.count("misclassified") == N // 4
    assert result.count("certified") + result.count("unknown") == N - N // 4
    assert json.loads(json.dumps(result.summary)) == result.summary


def test_a_bound_that_fails_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made()
    fake(monkeypatch, lambda x, y: torch.full((len(y),), -1.0))
    result = certify_with(net, split, "crown", eps=EPS)
    assert set(names(result)) == {"misclassified", "unknown"}


def test_a_bound_above_the_margin_at_the_image_is_unsound(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made()
    fake(monkeypatch, lambda x, y: margin(net(x), y) + 0.1)
    assert set(names(certify_with(net, split, "crown", eps=EPS))) == {"misclassified", "unsound"}


def test_a_bound_that_a_point_of_the_ball_contradicts_is_unsound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean margin is no lower bound over a wide ball, and the probe must find that out."""
    net, split = made()
    fake(monkeypatch, lambda x, y: margin(net(x), y) * 0.999)
    result = certify_with(net, split, "crown", eps=Eps("0.3"))
    assert result.count("unsound") > 0.9 * (N - result.count("misclassified"))


def test_a_bound_above_the_margin_of_a_point_is_unsound_though_nothing_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lower bound must lie below every margin in the ball, not only have its sign."""
    net, split = made()
    fake(monkeypatch, lambda x, y: margin(net(x), y) * 0.999, "F32")
    result = certify_with(net, split, "crown", eps=Eps("1/255"))
    assert result.count("unsound") > 0.9 * (N - result.count("misclassified"))


def test_the_probe_goes_down_the_margin_where_random_points_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made()
    x, y = split.pixels(slice(None)), split.labels
    *_, last = posthoc._points(net, x, y, Eps("8/255"), 256)
    steps = len(posthoc.DESCENT)
    points = list(posthoc._points(net, x, y, Eps("8/255"), 256))
    assert len(points) == 2 * posthoc.PROBES + steps
    with torch.no_grad():
        random = torch.stack([margin(net(z), y) for z in points[:-steps]]).amin(0)
        assert (margin(net(last), y) <= random + 1e-6).float().mean() > 0.9


def test_bounds_of_class_r_within_rounding_of_zero_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made()
    for bound, cls, expected in ((1e-9, "R", N - N // 4), (1e-9, "F32", 0)):
        fake(monkeypatch, lambda x, y, bound=bound: torch.full((len(y),), bound), cls)
        summary = certify_with(net, split, "crown", eps=Eps("0")).summary
        assert (summary["n_borderline"], summary["cls"]) == (expected, cls)


def test_a_late_answer_counts_as_a_timeout_where_no_signal_can_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=8)

    def bound(x: Tensor, y: Tensor) -> Tensor:
        time.sleep(0.05)
        return torch.full((len(y),), 1e-9)

    fake(monkeypatch, bound)
    monkeypatch.setattr(posthoc, "_time_limit", lambda seconds: contextlib.nullcontext())
    result = certify_with(net, split, "crown", eps=EPS, example_limit_s=0.001, batch_size=1)
    assert result.count("timeout") == 6 and result.count("certified") == 0


def test_rounding_of_a_class_r_bound_is_not_called_unsound(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made()
    fake(monkeypatch, lambda x, y: margin(net(x), y) + 1e-9)
    assert certify_with(net, split, "crown", eps=Eps("0")).count("unsound") == 0
    fake(monkeypatch, lambda x, y: margin(net(x), y) + 1e-9, "F32")
    assert certify_with(net, split, "crown", eps=Eps("0")).count("unsound") == N - N // 4


def test_a_slow_example_is_a_timeout_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=8)
    slow = split.pixels(slice(None))[1]

    def bound(x: Tensor, y: Tensor) -> Tensor:
        if any(torch.equal(image, slow) for image in x):
            time.sleep(30)
        return torch.full((len(y),), -1.0)

    fake(monkeypatch, bound)
    began = time.monotonic()
    result = certify_with(net, split, "crown", eps=EPS, example_limit_s=0.3, batch_size=4)
    assert time.monotonic() - began < 20
    assert names(result) == ["misclassified", "timeout", "unknown", "unknown"] + ["misclassified"] + ["unknown"] * 3


def test_what_the_whole_limit_does_not_reach_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=8)

    def bound(x: Tensor, y: Tensor) -> Tensor:
        time.sleep(0.3)
        return torch.full((len(y),), -1.0)

    fake(monkeypatch, bound)
    result = certify_with(net, split, "crown", eps=EPS, limit_s=0.5, batch_size=1)
    assert result.count("unknown") >= 1
    assert result.count("timeout") >= 1
    assert result.count("unknown") + result.count("timeout") == 6


def test_the_whole_limit_counts_what_earlier_processes_took(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=8)
    fake(monkeypatch, lambda x, y: torch.full((len(y),), 1e-9))
    monkeypatch.setattr(posthoc.Kept, "elapsed", 90.0)
    left = [certify_with(net, split, "crown", eps=Eps("0"), limit_s=limit).count("timeout") for limit in (60.0, 1e4)]
    assert left == [6, 0]


def test_a_certifier_that_turns_a_switch_loses_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made()

    def hostile(x: Tensor, y: Tensor) -> Tensor:
        torch.set_float32_matmul_precision("medium")
        return torch.full((len(y),), -1.0)

    fake(monkeypatch, hostile, "F32")
    summary = certify_with(net, split, "crown", eps=EPS).summary
    assert summary["cls"] == "R"
    assert any("class lowered" in note for note in summary["notes"])


def test_a_call_cut_by_the_whole_limit_is_not_begun_again_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=8)
    calls = []

    def bound(x: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        time.sleep(30)
        return torch.full((len(y),), -1.0)

    fake(monkeypatch, bound)
    began = time.monotonic()
    result = certify_with(net, split, "crown", eps=EPS, limit_s=0.5, batch_size=6)
    assert time.monotonic() - began < 20
    assert result.count("timeout") == 6 and calls == [6]


def test_a_methods_own_key_error_is_not_taken_for_a_missing_bound() -> None:
    net, split = made(count=8)

    class Broken:
        name = "broken"

        def posthoc_bound(self, *_: Any) -> Bound:
            raise KeyError("a bug of its author")

    with pytest.raises(KeyError, match="a bug of its author"):
        certify_with(net, split, "crown", eps=EPS, method=Broken())  # type: ignore[arg-type]


def test_an_example_too_big_for_the_memory_is_its_own_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=8)
    big = split.pixels(slice(None))[2]

    def bound(x: Tensor, y: Tensor) -> Tensor:
        if any(torch.equal(image, big) for image in x):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1e15")
        return torch.full((len(y),), -1.0)

    fake(monkeypatch, bound)
    result = certify_with(net, split, "crown", eps=EPS, batch_size=8)
    assert names(result)[2] == "out_of_memory"
    assert result.count("unknown") == 5


def test_any_other_failure_ends_the_run_instead_of_becoming_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=4)

    def bound(x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    fake(monkeypatch, bound)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        certify_with(net, split, "crown", eps=EPS)


def test_nan_bounds_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net, split = made(count=4)
    fake(monkeypatch, lambda x, y: torch.full((len(y),), torch.nan))
    with pytest.raises(BenchError, match="not numbers"):
        certify_with(net, split, "crown", eps=EPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"certifier": "crwon"}, "--certifier crwon: choose one of ibp, crown_ibp, crown, alpha_crown"),
        ({"certifier": "ibp", "engine": "x"}, "--engine x: choose one of"),
        ({"certifier": "ibp", "engine": "own"}, "a network without its method has no ibp bound of its own"),
    ],
)
def test_wrong_requests_are_one_line(arguments: dict[str, Any], message: str) -> None:
    net, split = made(count=4)
    with pytest.raises(UsageError, match=message):
        certify_with(net, split, eps=EPS, **arguments)


def test_patches_are_for_plain_convolutional_chains_only() -> None:
    assert [conv_mode(R.make_net(kind).layers) for kind in ("mlp", "conv_small", "resnext")] == [
        "matrix",
        "patches",
        "matrix",
    ]


@needed
@pytest.mark.parametrize("kind", ["mlp", "conv_small", "cnn7_bn_all"])
def test_certifiers_through_auto_lirpa_order_as_theory_says(kind: str) -> None:
    """Better certifiers certify supersets, and none certifies less than our rigorous intervals."""
    net, split = made(kind, 12)
    own = certify_with(net, split, "ibp", eps=EPS, method=registry.get("ibp"))
    results = [certify_with(net, split, name, eps=EPS, engine="auto_lirpa") for name in ("ibp", "crown_ibp", "crown")]
    assert all(result.summary["cls"] == "R" and result.summary["engine"].startswith("auto_LiRPA") for result in results)
    previous = own
    for result in results[:2]:
        assert (result.lower >= previous.lower - 1e-9).all()
        previous = result
    assert not (own.certified & ~results[0].certified).any()
    kept = np.isfinite(own.lower)
    assert results[2].lower[kept].mean() >= results[1].lower[kept].mean() - 1e-9
    assert not any(result.count("unsound") for result in results)


@needed
def test_alpha_crown_works_inside_the_exact_evaluation() -> None:
    """Gradients are off there, and alpha-CROWN needs them."""
    net, split = made("mlp", 8)
    plain = certify_with(net, split, "crown", eps=EPS, engine="auto_lirpa")
    best = certify_with(net, split, "alpha_crown", eps=EPS, engine="auto_lirpa", iterations=5)
    kept = np.isfinite(best.lower)
    assert (best.lower >= plain.lower - 1e-9)[kept].all()
    assert best.summary["iterations"] == 5


@needed
def test_a_network_of_a_plugin_needs_nothing_but_torch_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    x, _ = R.make_images("mlp", 8)
    split = Split((x * 255).round().to(torch.uint8), net(x).argmax(dim=1), torch.arange(8), 256)
    result = certify_with(net, split, "crown", eps=EPS)
    assert result.count("certified") > 0
    assert result.summary["trained_with"] is None


@needed
def test_certifying_changes_neither_the_net_nor_torch() -> None:
    net, split = made("cnn7_bn_all", 6)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    generator = torch.get_rng_state()
    certify_with(net, split, "crown", eps=EPS, engine="auto_lirpa")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.get_rng_state(), generator)
