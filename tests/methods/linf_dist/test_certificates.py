"""Certificates of distance nets must hold for the deployed float32 net, and must not be looser than they need to be."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from bench import DataSpec, Eps, margin, registry, threat
from methods.interval import U32, affine, margins
from methods.linf_dist.certificates import (
    TANH_ULPS,
    certified_radius,
    interval_bound,
    lipschitz_bound,
    rounding_guard,
)
from methods.linf_dist.nets import DistNet
from methods.linf_dist.recipes import DistRecipe

GRID = threat.levels_table(256)


def net_and_images(seed, *, head=0, convs=(), n=24, shape=(2, 4, 4), widths=(14, 11), bias_scale=0.1):
    torch.manual_seed(seed)
    recipe = DistRecipe(
        dataset="synthetic", eps="0.1", preset="quick", source="test", widths=widths, identity=0.0, head=head,
        conv_channels=convs, conv_strides=(1,) * len(convs),
    )  # fmt: skip
    channels, height, width = shape
    net = DistNet(DataSpec("synthetic", channels, height, width, 3, (0.45,) * channels, (0.5,) * channels), recipe)
    for layer in net.distance_layers():
        units = layer.weight.shape[0]
        if hasattr(layer.offset, "running_mean"):
            layer.offset.running_mean.copy_(2 + bias_scale * torch.randn(units))
        else:
            torch.nn.init.normal_(layer.offset.bias, std=bias_scale)
    x = GRID[torch.randint(0, 256, (n, channels, height, width))]
    net.eval()
    return net, x, net(x).argmax(1)


def points_of(x, eps, count):
    for seed in range(count):
        yield threat.corner(x, eps, seed)
        yield threat.sample(x, eps, seed)


@pytest.mark.parametrize("eps", ["1/255", "8/255", "0.3"])
@pytest.mark.parametrize("kind", [{}, {"head": 7}, {"convs": (3, 4)}, {"bias_scale": 100.0}])
def test_no_point_of_the_ball_has_a_margin_below_the_bounds(kind, eps):
    for seed in range(4):
        net, x, y = net_and_images(seed, **kind)
        bounds = [interval_bound(net, x, y, Eps(eps))]
        if net.head is None:
            bounds.append(lipschitz_bound(net, x, y, Eps(eps)))
        for point in points_of(x, Eps(eps), 15):
            there = margin(net(point), y)
            for bound in bounds:
                assert (bound.lower <= there).all(), (bound.certificate, seed)


def test_the_class_is_d_without_a_head_and_f32_with_one():
    classes = [interval_bound(*net_and_images(0, head=head), Eps("0.1")).cls for head in (0, 7)]
    assert classes == ["D", "F32"]


def test_interval_at_eps_zero_is_the_clean_margin_bit_for_bit():
    net, x, y = net_and_images(2)
    assert torch.equal(interval_bound(net, x, y, Eps("0")).lower, margin(net(x), y))


def test_interval_certifies_whatever_the_margin_certifies():
    for seed in range(5):
        net, x, y = net_and_images(seed)
        for eps in ("1/255", "0.1", "0.3"):
            interval, lipschitz = interval_bound(net, x, y, Eps(eps)).lower, lipschitz_bound(net, x, y, Eps(eps)).lower
            assert ((lipschitz > 0) <= (interval > 0)).all()


def test_interval_bound_falls_as_eps_grows():
    net, x, y = net_and_images(1)
    bounds = [interval_bound(net, x, y, Eps(f"{k}/255")).lower for k in range(0, 80, 5)]
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(bounds))


def test_bounds_do_not_depend_on_batch_order_or_threads():
    net, x, y = net_and_images(4)
    eps = Eps("8/255")
    whole = interval_bound(net, x, y, eps).lower
    alone = torch.cat([interval_bound(net, x[i : i + 1], y[i : i + 1], eps).lower for i in range(len(x))])
    turned = interval_bound(net, x.flip(0), y.flip(0), eps).lower.flip(0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = interval_bound(net, x, y, eps).lower
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, alone) and torch.equal(whole, turned) and torch.equal(whole, other)


def canary(seed, shift=0.0):
    """A net whose true minimal adversarial distance is exactly half its margin.

    z_0 = -|x - A|, z_1 = -|x - B| with A = x - t s and B = x + q s, s a sign vector: the nearest point where they tie
    is x + (q - t)/2 s, and the margin there is q - t.
    """
    generator = torch.Generator().manual_seed(seed)
    d = 16
    s = torch.where(torch.rand(d, generator=generator) < 0.5, -1.0, 1.0)
    x = GRID[torch.randint(96, 160, (1, 1, 4, 4), generator=generator)]
    t, q = 0.05 + 0.02 * torch.rand(2, generator=generator)
    q = q + 0.1
    recipe = DistRecipe(dataset="synthetic", eps="0.1", preset="quick", source="test", widths=(), identity=0.0)
    net = DistNet(DataSpec("synthetic", 1, 4, 4, 2, (0.0,), (1.0,)), recipe).eval()
    with torch.no_grad():
        net.dense[0].weight[0] = x.flatten() - t * s
        net.dense[0].weight[1] = x.flatten() + q * s
    return net, x, torch.zeros(1, dtype=torch.int64), s.reshape(1, 1, 4, 4)


def test_tight_canaries_catch_a_radius_too_large_by_one_part_in_100000():
    """The certified radius holds and is the true distance: x + r s flips at r (1 + 1e-5), never at r (1 - 1e-5)."""
    for seed in range(100):
        net, x, y, s = canary(seed)
        radius = certified_radius(net, x, y).item()
        beyond = margin(net((x.double() + radius * (1 + 1e-5) * s).float()), y).item()
        within = margin(net((x.double() + radius * (1 - 1e-5) * s).float()), y).item()
        assert within > 0 >= beyond, seed


def test_radius_agrees_with_the_bound():
    for seed, kind in ((0, {}), (1, {"head": 6}), (2, {"convs": (3,)})):
        net, x, y = net_and_images(seed, **kind)
        radius = certified_radius(net, x, y)
        for eps in ("1/255", "4/255", "0.1", "0.2"):
            held = interval_bound(net, x, y, Eps(eps)).lower > 0
            assert torch.equal(held, radius >= Eps(eps).float32_up), (seed, eps)


def test_radius_is_zero_where_the_prediction_is_wrong():
    net, x, y = net_and_images(0)
    assert (certified_radius(net, x, (y + 1) % 3) == 0).all()


def test_a_tie_is_not_certified():
    net, x, y, _ = canary(0)
    with torch.no_grad():
        net.dense[0].weight[1] = net.dense[0].weight[0]
    assert interval_bound(net, x, y, Eps("0")).lower.item() == 0.0
    assert certified_radius(net, x, y).item() == 0.0


def test_every_float_of_the_ball_of_one_input_nets_stays_certified():
    """Exhaustive: all float32 values of the 8/255 ball (about 10^6 for each net), evaluated by the deployed net."""
    checked = 0
    for seed in range(6):
        net, x, y = net_and_images(seed, shape=(1, 1, 1), widths=(5, 4), n=1)
        if interval_bound(net, x, y, Eps("8/255")).lower.item() <= 0:
            continue
        low, high = (t.item() for t in threat.inner_box(x, Eps("8/255")))
        first, last = (torch.tensor(v).view(torch.int32).item() for v in (low, high))
        every = torch.arange(first, last + 1, dtype=torch.int32).view(torch.float32)
        for block in every.split(200_000):
            logits = net(block.reshape(-1, 1, 1, 1))
            assert (margin(logits, y.expand(len(block))) > 0).all()
        checked += len(every)
    assert checked > 500_000


def exact_logits(net, image):
    """The net in exact rational arithmetic on its stored float32 weights."""
    h = [(Fraction(float(v)) - Fraction(float(net.normalize.mean.flatten()[c]))) / Fraction(float(net.normalize.std))
         for c in range(image.shape[0]) for v in image[c].flatten()]  # fmt: skip
    for layer in net.distance_layers():
        rows = layer.weight.detach().tolist()
        d = [max(abs(a - Fraction(w)) for a, w in zip(h, row, strict=True)) for row in rows]
        mean = hasattr(layer.offset, "running_mean")
        offset = layer.offset.running_mean if mean else layer.offset.bias.detach()
        h = [v - Fraction(o) if mean else v + Fraction(o) for v, o in zip(d, offset.tolist(), strict=True)]
    return [-v for v in h]


def test_the_guard_covers_the_float32_error_found_with_fractions():
    for seed in range(5):
        net, x, _y = net_and_images(seed, shape=(1, 2, 3), widths=(5, 4), n=4)
        guard, logits = rounding_guard(net, x, torch.zeros(4, dtype=torch.float64))
        assert torch.equal(logits, net(x))
        for k in range(4):
            exact = exact_logits(net, x[k])
            off = max(abs(Fraction(float(a)) - b) for a, b in zip(logits[k].tolist(), exact, strict=True))
            assert 2 * off <= Fraction(guard[k].item())
            assert guard[k].item() < 1e-4  # rigorous, but no excuse to certify nothing


def test_the_guard_is_the_formula_of_the_proof():
    """Sampling cannot tell a guard from half of one; trust.md 1.6 can. Fractions, layer by layer, three layers."""
    net, x, _y = net_and_images(3, shape=(1, 2, 3), widths=(5, 4), n=4, bias_scale=50)
    radius = torch.tensor([0.0, 0.01, 0.1, 1.0], dtype=torch.float64)
    guard, _ = rounding_guard(net, x, radius)
    u, std = Fraction(1, 2**24), Fraction(float(net.normalize.std))

    def largest(*tensors):
        units = zip(*(t.flatten().tolist() for t in tensors), strict=True)
        return max(sum(abs(Fraction(v)) for v in values) for values in units)

    for k in range(4):
        eps, h = Fraction(radius[k].item()) / std, net.normalize(x[k : k + 1])
        here = 2 * u * (1 + 4 * u) * largest(h)
        ball = 2 * u * (1 + 4 * u) * (largest(h) + eps)
        for layer in net.distance_layers():
            d = layer.distances(h.flatten(1))
            h = layer.offset(d)
            here += u * largest(d, h)
            ball += u * (largest(d, h) + 3 * (eps + here + ball)) / (1 - 3 * u)
        assert 2 * (here + ball) <= Fraction(guard[k].item()) <= 2 * (here + ball) * (1 + Fraction(1, 10**5))


def test_every_tanh_of_a_head_is_doubted_by_its_ulps():
    """At radius 0 and with saturated units nothing is left but the ulps of tanh and the roundings of the last sum."""
    for seed in range(4):
        net, x, y = net_and_images(seed, head=7)
        with torch.no_grad():
            net.head.bias1.copy_(40 * torch.randn(7).sign())
        y = net(x).argmax(1)
        lower = interval_bound(net, x, y, Eps("0")).lower
        w, b, t = net.head.effective()[1].double(), net.head.bias2.double(), net.head.bias1.sign().double()
        gaps, other = w[y].unsqueeze(1) - w, torch.arange(3) != y.unsqueeze(1)  # [B, K, I], [B, K]
        exact = (gaps * t).sum(2) + b[y].unsqueeze(1) - b
        mass = w.abs().sum(1) + b.abs()  # |t| = 1
        doubt = TANH_ULPS * U32 * gaps.abs().sum(2) + 8 * U32 * (mass[y].unsqueeze(1) + mass)
        assert (lower <= (exact - doubt)[other].reshape(-1, 2).amin(1)).all()
        assert (margin(net(x), y) - lower).max() < 1e-4


def test_affine_bounds_hold_for_the_order_that_loses_most():
    """1 + u + u + ... stays 1 in float32 from the left, however many terms: the error grows with their number."""
    x = torch.full((1, 64), U32)
    x[0, 0] = 1.0
    from_the_left = torch.zeros(())
    for value in x[0]:
        from_the_left = from_the_left + value
    assert from_the_left == 1.0
    lower, upper = affine(x, x, torch.ones(1, 64), torch.zeros(1))
    assert lower <= from_the_left.double() <= upper


def test_affine_bounds_contain_exact_and_float32_values():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        low = torch.randn(3, 9, generator=generator)
        high = low + torch.rand(3, 9, generator=generator)
        w, b = torch.randn(4, 9, generator=generator) * 10, torch.randn(4, generator=generator)
        lower, upper = affine(low, high, w, b)
        for k in range(12):
            part = torch.rand(3, 9, generator=generator) if k else torch.zeros(3, 9)
            x = torch.minimum(torch.maximum(low + part * (high - low), low), high)
            out = torch.nn.functional.linear(x, w, b).double()
            assert ((lower <= out) & (out <= upper)).all()
        worst = torch.where(w > 0, high[:1], low[:1])  # the vertex that attains the upper end of every row
        for o in range(4):
            exact = sum(Fraction(float(a)) * Fraction(float(v)) for a, v in zip(w[o], worst[o], strict=True))
            assert exact + Fraction(float(b[o])) <= Fraction(upper[0, o].item())


def test_margin_bounds_of_a_last_layer_beat_the_difference_of_bounds():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(6, 9, generator=generator)
    high = low + 0.3
    w, b = torch.randn(4, 9, generator=generator), torch.randn(4, generator=generator)
    y = torch.arange(6) % 4
    merged = margins(low, high, w, b, y)
    lower, upper = affine(low, high, w, b)
    apart = lower.gather(1, y[:, None])[:, 0] - upper.scatter(1, y[:, None], -math.inf).amax(1)
    assert (merged >= apart - 1e-6).all() and (merged > apart + 0.01).any()


@pytest.mark.parametrize("stride", [4099, pytest.param(1, marks=pytest.mark.slow)])
def test_float32_tanh_is_within_the_ulps_the_certificate_assumes(stride):
    """The head's certificate is F32 only if |computed tanh - tanh| <= TANH_ULPS ulps; slow: for every float32."""
    largest = torch.tensor(float("inf")).view(torch.int32).item()
    for first in range(0, largest, 2**26):
        bits = torch.arange(first, min(first + 2**26, largest), stride, dtype=torch.int32)
        t = bits.view(torch.float32)
        computed, exact = torch.tanh(t).double(), torch.tanh(t.double())
        allowed = TANH_ULPS * (2 * U32 * exact.abs()) + TANH_ULPS * 2.0**-149
        assert ((computed - exact).abs() <= allowed).all()


