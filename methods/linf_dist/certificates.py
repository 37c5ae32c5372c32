"""Certificates of distance nets: interval propagation (class D) and the Lipschitz margin with its rounding guard (F32).

Proofs in trust.md 1.3 (interval: same float32 operations on both ends of the box, all monotone, so zero slack), 1.6
(margin: the real net is 1-Lipschitz, the float32 one is off by at most E) and 1.7 (affine head).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench import Bound, Eps, margin
from bench.threat import box, box_float32, check_images

from ..interval import TINY32, U32, affine, margins
from ..lookalikes import refuse_lookalikes
from .layers import Bias, DistConv2d, DistLinear, MeanShift, Normalize
from .nets import DistNet, Head

# |computed tanh - tanh| <= TANH_ULPS float32 ulps: 1 ulp is what vectorised libm implementations state; 4 is our
# margin, checked for all floats by tests/methods/linf_dist/test_certificates.py (slow).
TANH_ULPS = 4
RADIUS_STEPS = 24  # bisection steps: bracket / 2^24 is below a float32 ulp of any radius that matters


def _check(net: DistNet, x: Tensor) -> None:
    check_images(x)
    if any(module.training for module in net.modules()):
        raise ValueError("net is in training mode; call net.eval() before certifying: batch means are no certificate")
    refuse_lookalikes(net, (DistNet, DistLinear, DistConv2d, Normalize, MeanShift, Bias, Head))
    if not net.is_exact:
        raise ValueError("net has layers at finite p; set_p(math.inf) before certifying: only p = inf is 1-Lipschitz")


@torch.no_grad()
def interval_bound(net: DistNet, x: Tensor, y: Tensor, eps: Eps) -> Bound:
    """Margin bound by interval propagation of the outer box, clipped to [0, 1].

    Class D for a net whose logits are negated distances; F32 with an affine head.

    Args:
        net: in eval mode at p = inf. x: [B, C, H, W] float32 in [0, 1]. y: [B] int64. eps: exact radius.

    Returns:
        Bound with lower [B] float64.

    Raises:
        ValueError: wrong mode, p, dtype, shape or range.
    """
    _check(net, x)
    return Bound(_interval_margin(net, *box(x, eps), y), "interval", "D" if net.head is None else "F32")


def _interval_margin(net: DistNet, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    low, high = net.feature_bounds(lower, upper)
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        raise ValueError("net gives non-finite bounds; a net with NaN or infinite weights has no certificate")
    if net.head is None:
        own = -high.gather(1, y[:, None])[:, 0]  # logits are negated distances: the ends swap
        rest = (-low).scatter(1, y[:, None], -math.inf).amax(dim=1)
        return own.double() - rest.double()
    w1, w2 = net.head.effective()
    low64, high64 = affine(low, high, w1, net.head.bias1)
    if not bool(torch.isfinite(low64).all() & torch.isfinite(high64).all()):  # tanh would make of it an honest -1 or 1
        raise ValueError("net gives non-finite bounds in its head, where float32 may overflow: no certificate")
    slack = 2 * TANH_ULPS * U32
    t_low, t_high = torch.tanh(low64), torch.tanh(high64)  # float64, far more exact than the slack
    t_low = t_low - slack * t_low.abs() - TINY32 * TANH_ULPS
    t_high = t_high + slack * t_high.abs() + TINY32 * TANH_ULPS
    return margins(t_low, t_high, w2, net.head.bias2, y)


@torch.no_grad()
def lipschitz_bound(net: DistNet, x: Tensor, y: Tensor, eps: Eps) -> Bound:
    """Margin bound margin - 2 eps - G: the net is 1-Lipschitz, G covers the rounding of every evaluation (class F32).

    Only for nets without a head. Same arguments and errors as `interval_bound`.
    """
    _check(net, x)
    guard, logits = rounding_guard(net, x, torch.full((x.shape[0],), eps.float32_up, dtype=torch.float64))
    return Bound(margin(logits, y) - 2 * _scaled(eps.float32_up, net) - guard, "lipschitz", "F32")


def _scaled(radius: float, net: DistNet) -> float:
    """A radius in the net's normalised units, rounded up in float64."""
    return radius / float(net.normalize.std) * (1 + 2.0**-50)


@torch.no_grad()
def rounding_guard(net: DistNet, x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """G of trust.md 1.6: twice the float32 error at x plus twice its bound over the ball; and the logits.

    Args:
        radius: [B] float64, pixel units: an upper bound of every radius G will be used for.

    Returns:
        G [B] float64 in logit units, logits [B, K] float32 (bit-equal to net(x)).
    """
    scaled = radius.to(x.device) / float(net.normalize.std) * (1 + 2.0**-50)
    h = net.normalize(x)
    biggest = h.abs().flatten(1).amax(dim=1).double()
    here = 2 * U32 * (1 + 4 * U32) * biggest
    ball = 2 * U32 * (1 + 4 * U32) * (biggest + scaled)
    for layer in net.distance_layers():
        d = layer.distances(h if isinstance(layer, DistConv2d) else h.flatten(1))
        h = layer.offset(d)
        # Each of the roundings (x - w, offset) is off by at most u times its computed result.
        size = (d.abs() + h.abs()).flatten(1).amax(dim=1).double()
        here = here + U32 * size
        ball = ball + U32 * (size + 3 * (scaled + here + ball)) / (1 - 3 * U32)
    return 2 * (here + ball) * (1 + 2.0**-20), -h


@torch.no_grad()
def certified_radius(net: DistNet, x: Tensor, y: Tensor) -> Tensor:
    """Largest radius, to float32 precision and from below, that interval propagation certifies for each example.

    Bisection on the float32 radius of the box; boxes are nested and every operation is monotone, so being certified is
    exactly monotone in the radius. 0 where the prediction is wrong.

    Returns:
        [B] float64 in pixel units.
    """
    _check(net, x)
    logits = net(x)
    gap = margin(logits, y)
    std = float(net.normalize.std)
    good = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
    # A ball of radius 1 around an image is all of [0, 1]^n: nothing larger can be asked for.
    bad = torch.ones_like(good)
    if net.head is None:
        # Start at the Lipschitz radius: nearly always certified, and nearly the answer.
        guess = (gap * std / 2 * (1 - 1e-5)).clamp(min=0, max=1).float()
        wide = (guess * 1.5 + 1e-3).clamp(max=1)
        for probe in (guess, wide):
            held = (probe > 0) & (_interval_margin(net, *box_float32(x, probe), y) > 0)
            good = torch.where(held & (probe > good), probe, good)
            bad = torch.where(~held & (probe < bad), probe, bad)
    for _ in range(RADIUS_STEPS):
        middle = (good + bad) / 2
        held = _interval_margin(net, *box_float32(x, middle), y) > 0
        good, bad = torch.where(held, middle, good), torch.where(held, bad, middle)
    return torch.where(gap > 0, good.double(), torch.zeros_like(gap))
