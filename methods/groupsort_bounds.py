"""Certificates of GroupSort nets: intervals, and the two Lipschitz margins of arXiv 1811.05381 from actual norms.

Norms are computed in float64 and rounded up, never assumed to be 1: projection leaves rows at 1 +- 1e-6. Class F32
takes off what float32 evaluation can change inside the ball (trust.md 1.8); class R does not. Interval propagation is
never below the margins except for rounding, because no reach can outgrow its layer's Lipschitz constant, and it alone
knows that pixels end at 0 and 1: hence the headline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench import Bound, Eps, margin
from bench.threat import box, box_float32

from .interval import TINY32, U32, U64, affine, class_margins, gamma, no_overflow
from .interval_net import check, size
from .radius import refine

if TYPE_CHECKING:
    from .groupsort import GroupSortNet

UP = 1 + 2.0**-30  # rounds any short float64 calculation of positive numbers up


def row_norms(layer: nn.Linear) -> Tensor:
    """l_1 norm of every row, [O] float64, not below the exact one."""
    return layer.weight.double().abs().sum(dim=1) * (1 + gamma(layer.in_features + 2, U64))


# --- intervals --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def interval_bound(net: GroupSortNet, x: Tensor, y: Tensor, eps: Eps) -> Bound:
    """Margin bound by interval propagation of the outer box, clipped to [0, 1]; class F32.

    Raises:
        ValueError: training mode, wrong dtype, shape or range, non-finite weights.
    """
    check(net, x)
    return Bound(_interval_margin(net, *box(x, eps), y), "interval", "F32")


def _interval_margin(net: GroupSortNet, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    factor = float(net.factor)
    *body, last = net.dense_layers()
    low, high = lower.double().flatten(1), upper.double().flatten(1)
    for layer in body:
        low, high = _times(*affine(low, high, layer.weight, layer.bias), factor)
        low, high = net.sort(low), net.sort(high)  # monotone and exact: ends map to ends
    gaps = class_margins(low, high, last.weight, last.bias, y) * factor
    if factor != 1:  # one more rounding of each logit, and of our own product
        mass = (size((low, high)) @ last.weight.double().abs().T + last.bias.double().abs()) * factor  # [B, K]
        mass = no_overflow(mass)
        gaps = gaps - 2 * gamma(2, U32) * (mass + mass.gather(1, y[:, None])) - 2 * TINY32
    if bool(torch.isnan(gaps).any()) or not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        raise ValueError("net gives non-finite bounds; a net with NaN or infinite weights has no certificate")
    return gaps.amin(dim=1)


def _times(low: Tensor, high: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Ends of fl(factor * v), factor > 0, v between low and high."""
    if factor == 1:
        return low, high
    low, high = -no_overflow(-low * factor), no_overflow(high * factor)
    return low - 2 * U32 * low.abs() - TINY32, high + 2 * U32 * high.abs() + TINY32


@torch.no_grad()
def certified_radius(net: GroupSortNet, x: Tensor, y: Tensor) -> Tensor:
    """Largest radius the intervals certify, [B] float64 in pixel units, to about 1e-6 relative; 0 where wrong."""
    check(net, x)
    gap = margin(net(x), y)
    parts = _parts(net, x, y)
    reach = (parts.gaps / parts.pair).nan_to_num(torch.inf, torch.inf)  # equal rows never change places: 0 / 0
    guess = reach.amin(dim=1).float()
    good = refine(lambda rows, radius: _interval_margin(net, *box_float32(x[rows], radius), y[rows]), guess, gap)
    return torch.where(gap > 0, good.double(), torch.zeros_like(gap))


