"""Certificates of ReLU nets, attacked with points, summation orders and exact fractions; and what they refuse.

"Bounds" are interval propagation (`ibp`) and its improvement by linear bounds (`crown_ibp`), both class F32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench import Bound, Eps, margin, threat
from methods import box, crown, interval_net
from methods.nets import ReluNet
from methods.radius import certified_radius

Net = Callable[..., ReluNet]
Images = Callable[..., tuple[Tensor, Tensor]]
Certificate = Callable[[ReluNet, Tensor, Tensor, Eps], Bound]

CERTIFICATES: list[Certificate] = [interval_net.ibp_bound, crown.crown_ibp_bound]
both = pytest.mark.parametrize("bound", CERTIFICATES, ids=["ibp", "crown_ibp"])
RADII = ["0", "1/9999", "1/255", "0.1"]


def descent(net: ReluNet, x: Tensor, y: Tensor, eps: Eps) -> list[Tensor]:
    """Points of the ball along sign descents of the margin, the first of them the vertex a linear net is worst at."""
    lower, upper = threat.inner_box(x, eps)
    z, points = x, []
    for size in (2.0, 1.0, 0.5, 0.25, 0.1):
        z = z.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(margin(net(z), y).sum(), z)
        z = torch.minimum(torch.maximum(z - size * float(eps) * slope.sign(), lower), upper)
        points.append(z.detach())
    return points


@both
@pytest.mark.parametrize("eps", RADII)
def test_no_point_of_the_ball_lies_below_the_bound(
    arch: str, small_net: Net, images: Images, bound: Certificate, eps: str
) -> None:
    """Zero tolerance: the bound holds for the deployed float32 values themselves."""
    net, (x, y) = small_net(arch), images(arch, 6)
    lower = bound(net, x, y, Eps(eps)).lower
    points = descent(net, x, y, Eps(eps))
    for seed in range(15):
        points += [threat.corner(x, Eps(eps), seed), threat.sample(x, Eps(eps), seed)]
    with torch.no_grad():
        for number, point in enumerate(points):
            assert bool((lower <= margin(net(point), y)).all()), f"point {number}"


def test_linear_bounds_are_attained_where_the_net_is_linear(small_net: Net, images: Images) -> None:
    """At a tiny radius no ReLU switches: the worst vertex then reaches CROWN-IBP's bound, up to rounding."""
    net, (x, y) = small_net("conv_small"), images("conv_small", 6)
    eps = Eps("1/9999")
    lower = crown.crown_ibp_bound(net, x, y, eps).lower
    worst = descent(net, x, y, eps)[0]
    with torch.no_grad():
        reached, clean = margin(net(worst), y), margin(net(x), y)
    assert float(((reached - lower) / (clean - lower)).median()) < 0.05


@pytest.mark.parametrize(("variance", "mean"), [(1e-5, 1.0), (1.0, 1e4)])
def test_batch_norm_is_bounded_as_deployed(variance: float, mean: float) -> None:
    """A variance as small as the eps under the root, and a bias that cancels a large mean: what is easily forgotten."""
    torch.manual_seed(0)
    module = nn.BatchNorm1d(6).eval()
    assert module.running_var is not None and module.running_mean is not None
    module.running_var.fill_(variance)
    module.running_mean.copy_(mean * torch.randn(6))
    with torch.no_grad():
        module.bias.copy_(module.running_mean / (variance + module.eps) ** 0.5)
        x = torch.randn(400, 6)
        lower, upper = interval_net._batch_norm(module, (x.double(), x.double()), None)
        deployed = module(x).double()
    assert bool(((lower <= deployed) & (deployed <= upper)).all())
    assert float((upper - lower).max()) < 0.1


@both
def test_bound_holds_for_every_order_of_summation(bound: Certificate) -> None:
    """Class F32's promise. Large weights that cancel make float32 sums depend on their order; the float64 value of the
    margin lies above many of them, the bound below all.
    """
    torch.manual_seed(0)
    n = 400
    weight = torch.randn(3, n) * 1e3
    weight[0] = weight[1] + torch.randn(n) * 1e-3
    net = ReluNet(None, nn.Sequential(nn.Flatten(), nn.Linear(n, 3)))
    net.head.weight.data.copy_(weight)
    net.eval()
    x, y = threat.levels_table(256)[torch.randint(0, 256, (1, 1, 20, 20))], torch.tensor([0])
    lower = bound(net, x, y, Eps("0")).lower
    seen = []
    for _ in range(200):
        order = torch.randperm(n)
        logits = torch.cumsum(weight[:, order] * x.flatten()[order], dim=1, dtype=torch.float32)[:, -1]
        seen.append(margin((logits + net.head.bias.detach())[None], y))
    exact = margin(nn.functional.linear(x.double().flatten(1), weight.double(), net.head.bias.detach().double()), y)
    assert bool((lower <= torch.stack(seen).amin(dim=0)).all())
    assert bool((exact > torch.stack(seen).amin(dim=0)).all()), (
        "the float64 value alone would pass: the test is toothless"
    )


