"""The schedules and objectives of interval training and of the two methods without a certificate of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench import Eps, Step, margin, registry
from methods import box
from methods.ibp import Ibp
from methods.nets import ReluNet, build_net
from methods.pgd import worst_point
from methods.relu import ReluRecipe, kappa_at, shortened, smoothed, worst_cross_entropy

Made = Callable[..., Step]


def recipe(**fields: object) -> ReluRecipe:
    base = ReluRecipe(
        dataset="mnist",
        eps="0.1",
        preset="quick",
        source="test",
        epochs=10,
        eps_train=0.2,
        eps_ramp=(2.0, 6.0),
        kappa_end=0.5,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("mid", [0.25, 0.4])
def test_smoothed_ramp_goes_from_0_to_1_without_a_kink(mid: float) -> None:
    step = 1e-6
    assert smoothed(0.0, mid) == 0
    assert smoothed(1.0, mid) == pytest.approx(1, abs=1e-12)
    left, right = (smoothed(mid, mid) - smoothed(mid - step, mid), smoothed(mid + step, mid) - smoothed(mid, mid))
    assert left == pytest.approx(right, rel=1e-4)
    values = [smoothed(k / 100, mid) for k in range(101)]
    assert values == sorted(values)


def test_smoothed_ramp_is_the_published_formula() -> None:
    """CROWN-IBP's: alpha t^4 up to the middle of the ramp, alpha from t0 = 0, t2 = 1, tm = 0.25, beta = 4."""
    alpha = 1 / ((1 - 0.25) * 4 * 0.25**3 + 0.25**4)
    assert smoothed(0.1, 0.25) == pytest.approx(alpha * 0.1**4)
    assert smoothed(0.625, 0.25) == pytest.approx((alpha * 0.25**4 + 1) / 2)


@pytest.mark.parametrize("shape", ["linear", "smoothed"])
def test_the_radius_is_0_before_the_ramp_and_full_after_it(shape: str) -> None:
    schedule, made = Ibp().eps_schedule, recipe(eps_shape=shape)
    assert schedule(made, 0.0) == schedule(made, 2.0) == 0
    assert 0 < schedule(made, 3.0) < 0.2
    assert schedule(made, 6.0) == schedule(made, 9.9) == 0.2


def test_kappa_falls_with_the_radius(make_step: Made) -> None:
    made, method = recipe(), Ibp()
    assert [kappa_at(make_step(made, method, epoch)) for epoch in (0, 4, 6, 9)] == pytest.approx([1, 0.75, 0.5, 0.5])


def test_loss_mixes_clean_and_worst_cross_entropy(
    make_step: Made, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 6)
    losses = Ibp().loss(net, x, y, make_step(recipe(), Ibp(), 8.0))
    margins = box.run(net, x, 0.2).margins(y)
    wanted = 0.5 * functional.cross_entropy(net(x), y) + 0.5 * functional.cross_entropy(-margins, y)
    assert torch.allclose(losses.loss, wanted, rtol=1e-6)


def test_loss_at_radius_0_is_the_clean_cross_entropy(
    make_step: Made, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 6)
    losses = Ibp().loss(net, x, y, make_step(recipe(), Ibp(), 1.0))
    assert torch.equal(losses.loss, functional.cross_entropy(net(x), y))


def test_worst_cross_entropy_is_above_the_cross_entropy_of_every_point_of_the_ball(
    small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    net, (x, y) = small_net("conv_small"), images("conv_small", 6)
    with torch.no_grad():
        worst = worst_cross_entropy(box.run(net, x, 0.05).margins(y), y)
        for seed in range(30):
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).round() * 0.1 - 0.05
            point = (x + noise).clamp(0, 1)
            assert bool((functional.cross_entropy(net(point), y, reduction="none") <= worst + 1e-6).all())


def test_shortening_keeps_every_share_of_the_run() -> None:
    short = shortened(recipe(lr_milestones=(5.0, 8.0)), 5)
    assert (short.epochs, short.lr_milestones, short.eps_ramp, short.preset) == (5, (2.5, 4.0), (1.0, 3.0), "short")


def test_quick_ibp_certifies_most_digits(trained: Callable[..., tuple]) -> None:  # type: ignore[type-arg]
    """At radius 0.1 a third of the pixels' range moves; standard training certifies nothing there."""
    method, made, net, data = trained("ibp", "digits", "0.1", epochs=25, eps_ramp=(0.0, 10.0), lr_hold=10.0)
    x, y = data.val.pixels(slice(None)), data.val.labels
    certified = (method.margin_bound(net, x, y, made.radius).lower > 0).double().mean()
    assert float(certified) > 0.5
    assert float((margin(net(x).detach(), y) > 0).double().mean()) > 0.8


def test_quick_standard_training_reads_digits_and_certifies_none(trained: Callable[..., tuple]) -> None:  # type: ignore[type-arg]
    method, _, net, data = trained("standard", "digits", "0.1", epochs=12)
    x, y = data.val.pixels(slice(None)), data.val.labels
    assert float((margin(net(x).detach(), y) > 0).double().mean()) > 0.85
    assert not bool((method.margin_bound(net, x, y, Eps("0.1")).lower > 0).any())


def test_quick_pgd_training_survives_more_than_standard(trained: Callable[..., tuple], make_step: Made) -> None:  # type: ignore[type-arg]
    scores = {}
    for name in ("standard", "pgd"):
        ramp = {"eps_ramp": (0.0, 4.0)} if name == "pgd" else {}
        _, _, net, data = trained(name, "digits", "0.1", epochs=20, **ramp)
        x, y = data.val.pixels(slice(None)), data.val.labels
        step = make_step(registry.recipe("pgd", "digits", "0.1", "quick"), registry.get("pgd"), 29)
        scores[name] = float((margin(net(worst_point(net, x, y, step)).detach(), y) > 0).double().mean())
    assert scores["pgd"] > scores["standard"] + 0.1


def test_the_training_attack_stays_in_the_ball_and_leaves_the_net_as_it_was(
    make_step: Made, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    net, (x, y) = small_net("cnn7_bn_all").train(), images("cnn7_bn_all", 6)
    made, before = registry.recipe("pgd", "mnist", "0.1", "paper"), {k: v.clone() for k, v in net.state_dict().items()}
    point = worst_point(net, x, y, make_step(made, registry.get("pgd"), 15.0))
    assert float((point - x).abs().max()) <= 0.1 + 1e-6
    assert 0 <= float(point.min()) <= float(point.max()) <= 1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(module.training for module in net.modules())
    with torch.no_grad():
        net.eval()
        assert functional.cross_entropy(net(point), y) > functional.cross_entropy(net(x), y)


@pytest.mark.parametrize("name", ["ibp", "standard", "pgd"])
def test_every_recipe_has_a_source_and_builds(name: str) -> None:
    from bench.data import spec

    for made in registry.recipes(registry.get(name)):
        assert len(made.source) >= 4
        with torch.device("meta"):
            build_net(spec(made.dataset).cropped(made.crop), made)  # type: ignore[arg-type]
        assert all(m <= made.epochs for m in made.lr_milestones), made
        assert made.eps_ramp[1] <= made.epochs, made
        assert math.isclose(made.train_radius, float(made.radius)) or made.train_radius > float(made.radius), made


@pytest.mark.parametrize("name", ["standard", "pgd", "ibp", "ibp_shi", "crown_ibp", "crown_ibp_fusion", "groupsort"])
def test_no_source_says_twice_whose_it_is(name: str) -> None:
    for made in registry.recipes(registry.get(name)):
        assert made.source.count("ours") <= 1, made.source
