"""Rigorous interval arithmetic: bounds that hold for every float32 evaluation of a layer (class F32).

Derivation in trust.md 1.7: any order of IEEE float32 additions and products, fused or not, of n terms errs by at most
gamma_{n+1}(u) * (sum |w x| + |b|) + (n + 1) * 2^-149. The bounds themselves are computed in float64 and widened by the
float64 error of that computation, then rounded outward. `methods.interval_net` strings the layers together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

U32 = 2.0**-24  # unit roundoff of float32
U64 = 2.0**-53
TINY32 = 2.0**-149  # smallest positive float32: what gradual underflow can lose per operation
HALF_MAX32 = 2.0**127  # about half the largest float32


def gamma(n: int, u: float) -> float:
    """n u / (1 - n u), the standard factor of n accumulated roundings."""
    return n * u / (1.0 - n * u)


def no_overflow(mass: Tensor) -> Tensor:
    """`mass` where no float32 evaluation of terms of that total magnitude can overflow, else infinity.

    The gamma model of rounding holds below overflow only. A partial sum, in any order, is at most (1 + gamma) mass; an
    infinite slack makes bounds infinite, which certify nothing.
    """
    return torch.where(mass < HALF_MAX32, mass, torch.inf)


def outward(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """One float64 step further out on both sides."""
    return (
        torch.nextafter(lower, torch.full_like(lower, -torch.inf)),
        torch.nextafter(upper, torch.full_like(upper, torch.inf)),
    )


def _centre(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    centre = (lower + upper) / 2
    reach = torch.maximum(upper - centre, centre - lower) * (1 + 4 * U64) + 1e-300
    return centre, reach, torch.maximum(lower.abs(), upper.abs())


def affine(lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of every float32 evaluation of W x + b over lower <= x <= upper.

    Args:
        lower, upper: [B, I], float32 or float64, bounds of the float32 values the layer really receives.
        weight: [O, I] float32 as deployed. bias: [O] float32.

    Returns:
        [B, O] float64 lower, upper.
    """
    return linear_image(lower, upper, weight, bias, torch.nn.functional.linear)[:2]


def linear_image(
    lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor, product: Product
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`affine` for any layer that is linear in x with weights [O, ...] of which n = weight[0].numel() meet an output.

    Args:
        product: (x, weight, bias or None) -> output, e.g. a convolution with its stride and padding.

    Returns:
        lower, upper: float64 bounds. slack: what a float32 evaluation can be off by the exact layer. mass: |W||x| + |b|
        at its largest. All in the shape of the output.
    """
    lower, upper, w, b = lower.double(), upper.double(), weight.double(), bias.double()
    n = weight[0].numel()
    centre, reach, size = _centre(lower, upper)
    mid = product(centre, w, b)
    spread = product(reach, w.abs(), None)
    mass = product(size, w.abs(), b.abs())
    low, high = widen(mid, spread, rounding_slack(n, mass, spread))
    return low, high, rounding_slack(n, mass, torch.zeros_like(mass)), mass


def widen(mid: Tensor, spread: Tensor, err: Tensor) -> tuple[Tensor, Tensor]:
    """mid -+ (spread + err), rounded outward, float64."""
    low, high = mid - spread, mid + spread
    return outward(low - err - 4 * U64 * low.abs(), high + err + 4 * U64 * high.abs())


def rounding_slack(n: int, mass: Tensor, spread: Tensor) -> Tensor:
    """What n-term float32 sums of total magnitude `mass`, and our own float64 arithmetic, can be off by."""
    deployed = (gamma(n + 1, U32) + gamma(2 * n + 8, U64)) * no_overflow(mass) * (1 + gamma(n + 4, U64))
    return (deployed + gamma(n + 4, U64) * spread + (n + 1) * TINY32) * (1 + 8 * U64)


def margins(lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """Lower bound of min_{j != y} (f_y - f_j) for a last affine layer: the smallest of `class_margins`, [B] float64."""
    return class_margins(lower, upper, weight, bias, y).amin(dim=1)


def class_margins(lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """Lower bounds of f_y - f_j for a last affine layer, over the box and every float32 evaluation.

    The difference of rows (w_y - w_j) is bounded as one, which is tighter than the difference of bounds; the deployed
    rounding errors of both logits are then taken off.

    Args:
        lower, upper: [B, I]. weight: [K, I]. bias: [K]. y: [B] int64.

    Returns:
        [B, K] float64, infinity at j = y.
    """
    lower, upper, w, b = lower.double(), upper.double(), weight.double(), bias.double()
    n, classes = weight.shape[1], weight.shape[0]
    centre, reach, size = _centre(lower, upper)
    mass = size @ w.abs().T + b.abs()  # [B, K]
    deployed = rounding_slack(n, mass, torch.zeros_like(mass))
    worst = torch.full_like(mass, torch.inf)
    for label in range(classes):
        rows = y == label
        if not bool(rows.any()):
            continue
        others = [j for j in range(classes) if j != label]
        gap_w = w[label] - w[others]  # [K-1, I], each entry off by at most U64 relative
        gap_b = b[label] - b[others]
        mid = centre[rows] @ gap_w.T + gap_b
        spread = reach[rows] @ gap_w.abs().T
        total = size[rows] @ gap_w.abs().T + gap_b.abs()
        ours = gamma(2 * n + 12, U64) * (total + spread) + 1e-300
        both = deployed[rows][:, [label]] + deployed[rows][:, others]
        gap = mid - spread - (ours + both) * (1 + 8 * U64) - 4 * U64 * (mid - spread).abs()
        picked = rows.nonzero()
        worst[picked, torch.tensor(others, device=y.device)] = torch.nextafter(gap, torch.full_like(gap, -torch.inf))
    return worst