def fraction_interval(net: ReluNet, low: list[Fraction], high: list[Fraction]) -> tuple[list[Fraction], list[Fraction]]:
    """Exact interval propagation through Flatten, Linear and ReLU."""
    for layer in net.body:
        if isinstance(layer, nn.ReLU):
            low, high = [max(v, Fraction(0)) for v in low], [max(v, Fraction(0)) for v in high]
        elif isinstance(layer, nn.Linear):
            ends = []
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True):
                w = [Fraction(v) for v in row]
                least = sum((v * (a if v > 0 else c) for v, a, c in zip(w, low, high, strict=True)), Fraction(b))
                most = sum((v * (c if v > 0 else a) for v, a, c in zip(w, low, high, strict=True)), Fraction(b))
                ends.append((least, most))
            low, high = [e[0] for e in ends], [e[1] for e in ends]
    return low, high


def test_interval_bound_lies_just_below_the_exact_one() -> None:
    """An oracle in fractions: never above it, and not further below than rounding allowances of float32 explain."""
    torch.manual_seed(1)
    net = ReluNet(
        None, nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    )
    net.eval()
    x, y = threat.levels_table(256)[torch.randint(0, 256, (5, 1, 2, 3))], torch.tensor([0, 1, 2, 0, 1])
    eps = Eps("8/255")
    lower = interval_net.ibp_bound(net, x, y, eps).lower.tolist()
    for row, label, got in zip(x.flatten(1).tolist(), y.tolist(), lower, strict=True):
        ends = [
            (max(Fraction(v) - eps.fraction, Fraction(0)), min(Fraction(v) + eps.fraction, Fraction(1))) for v in row
        ]
        low, high = fraction_interval(net, [e[0] for e in ends], [e[1] for e in ends])
        gaps = []
        for other in {0, 1, 2} - {label}:
            w = [
                Fraction(a) - Fraction(b)
                for a, b in zip(*(net.head.weight[k].tolist() for k in (label, other)), strict=True)
            ]
            offset = Fraction(float(net.head.bias[label].detach())) - Fraction(float(net.head.bias[other].detach()))
            gaps.append(sum((v * (a if v > 0 else c) for v, a, c in zip(w, low, high, strict=True)), offset))
        exact = min(gaps)
        assert Fraction(got) <= exact
        assert float(exact - Fraction(got)) < 1e-5


@both
def test_rounding_control_costs_little(arch: str, small_net: Net, images: Images, bound: Certificate) -> None:
    """Against the same bound in plain float64: below it, by less than a hundredth of its distance from the margin."""
    net, (x, y) = small_net(arch), images(arch, 6)
    lower = bound(net, x, y, Eps("1/255")).lower
    wide = small_net(arch).double()
    passed = box.run(wide, x.double(), 1 / 255, tape=True)
    margins = passed.margins(y)
    if bound is crown.crown_ibp_bound:
        margins = torch.maximum(margins, crown.crown_ibp_margins(passed, y))
    plain = margins.scatter(1, y[:, None], torch.inf).amin(dim=1).detach()
    assert bool((lower < plain).all())
    assert bool((plain - lower < 0.01 * (margin(net(x), y) - plain) + 1e-4).all())


def test_linear_bounds_never_lose_to_intervals(arch: str, small_net: Net, images: Images) -> None:
    net, (x, y) = small_net(arch), images(arch, 6)
    for eps in RADII:
        better = crown.crown_ibp_bound(net, x, y, Eps(eps)).lower
        assert bool((better >= interval_net.ibp_bound(net, x, y, Eps(eps)).lower).all()), eps


def test_interval_bound_falls_as_the_radius_grows(arch: str, small_net: Net, images: Images) -> None:
    net, (x, y) = small_net(arch), images(arch, 6)
    ladder = [interval_net.ibp_bound(net, x, y, Eps(f"{k}/510")).lower for k in range(0, 40, 4)]
    assert all(bool((b <= a).all()) for a, b in itertools.pairwise(ladder))


