"""Linear bounds in training: what they bound, when they act, and that runs with them learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench import Eps, Step, registry, threat
from methods import box, crown
from methods.crown_ibp import CrownIbp, CrownRecipe
from methods.crown_ibp_fusion import CrownIbpFusion
from methods.nets import ReluNet, build_net
from methods.relu import ReluRecipe

Net = Callable[..., ReluNet]
Images = Callable[..., tuple[Tensor, Tensor]]
Made = Callable[..., Step]
RADIUS = 0.02


def recipe(kind: type[ReluRecipe] = CrownRecipe, **fields: object) -> ReluRecipe:
    base = kind(
        dataset="mnist",
        eps="0.1",
        preset="quick",
        source="test",
        epochs=10,
        eps_train=0.1,
        eps_ramp=(0.0, 8.0),
        kappa_start=0.0,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def points(x: Tensor, count: int) -> list[Tensor]:
    eps = Eps("5/255")  # below RADIUS
    return [threat.corner(x, eps, seed) for seed in range(count)] + [
        threat.sample(x, eps, seed) for seed in range(count)
    ]


def test_linear_margins_lie_below_every_point_of_the_ball(arch: str, small_net: Net, images: Images) -> None:
    net, (x, y) = small_net(arch).double(), images(arch, 6)
    low = crown.crown_ibp_margins(box.run(net, x.double(), RADIUS, tape=True), y).detach()
    for point in points(x, 20):
        logits = net(point.double()).detach()
        assert bool((low <= logits.gather(1, y[:, None]) - logits + 1e-9).all())


def test_without_unstable_units_linear_margins_are_exact(small_net: Net, images: Images) -> None:
    """A radius so small that no ReLU can switch: the net is linear in the box and its minimum is known."""
    net, (x, y) = small_net("mlp").double(), images("mlp", 4)
    x = x.double().clamp(0.1, 0.9)
    radius = 1e-7
    low = crown.crown_ibp_margins(box.run(net, x, radius, tape=True), y).detach()
    leaf = x.clone().requires_grad_(True)
    for other in range(5):
        logits = net(leaf)
        gap = logits.gather(1, y[:, None])[:, 0] - logits[:, other]
        (slope,) = torch.autograd.grad(gap.sum(), leaf)
        exact = gap.detach() - radius * slope.abs().flatten(1).sum(dim=1)
        assert torch.allclose(low[:, other], exact, atol=1e-12)


def test_gradients_of_linear_margins_are_right(small_net: Net, images: Images) -> None:
    """Central differences in three weights, float64."""
    net, (x, y) = small_net("conv_small").double(), images("conv_small", 3)

    def value() -> Tensor:
        return crown.crown_ibp_margins(box.run(net, x.double(), RADIUS, tape=True), y).sum()

    parameters = list(net.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    for parameter, gradient in zip(parameters[:4:2], gradients[:4:2], strict=True):
        flat, step = parameter.data.view(-1), 1e-6
        for index in (0, flat.numel() // 2):
            old = float(flat[index])
            flat[index] = old + step
            up = float(value().detach())
            flat[index] = old - step
            down = float(value().detach())
            flat[index] = old
            assert float(gradient.view(-1)[index]) == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_fused_loss_is_above_the_cross_entropy_of_every_point(
    arch: str, small_net: Net, images: Images, share: float
) -> None:
    net, (x, y) = small_net(arch).double(), images(arch, 6)
    upper = crown.fused_cross_entropy(box.run(net, x.double(), RADIUS, tape=True), y, share).detach()
    assert bool(torch.isfinite(upper).all())
    for point in points(x, 10):
        assert bool((functional.cross_entropy(net(point.double()), y, reduction="none") <= upper + 1e-9).all())


def test_fused_loss_without_linear_bounds_is_the_interval_loss(arch: str, small_net: Net, images: Images) -> None:
    net, (x, y) = small_net(arch).double(), images(arch, 6)
    passed = box.run(net, x.double(), RADIUS)
    wanted = functional.cross_entropy(-passed.margins(y), y, reduction="none")
    assert torch.allclose(crown.fused_cross_entropy(passed, y, 0.0), wanted, rtol=1e-9)


def test_huge_differences_do_not_overflow_the_fused_loss(small_net: Net, images: Images) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 4)
    net.head.weight.data *= 1e4
    passed = box.run(net, x, RADIUS, tape=True)
    loss = crown.fused_cross_entropy(passed, y, 0.5).sum()
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize(("beta_end", "epoch", "beta"), [(0.0, 4.0, 0.5), (0.0, 9.0, 0.0), (1.0, 9.0, 1.0)])
def test_loss_mixes_linear_and_interval_margins(
    make_step: Made, small_net: Net, images: Images, beta_end: float, epoch: float, beta: float
) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 6)
    method = CrownIbp()
    step = make_step(recipe(beta_end=beta_end), method, epoch)
    losses = method.loss(net, x, y, step)
    passed = box.run(net, x, step.eps_now, tape=True)
    margins = beta * crown.crown_ibp_margins(passed, y) + (1 - beta) * passed.margins(y)
    assert torch.allclose(losses.loss, functional.cross_entropy(-margins, y), rtol=1e-5)
    assert losses.scalars["beta"] == pytest.approx(beta)


def test_fusion_ends_in_plain_interval_training(make_step: Made, small_net: Net, images: Images) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 6)
    method = CrownIbpFusion()
    losses = method.loss(net, x, y, make_step(recipe(ReluRecipe), method, 9.0))
    assert torch.allclose(losses.loss, functional.cross_entropy(-box.run(net, x, 0.1).margins(y), y), rtol=1e-5)


@pytest.mark.parametrize("name", ["crown_ibp", "crown_ibp_fusion"])
def test_quick_training_certifies_digits(trained: Callable[..., tuple], name: str) -> None:  # type: ignore[type-arg]
    changes = {"epochs": 20, "eps_ramp": (0.0, 8.0), "lr_hold": 8.0, "hidden": (64, 64), "lr": 3e-3}
    method, made, net, data = trained(name, "digits", "0.1", **changes)
    x, y = data.val.pixels(slice(None)), data.val.labels
    assert float((method.margin_bound(net, x, y, made.radius).lower > 0).double().mean()) > 0.4


@pytest.mark.parametrize("name", ["crown_ibp", "crown_ibp_fusion"])
def test_every_recipe_has_a_source_and_builds(name: str) -> None:
    from bench.data import spec

    for made in registry.recipes(registry.get(name)):
        assert isinstance(made, ReluRecipe)
        assert len(made.source) >= 4
        assert made.eps_ramp[1] <= made.epochs, made
        with torch.device("meta"):
            build_net(spec(made.dataset).cropped(made.crop), made)


def test_a_batch_in_parts_has_the_bounds_of_the_whole(
    small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, (x, y) = small_net("conv_small").eval(), images("conv_small", 7)
    whole = [bound.lower for bound in crown.both_bounds(net, x, y, Eps("0.01"))]
    three = 8 * 5 * crown.widest(net, x[:1]) * 3  # images at a time
    monkeypatch.setattr(crown, "MEMORY", {"cpu": three, "cuda": three})
    parts = [bound.lower for bound in crown.both_bounds(net, x, y, Eps("0.01"))]
    for a, b in zip(whole, parts, strict=True):
        assert bool((a - b).abs().max() < 1e-9)


def test_no_images_have_no_bounds(small_net: Net, images: Images) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 2)
    assert [len(bound.lower) for bound in crown.both_bounds(net, x[:0], y[:0], Eps("0.1"))] == [0, 0]
    assert len(crown.certified_radius(net, x[:0], y[:0])) == 0
