"""GroupSort: projection, permutation, Lipschitz constant, and certificates from the norms the weights really have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench import DataSpec, Eps, margin, registry, threat
from bench.flops import count_ops
from methods.groupsort import AggMo, GroupSortNet, GroupSortRecipe, MaxMin, project_rows
from methods.groupsort_bounds import certificates, certified_radius, row_norms

MNIST = DataSpec("mnist", 1, 28, 28, 10, (0.13,), (0.31,))
SMALL = DataSpec("mnist", 1, 6, 6, 4, (0.13,), (0.31,))


def recipe(**fields: object) -> GroupSortRecipe:
    base = GroupSortRecipe(dataset="mnist", eps="0.1", preset="quick", source="test", widths=(24, 16))
    return replace(base, **fields)  # type: ignore[arg-type]


def make(lipschitz: float = 1.0, seed: int = 0) -> GroupSortNet:
    torch.manual_seed(seed)
    net = GroupSortNet(SMALL, recipe(lipschitz=lipschitz))
    net.project(tight=True)
    return net.eval()


def pixels(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (count, 1, 6, 6), generator=generator)
    return threat.levels_table(256)[levels], torch.randint(0, 4, (count,), generator=generator)


def test_operations_are_those_of_the_table() -> None:
    net = GroupSortNet(MNIST, recipe(widths=(1024, 1024, 1024)))
    assert count_ops(net, MNIST) == 2_910_208  # 2.9M


def test_maxmin_is_a_permutation_that_sorts_pairs() -> None:
    z = torch.randn(5, 8)
    out = MaxMin()(z)
    assert torch.equal(out.sort(dim=1).values, z.sort(dim=1).values)
    assert torch.equal(out[:, :4], z.reshape(5, 4, 2).amax(dim=2))


def reference_projection(row: Tensor) -> Tensor:
    """Bisection on the threshold instead of sorting, float64."""
    if float(row.abs().sum()) <= 1:
        return row
    low, high = 0.0, float(row.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        if float((row.abs() - middle).clamp(min=0).sum()) > 1:
            low = middle
        else:
            high = middle
    return row.sign() * (row.abs() - high).clamp(min=0)


def test_projection_is_the_euclidean_one_onto_the_ball() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 15, dtype=torch.float64) * torch.logspace(-2, 1, 20, dtype=torch.float64)[:, None]
    wanted = torch.stack([reference_projection(row) for row in weight])
    assert torch.allclose(project_rows(weight, tight=False), wanted, atol=1e-12)


def test_tight_projection_puts_every_row_on_the_sphere() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 15) * torch.logspace(-2, 1, 20)[:, None]
    norms = project_rows(weight, tight=True).abs().sum(dim=1)
    assert torch.allclose(norms, torch.ones(20), atol=1e-5)


def test_aggmo_averages_its_velocities() -> None:
    """Three steps by hand on a constant gradient of 1: velocities -(1, 1 + beta, 1 + beta + beta^2)."""
    theta = torch.nn.Parameter(torch.zeros(1))
    optimizer = AggMo([theta], lr=0.3, betas=(0.0, 0.5))
    for _ in range(3):
        theta.grad = torch.ones(1)
        optimizer.step()
    assert float(theta.detach()) == pytest.approx(-0.3 / 2 * ((1 + 1 + 1) + (1 + 1.5 + 1.75)))


def test_the_net_is_lipschitz_in_the_largest_norm() -> None:
    net = make(lipschitz=3.0)
    torch.manual_seed(1)
    a, b = torch.rand(4000, 1, 6, 6), torch.rand(4000, 1, 6, 6)
    with torch.no_grad():
        moved = (net(a) - net(b)).abs().amax(dim=1)
    assert bool((moved <= 3.0 * (a - b).abs().flatten(1).amax(dim=1) * (1 + 1e-5)).all())


def test_norms_are_rounded_up() -> None:
    """Rows projected in float32 exceed 1 by up to 1e-6; a certificate that assumes 1 would be unsound."""
    from fractions import Fraction

    layer = next(make().dense_layers())
    exact = [sum(abs(Fraction(v)) for v in row) for row in layer.weight.tolist()]
    assert all(Fraction(float(got)) >= want for got, want in zip(row_norms(layer).detach(), exact, strict=True))
    assert any(value > 1 for value in exact)
    uneven = nn.Linear(65, 1)  # 1 and sixty-four halves of its last float64 bit: each is lost when it is added
    with torch.no_grad():
        uneven.weight.copy_(torch.cat([torch.ones(1, 1), torch.full((1, 64), 2.0**-53)], 1))
    assert Fraction(float(row_norms(uneven).detach())) >= 1 + Fraction(64, 2**53)


@pytest.mark.parametrize("lipschitz", [1.0, 1000.0])
@pytest.mark.parametrize("eps", ["0", "1/9999", "1/255", "0.1"])
def test_no_point_of_the_ball_lies_below_any_bound(lipschitz: float, eps: str) -> None:
    net, (x, y) = make(lipschitz), pixels(8)
    bounds = certificates(net, x, y, Eps(eps))
    points = [x]
    lower, upper = threat.inner_box(x, Eps(eps))
    z = x
    for size in (2.0, 1.0, 0.5):
        z = z.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(margin(net(z), y).sum(), z)
        z = torch.minimum(torch.maximum(z - size * float(Eps(eps)) * slope.sign(), lower), upper)
        points.append(z.detach())
    for seed in range(20):
        points += [threat.corner(x, Eps(eps), seed), threat.sample(x, Eps(eps), seed)]
    with torch.no_grad():
        for point in points:
            values = margin(net(point), y)
            for bound in bounds:
                slack = 1e-6 * lipschitz if bound.cls == "R" else 0.0
                assert bool((bound.lower <= values + slack).all()), bound.certificate


def test_certificates_come_in_the_order_of_their_strength() -> None:
    net, (x, y) = make(), pixels(40)
    named = {b.certificate: b.lower for b in certificates(net, x, y, Eps("8/255"))}
    assert bool((named["interval"] >= named["lipschitz"] - 1e-5).all())
    assert bool((named["lipschitz"] >= named["lipschitz_global"]).all())
    assert bool((named["lipschitz_real"] >= named["lipschitz"]).all())
    assert float((named["interval"] - named["lipschitz"]).mean()) > 5e-4  # pixels that end at 0 or 1


def test_the_pairwise_margin_is_the_textbook_one() -> None:
    """f_y - f_j - L ||w_y - w_j||_1 prod ||W_l|| eps, by hand in float64."""
    net, (x, y) = make(lipschitz=8.0), pixels(6)
    first, second, last = (layer.weight.double().detach() for layer in net.dense_layers())
    below = first.abs().sum(1).max() * second.abs().sum(1).max() * 8.0
    gaps = net.double()(x.double()).detach()
    gaps = gaps.gather(1, y[:, None]) - gaps - 0.1 * below * (last[y].unsqueeze(1) - last).abs().sum(2)
    wanted = gaps.scatter(1, y[:, None], torch.inf).amin(dim=1)
    got = {b.certificate: b.lower for b in certificates(make(lipschitz=8.0), x, y, Eps("0.1"))}["lipschitz_real"]
    assert torch.allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("lipschitz", [1.0, 1000.0])
def test_scaling_the_net_does_not_change_what_is_certified(lipschitz: float) -> None:
    """L * g has L times the margin and L times the constant; only biases differ, and rounding."""
    net, (x, _) = make(lipschitz), pixels(30)
    y = net(x).argmax(dim=1)
    radius = certified_radius(net, x, y)
    assert bool((radius > 0).all())
    for bound in certificates(net, x, y, Eps("1/9999"))[:2]:
        assert bool((bound.lower[radius > 0.01] > 0).all())


@pytest.mark.parametrize("layer", [0, -1])
def test_a_net_that_may_overflow_float32_has_no_certificate(layer: int) -> None:
    net, (x, y) = make(), pixels(3)
    with torch.no_grad():
        list(net.dense_layers())[layer].weight.fill_(3e38)
        list(net.dense_layers())[-2].bias.fill_(10.0)  # what enters the last layer is large for certain
    try:
        bounds = [b for b in certificates(net, x, y, Eps("0.1")) if b.cls == "F32"]
    except ValueError as error:
        assert "non-finite bounds" in str(error)
    else:
        assert layer == -1 and all(bool((b.lower == -torch.inf).all()) for b in bounds)


@pytest.mark.parametrize("black", [False, True])
def test_radius_is_certified_and_nothing_larger_is(black: bool) -> None:
    """Black pixels can move in one direction only, which doubles the radius that the Lipschitz constant suggests."""
    net, (x, _) = make(), pixels(30)
    x = x * 0 + x * (x > 0.9) if black else x
    y = net(x).argmax(dim=1)
    radius = certified_radius(net, x, y)
    for value, image, label in zip(radius.tolist(), x, y, strict=True):
        inside, outside = (Eps(f"{max(1, round(value * f * 999_999))}/999999") for f in (0.999, 1.001))
        assert float(certificates(net, image[None], label[None], inside)[0].lower) > 0
        assert float(certificates(net, image[None], label[None], outside)[0].lower) <= 0


def test_quick_training_certifies_some_digits(trained: Callable[..., tuple]) -> None:  # type: ignore[type-arg]
    method, made, net, data = trained("groupsort", "digits", "0.1", lr=5e-3, epochs=30)
    x, y = data.val.pixels(slice(None)), data.val.labels
    assert float((margin(net(x).detach(), y) > 0).double().mean()) > 0.7
    assert float((method.margin_bound(net, x, y, made.radius).lower > 0).double().mean()) > 0.1
    assert bool((torch.stack([row_norms(layer).max() for layer in net.dense_layers()]) < 1 + 1e-5).all())


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="even numbers"):
        recipe(widths=(7,))


def test_every_recipe_has_a_source() -> None:
    assert all(len(r.source) >= 4 for r in registry.recipes(registry.get("groupsort")))


def test_a_diverged_row_stays_nan_and_is_not_an_index_error() -> None:
    """The training loop finds it and names it (P46)."""
    net = make()
    with torch.no_grad():
        next(net.dense_layers()).weight[0, 0] = torch.nan
    net.project(tight=True)
    assert bool(torch.isnan(next(net.dense_layers()).weight[0]).any())
    assert not bool(torch.isnan(next(net.dense_layers()).weight[1:]).any())


def test_classes_that_can_never_change_places_are_no_error() -> None:
    net, (x, y) = make(), pixels(4)
    with torch.no_grad():
        for layer in net.dense_layers():
            layer.weight.zero_()
            layer.bias.zero_()
    assert certified_radius(net, x, y).tolist() == [0.0] * 4  # all logits are equal: nothing is right


def test_a_net_that_computes_something_else_than_its_class_is_refused() -> None:
    class Other(GroupSortNet):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net = Other(SMALL, recipe()).eval()
    x, y = pixels(2)
    with pytest.raises(ValueError, match="something else than GroupSortNet"):
        registry.get("groupsort").margin_bounds(net, x, y, Eps("0.01"))