@pytest.mark.parametrize("bound", [interval_bound, lipschitz_bound])
def test_certifying_in_training_mode_or_at_finite_p_is_refused(bound):
    net, x, y = net_and_images(0)
    net.train()
    with pytest.raises(ValueError, match=r"eval\(\)"):
        bound(net, x, y, Eps("0.1"))
    net.eval()
    net.dense[0].offset.train()  # one layer alone: its batch mean moves the function that is certified
    assert not net.is_exact
    with pytest.raises(ValueError, match=r"eval\(\)"):
        bound(net, x, y, Eps("0.1"))
    net.eval()
    net.set_p(1000.0)
    with pytest.raises(ValueError, match="finite p"):
        bound(net, x, y, Eps("0.1"))


def test_wrong_images_are_refused_by_name():
    net, x, y = net_and_images(0)
    for bad, message in ((x.double(), "float32"), (x[0], "shape"), (x + 1, "outside"), (x * math.nan, "NaN")):
        with pytest.raises(ValueError, match=message):
            interval_bound(net, bad, y, Eps("0.1"))


def test_a_head_that_may_overflow_has_no_certificate():
    """Infinite bounds must not become -1 and 1 in the tanh: float32 has inf - inf there."""
    net, x, y = net_and_images(0, head=4)
    with torch.no_grad():
        w1, _ = net.head.effective()
        sign = torch.tensor([1.0, -1.0]).repeat(w1.shape[1])[: w1.shape[1]]
        net.head.weight1[0] = 2.0**126 * sign
        assert net.head.effective()[0][0].abs().max() > 1e36
    with pytest.raises(ValueError, match="non-finite bounds in its head"):
        interval_bound(net, x, y, Eps("0.3"))


