"""Certified radii of ReLU nets: a cheap search with ordinary float32 bounds, then a few rigorous probes around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench import margin

from .box import run
from .interval_net import check, ibp_margin_at
from .nets import ReluNet

SEARCH_STEPS = 20  # bisection of [0, 1] by float32 bounds: to 1e-6
PROBES = 8  # rigorous bounds per example
FIRST_STEP = 2e-3  # relative: rounding control seldom costs more of a radius than this
AIM = 3e-7  # relative: how far below its estimate of the root a secant aims, so that it lands on the certified side

Certify = Callable[[Tensor], Tensor]  # radius [B] float32 -> margin bound [B] float64


def certified_radius(net: ReluNet, x: Tensor, y: Tensor, certify: Certify | None = None) -> Tensor:
    """A radius per example that `certify` proves, within about 1e-6 relative of the largest one; 0 where wrong.

    Args:
        certify: bound of the margin at a radius per example; default: rigorous interval propagation.

    Returns:
        [B] float64 in pixel units.
    """
    check(net, x)
    with torch.no_grad():
        gap = margin(net(x), y)
        guess = _search(net, x, y)
        good = refine(certify or (lambda radius: ibp_margin_at(net, x, y, radius)), guess, gap)
    return torch.where(gap > 0, good.double(), torch.zeros_like(gap))


def _search(net: ReluNet, x: Tensor, y: Tensor) -> Tensor:
    """Largest radius, [B] float32, that interval bounds without rounding control still pass."""
    good, bad = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    hide = torch.zeros(len(x), net.head.out_features, dtype=torch.bool, device=x.device).scatter_(1, y[:, None], True)
    for _ in range(SEARCH_STEPS):
        middle = (good + bad) / 2
        margins = run(net, x, middle.reshape(-1, 1, 1, 1), clean=False).margins(y)
        held = margins.masked_fill(hide, torch.inf).amin(dim=1) > 0
        good, bad = torch.where(held, middle, good), torch.where(held, bad, middle)
    return good


def refine(certify: Certify, guess: Tensor, gap: Tensor) -> Tensor:
    """The largest radius, [B] float32, at which `certify` holds: a bracket around `guess`, closed by secants.

    Bounds are nearly linear there; where they are not, one end would stay for ever, so the Illinois rule halves its
    value each time it does. `gap` [B] float64 is the margin at radius 0.
    """
    good, bad = torch.zeros_like(guess), torch.ones_like(guess)
    at_good, at_bad = gap.clone(), torch.full_like(gap, -torch.inf)
    width = torch.full_like(guess, FIRST_STEP)
    for _ in range(PROBES):
        open_below, open_above = good == 0, torch.isinf(at_bad)
        share = (at_good / (at_good - at_bad)).nan_to_num(0.5).clamp(0.0, 1 - 1e-3)
        secant = (good.double() + (bad - good).double() * share).float() * (1 - AIM)
        probe = torch.where(open_below, guess * (1 - width), torch.where(open_above, guess * (1 + width), secant))
        probe = torch.maximum(probe, good).clamp(max=1.0)
        bound = certify(probe)
        held = bound > 0
        inside = ~(open_below | open_above)
        at_good, at_bad = (
            torch.where(held, bound, torch.where(inside, at_good / 2, at_good)),
            torch.where(held, torch.where(inside, at_bad / 2, at_bad), bound),
        )
        good, bad = torch.where(held, probe, good), torch.where(held, bad, probe)
        missed = (good == 0) | (torch.isinf(at_bad) & ~open_below)  # the end probed for lies further out
        width = torch.where(missed, (width * 8).clamp(max=0.9), width)
    return good