@both
def test_bound_at_radius_zero_is_the_margin_up_to_rounding(
    arch: str, small_net: Net, images: Images, bound: Certificate
) -> None:
    if arch == "wide_resnet":
        pytest.skip("untrained and deep: intervals blow rounding up to the size of the logits")
    net, (x, y) = small_net(arch), images(arch, 6)
    logits = net(x).detach()
    gap = float((margin(logits, y) - bound(net, x, y, Eps("0")).lower).max())
    assert gap < 2e-2 * max(1, float(logits.abs().max()))


@both
def test_an_image_s_bound_does_not_depend_on_its_batch(
    arch: str, small_net: Net, images: Images, bound: Certificate
) -> None:
    net, (x, y) = small_net(arch), images(arch, 5)
    whole = bound(net, x, y, Eps("1/255")).lower
    alone = torch.cat([bound(net, x[i : i + 1], y[i : i + 1], Eps("1/255")).lower for i in range(5)])
    assert torch.allclose(whole, alone, rtol=1e-9, atol=1e-9)


def test_a_radius_per_example_gives_the_bound_at_that_radius(small_net: Net, images: Images) -> None:
    net, (x, y) = small_net("conv_small"), images("conv_small", 5)
    eps = Eps("1/255")
    each = interval_net.ibp_margin_at(net, x, y, torch.full((5,), eps.float32_up))
    assert torch.equal(each, interval_net.ibp_bound(net, x, y, eps).lower)


@pytest.mark.parametrize("kind", ["mlp", "conv_small", "cnn7_bn_all"])
def test_radius_is_certified_and_nothing_larger_is(kind: str, small_net: Net, images: Images) -> None:
    net, (x, _) = small_net(kind), images(kind, 16)
    y = net(x).argmax(dim=1)
    radius = certified_radius(net, x, y)
    positive = radius > 0
    assert bool(positive.any())
    assert bool((interval_net.ibp_margin_at(net, x, y, radius.float()) > 0)[positive].all())
    larger = (radius * (1 + 1e-5)).float() + 1e-6
    assert bool((interval_net.ibp_margin_at(net, x, y, larger) <= 0).all())


def test_radius_is_zero_where_the_prediction_is_wrong(small_net: Net, images: Images) -> None:
    net, (x, _) = small_net("mlp"), images("mlp", 8)
    wrong = (net(x).argmax(dim=1) + 1) % 5
    assert not bool(certified_radius(net, x, wrong).any())


@both
def test_a_net_in_training_mode_is_refused(small_net: Net, images: Images, bound: Certificate) -> None:
    net, (x, y) = small_net("cnn7_bn_all"), images("cnn7_bn_all", 2)
    net.layers[1].train()
    with pytest.raises(ValueError, match="training mode"):
        bound(net, x, y, Eps("0.1"))


@both
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_weights_are_refused(small_net: Net, images: Images, bound: Certificate, value: float) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 2)
    first = net.layers[1]
    assert isinstance(first, nn.Linear)
    first.weight.data[0, 0] = value
    with pytest.raises(ValueError, match="non-finite"):
        bound(net, x, y, Eps("0.1"))


@both
def test_non_finite_weights_of_the_last_layer_are_refused(small_net: Net, images: Images, bound: Certificate) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 2)
    net.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="non-finite"):
        bound(net, x, y, Eps("0.1"))


@both
def test_pixels_outside_the_unit_interval_are_refused(small_net: Net, images: Images, bound: Certificate) -> None:
    net, (x, y) = small_net("mlp"), images("mlp", 2)
    with pytest.raises(ValueError, match="outside"):
        bound(net, x + 1, y, Eps("0.1"))


