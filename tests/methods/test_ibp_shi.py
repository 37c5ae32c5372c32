"""Fast interval training: its two regularisers by their formulas, when they act, and what a short run reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Step, registry
from methods import box
from methods.ibp_shi import IbpShi, ShiRecipe, balanced, tightness
from methods.nets import ReluNet, build_net

Net = Callable[..., ReluNet]
Images = Callable[..., tuple[Tensor, Tensor]]


def recipe(**fields: object) -> ShiRecipe:
    base = ShiRecipe(
        dataset="mnist",
        eps="0.1",
        preset="quick",
        source="test",
        arch="mlp",
        epochs=10,
        eps_train=0.2,
        eps_ramp=(1.0, 5.0),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mlp", "conv_small", "cnn7_bn_all"])
def test_tightness_is_the_mean_shortfall_of_reach_ratios(kind: str, small_net: Net, images: Images) -> None:
    net, (x, _) = small_net(kind), images(kind, 6)
    passed = box.run(net, x, 0.05, tape=True)
    first = float(net.normalize(x).numel() and (passed.image.box()[1] / getattr(net.normalize, "std", 1.0)).mean())
    wanted = []
    for entry in passed.relus():
        lower, upper = (end.detach() for end in entry.bounds())
        wanted.append(max(0.0, 0.5 - first / float(((upper - lower) / 2).mean())) / 0.5)
    assert float(tightness(net, passed).detach()) == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "conv_small", "cnn7_bn_all"])
def test_balance_is_the_formula_of_the_paper_s_code(kind: str, small_net: Net, images: Images) -> None:
    net, (x, _) = small_net(kind), images(kind, 6)
    passed = box.run(net, x, 1e-3, tape=True)
    wanted = []
    for entry in passed.relus():
        lower, upper = (end.detach() for end in entry.bounds())
        centre, active, inactive = (lower + upper) / 2, lower > 0, upper < 0
        deviation = (centre - centre.mean()) ** 2
        a = (centre * active).mean() / -(centre * inactive).mean()
        b = (deviation * active).sum() / (deviation * inactive).sum()
        wanted.append(sum(max(0.0, 0.5 - min(float(r), 1 / float(r))) for r in (a, b)) / 0.5)
    assert float(balanced(passed).detach()) == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)


@pytest.mark.parametrize("bias", [100.0, -100.0, 0.0])
def test_regularisers_have_finite_gradients_when_no_unit_is_sure_or_all_are(bias: float) -> None:
    """All active, all inactive, and (radius 1 around grey) none of either."""
    torch.manual_seed(0)
    net = ReluNet(None, nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    first = net.layers[1]
    assert isinstance(first, nn.Linear)
    nn.init.constant_(first.bias, bias)
    passed = box.run(net, torch.full((3, 1, 2, 2), 0.5), 1.0, tape=True)
    (tightness(net, passed) + balanced(passed)).backward()
    assert first.weight.grad is not None
    assert bool(torch.isfinite(first.weight.grad).all())


def test_regularisers_fade_with_the_ramp_and_end_with_it(
    make_step: Callable[..., Step], small_net: Net, images: Images
) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 6)
    method, shown = IbpShi(), {}
    for epoch in (0.0, 3.0, 5.0, 9.0):
        step = make_step(recipe(), method, epoch)
        losses = method.loss(net, x, y, step)
        passed = box.run(net, x, max(step.eps_now, 1e-6), tape=True)
        plain = functional.cross_entropy(net(x) if step.eps_now == 0 else -passed.margins(y), y)
        extra = (tightness(net, passed) + balanced(passed)) * 0.5
        shown[epoch] = float(((losses.loss - plain) / extra).detach())
    assert [shown[e] for e in (0.0, 3.0, 5.0, 9.0)] == pytest.approx([1, 0.5, 0, 0], abs=1e-3)


def test_quick_training_certifies_most_digits(trained: Callable[..., tuple]) -> None:  # type: ignore[type-arg]
    changes = {"epochs": 14, "eps_ramp": (0.0, 6.0), "lr_hold": 6.0}
    method, made, net, data = trained("ibp_shi", "digits", "0.1", **changes)
    x, y = data.val.pixels(slice(None)), data.val.labels
    assert float((method.margin_bound(net, x, y, made.radius).lower > 0).double().mean()) > 0.5


def test_every_recipe_has_a_source_and_builds() -> None:
    from bench.data import spec

    for made in registry.recipes(registry.get("ibp_shi")):
        assert isinstance(made, ShiRecipe)
        assert len(made.source) >= 4
        assert made.eps_ramp[1] <= made.epochs
        with torch.device("meta"):
            build_net(spec(made.dataset).cropped(made.crop), made)