# --- Lipschitz margins ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """gaps: real f_y - f_j at x, [B, K], not above the exact ones, infinity at j = y. pair: its Lipschitz constants,
    [B, K]. overall: the constant of the whole net.
    """

    gaps: Tensor
    pair: Tensor
    overall: float


def _parts(net: GroupSortNet, x: Tensor, y: Tensor) -> _Parts:
    """The real net at x in float64, with the float64 error taken off, and Lipschitz constants rounded up."""
    factor = float(net.factor)
    *body, last = net.dense_layers()
    h, error, below = x.double().flatten(1), torch.zeros(len(x), dtype=torch.float64, device=x.device), 1.0
    for layer in body:
        norms = row_norms(layer)
        mass = h.abs() @ layer.weight.double().abs().T + layer.bias.double().abs()
        error = (
            factor * float(norms.max()) * error + factor * gamma(layer.in_features + 4, U64) * mass.amax(dim=1)
        ) * UP
        h = net.sort(nn.functional.linear(h, layer.weight.double(), layer.bias.double()) * factor)
        below *= factor * float(norms.max()) * UP
    weight, bias = last.weight.double(), last.bias.double()
    rows = weight[y].unsqueeze(1) - weight  # [B, K, I]
    apart = rows.abs().sum(dim=2) * factor * (1 + gamma(last.in_features + 4, U64))  # [B, K]
    mass = h.abs() @ weight.abs().T + bias.abs()
    gaps = (torch.bmm(rows, h.unsqueeze(2)).squeeze(2) + bias[y].unsqueeze(1) - bias) * factor
    slack = apart * error.unsqueeze(1) + factor * gamma(last.in_features + 8, U64) * (mass + mass.gather(1, y[:, None]))
    gaps = (gaps - slack * UP).scatter(1, y[:, None], torch.inf)
    overall = below * factor * float(row_norms(last).max()) * UP
    if not math.isfinite(overall) or bool(torch.isnan(gaps).any()):
        raise ValueError("net gives non-finite bounds; a net with NaN or infinite weights has no certificate")
    return _Parts(gaps, apart * below * UP, overall)


def _guard(net: GroupSortNet, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """How far float32 evaluation of f_y - f_j can be off anywhere in the ball, [B, K] float64 (trust.md 1.6, 1.8).

    Magnitudes inside the ball are those at x plus what the Lipschitz constants and the errors so far allow.
    """
    factor = float(net.factor)
    *body, last = net.dense_layers()
    h = x.double().flatten(1)
    error = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    moved = torch.full_like(error, eps)  # by how much any deployed activation may differ from the real one at x
    for layer in body:
        norm = float(row_norms(layer).max())
        local = _local(layer, h, moved, factor).amax(dim=1)
        h = net.sort(nn.functional.linear(h, layer.weight.double(), layer.bias.double()) * factor)
        error = (factor * norm * error + local) * UP
        moved = (factor * norm * moved + local) * UP
    local = _local(last, h, moved, factor)  # [B, K]
    apart = (last.weight.double()[y].unsqueeze(1) - last.weight.double()).abs().sum(dim=2) * factor * UP
    both = (apart * error.unsqueeze(1) + local + local.gather(1, y[:, None])) * UP
    return both.scatter(1, y[:, None], 0.0)  # f_y - f_y is exact; infinity here would meet the infinite gap


def _local(layer: nn.Linear, h: Tensor, moved: Tensor, factor: float) -> Tensor:
    """Rounding of one layer and its factor where every input is within `moved` [B] of h [B, I]: [B, O]."""
    n = layer.in_features
    mass = (h.abs() + moved.unsqueeze(1)) @ layer.weight.double().abs().T + layer.bias.double().abs()
    mass = no_overflow(mass * max(1.0, factor)) / max(1.0, factor)
    return (factor * (gamma(n + 3, U32) * mass + (n + 1) * TINY32) + TINY32) * UP


@torch.no_grad()
def certificates(net: GroupSortNet, x: Tensor, y: Tensor, eps: Eps) -> list[Bound]:
    """Every certificate, the headline first.

    interval (F32); lipschitz (F32), per pair of classes f_y - f_j > K_yj eps; lipschitz_real (R), the same without the
    rounding guard; lipschitz_global (F32), with twice the constant of the whole net instead of the pair's.
    """
    headline = interval_bound(net, x, y, eps)
    parts, radius = _parts(net, x, y), eps.float32_up
    guard = _guard(net, x, y, radius)
    by_pair = parts.gaps - parts.pair * radius * UP
    overall = parts.gaps - 2 * parts.overall * radius * UP
    return [
        headline,
        Bound((by_pair - guard).amin(dim=1), "lipschitz", "F32"),
        Bound(by_pair.amin(dim=1), "lipschitz_real", "R"),
        Bound((overall - guard).amin(dim=1), "lipschitz_global", "F32"),
    ]