def overflowing(*layers: nn.Module, head: nn.Linear) -> ReluNet:
    """A net of one 2 x 2 image that only float32 overflow can break: its last layer ignores what enters it."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1.0, 0.0]))
    return ReluNet(None, nn.Sequential(nn.Flatten(), *layers, head)).eval()


def enormous(weight: float) -> nn.Linear:
    layer = nn.Linear(4, 2)
    nn.init.constant_(layer.weight, weight)
    nn.init.zeros_(layer.bias)
    return layer


@both
def test_a_net_that_overflows_inside_the_ball_has_no_certificate(bound: Certificate) -> None:
    """Finite at x, NaN within eps: the rounding model ends where float32 does, whatever float64 bounds say."""
    net = overflowing(enormous(3e38), nn.ReLU(), head=nn.Linear(2, 2))
    x, y = torch.full((1, 1, 2, 2), 0.2), torch.tensor([0])
    with torch.no_grad():
        assert bool(net(x).isfinite().all()) and bool(net(x + 0.0999).isnan().any())
    with pytest.raises(ValueError, match="non-finite bounds"):
        bound(net, x, y, Eps("0.1"))


@both
def test_overflow_in_the_last_layer_certifies_nothing(bound: Certificate) -> None:
    head = nn.Linear(4, 2)
    net = overflowing(head=head)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3e38] * 4, [-3e38] * 4]))
    x, y = torch.full((1, 1, 2, 2), 0.2), torch.tensor([0])
    assert float(bound(net, x, y, Eps("0.1")).lower) == -torch.inf


@both
@pytest.mark.parametrize("part", ["weight", "running_mean"])
def test_batch_norms_that_may_overflow_certify_nothing(bound: Certificate, part: str) -> None:
    norm = nn.BatchNorm1d(2)
    with torch.no_grad():
        getattr(norm, part).fill_(3e38)
        norm.running_var.fill_(1e30 if part == "running_mean" else 1e-3)
    net = overflowing(enormous(1.0), norm, head=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="non-finite bounds"):
        bound(net, torch.full((1, 1, 2, 2), 0.2), torch.tensor([0]), Eps("0.1"))


def test_large_but_safe_weights_keep_their_certificate() -> None:
    net = overflowing(enormous(1e30), nn.ReLU(), head=nn.Linear(2, 2))
    found = interval_net.ibp_bound(net, torch.full((1, 1, 2, 2), 0.2), torch.tensor([0]), Eps("0.1"))
    assert float(found.lower) > 0.9


class OwnForward(nn.Linear):
    """Looks like its base class to whoever asks for the class, and computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnCall(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


class OwnBody(ReluNet):
    @property
    def body(self) -> list[nn.Module]:
        return super().body[:1]


def swapped(how: str) -> ReluNet:
    """A small net of which one layer is not what bounds would take it for."""
    torch.manual_seed(0)
    kind = {"a forward": OwnForward, "a call": OwnCall}.get(how, nn.Linear)
    first = kind(144, 8)
    made = OwnBody if how == "a body" else ReluNet
    net = made(None, nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(8, 5))).eval()
    if how == "a hook":
        first.register_forward_hook(lambda module, inputs, output: output * 2)
    if how == "a forward of one instance":
        first.forward = lambda x: nn.functional.linear(x, 2 * first.weight)  # type: ignore[method-assign]
    if how == "a parametrisation":
        nn.utils.parametrizations.weight_norm(first)
    return net.eval()


@both
@pytest.mark.parametrize("how", ["a forward", "a call", "a body", "a hook", "a forward of one instance"])
def test_a_layer_that_is_not_what_its_class_says_has_no_certificate(how: str, bound: Certificate) -> None:
    x = torch.full((2, 1, 12, 12), 0.5)
    with pytest.raises(ValueError, match=r"layer (layers\.1|net) .* has no certificate"):
        bound(swapped(how), x, torch.zeros(2, dtype=torch.int64), Eps("0.01"))


def test_nothing_is_certified_while_torch_has_global_hooks() -> None:
    x, y = torch.full((2, 1, 12, 12), 0.5), torch.zeros(2, dtype=torch.int64)
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        with pytest.raises(ValueError, match="global forward hooks"):
            interval_net.ibp_bound(swapped(""), x, y, Eps("0.01"))
    finally:
        hook.remove()
    interval_net.ibp_bound(swapped(""), x, y, Eps("0.01"))


@both
def test_a_parametrised_layer_is_certified_by_the_weight_it_uses(bound: Certificate) -> None:
    net, eps = swapped("a parametrisation"), Eps("0.02")
    x = threat.levels_table(256)[torch.full((2, 1, 12, 12), 128)]
    y = net(x).detach().argmax(1)
    lower = bound(net, x, y, eps).lower
    assert all(bool((margin(net(point), y) >= lower).all()) for point in descent(net, x, y, eps))


def test_pools_that_are_no_means_and_norms_without_weights_have_no_bound() -> None:
    x = torch.full((1, 1, 12, 12), 0.5)
    for layer in (nn.AvgPool2d(2, divisor_override=1), nn.BatchNorm2d(1, affine=False)):
        size = 36 if isinstance(layer, nn.AvgPool2d) else 144
        net = ReluNet(None, nn.Sequential(layer, nn.Flatten(), nn.Linear(size, 5))).eval()
        with pytest.raises(ValueError, match=r"no bound here|have a bound here"):
            interval_net.ibp_bound(net, x, torch.zeros(1, dtype=torch.int64), Eps("0.01"))