def test_a_net_with_nan_weights_has_no_certificate():
    net, x, y = net_and_images(0)
    with torch.no_grad():
        net.dense[1].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="non-finite"):
        interval_bound(net, x, y, Eps("0.1"))


def test_normalisation_constants_do_not_change_the_radius_in_pixels():
    """z = (x - m)/s with weights in units of s: scaling the units scales nothing in pixel space."""
    net, x, y = net_and_images(7)
    radius = certified_radius(net, x, y)
    other, _, _ = net_and_images(7)
    with torch.no_grad():
        other.normalize.std.mul_(0.5)
        other.normalize.scalar_std *= 0.5
        for layer in other.distance_layers():
            layer.weight.mul_(2)
            for value in (*layer.offset.parameters(), *layer.offset.buffers()):
                value.mul_(2)
    assert torch.allclose(radius, certified_radius(other, x, y), rtol=1e-5, atol=1e-7)


def test_smoothed_nets_are_the_net_at_finite_p_and_see_more_pixels():
    """What attacks follow: the same weights, logits that near the net's as p grows, gradients at many pixels."""
    net, x, y = net_and_images(0)
    models = dict(registry.get("linf_dist").attack_models(net))
    assert set(models) == {"p98", "p34"}
    assert all(a is b for model in models.values() for a, b in zip(net.parameters(), model.parameters(), strict=True))

    def touched(model):
        leaf = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(margin(model(leaf), y).sum(), leaf)
        return int((slope != 0).sum())

    assert touched(models["p34"]) > 2 * touched(net)
    with torch.no_grad():
        off = [float((models[name](x) - net(x)).abs().max()) for name in ("p98", "p34")]
    assert 0 < off[0] < off[1]


def test_certificates_and_radii_carry_no_graph():
    net, x, y = net_and_images(0)
    for bound in (interval_bound(net, x, y, Eps("0.01")), lipschitz_bound(net, x, y, Eps("0.01"))):
        assert not bound.lower.requires_grad
    assert not certified_radius(net, x, y).requires_grad


@pytest.mark.parametrize("name", ["forward", "distances", "between", "bounds"])
def test_a_layer_that_is_not_what_its_class_says_has_no_certificate(name):
    """Whatever of it is overridden: deployed and certified nets would be two."""
    net, x, y = net_and_images(0)
    base = type(net.dense[0])
    net.dense[0].__class__ = type("Other", (base,), {name: getattr(base, name)})
    for bound in (interval_bound, lipschitz_bound):
        with pytest.raises(ValueError, match=f"something else than DistLinear .it has its own {name}"):
            bound(net, x, y, Eps("0.01"))


def test_a_net_with_features_of_its_own_has_no_certificate():
    net, x, y = net_and_images(0)
    net.__class__ = type("Other", (DistNet,), {"features": lambda self, x, p=None: DistNet.features(self, x, p) / 2})
    with pytest.raises(ValueError, match="something else than DistNet"):
        interval_bound(net, x, y, Eps("0.01"))
