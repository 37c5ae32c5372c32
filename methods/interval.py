"""Rigorous interval arithmetic for affine layers: bounds that hold for every float32 evaluation (class F32).

Derivation in trust.md 1.7: any order of IEEE float32 additions and products, fused or not, of n terms errs by at most
gamma_{n+1}(u) * (sum |w x| + |b|) + (n + 1) * 2^-149. The bounds themselves are computed in float64 and widened by the
float64 error of that computation, then rounded outward.
"""

from __future__ import annotations

import torch
from torch import Tensor

U32 = 2.0**-24  # unit roundoff of float32
U64 = 2.0**-53
TINY32 = 2.0**-149  # smallest positive float32: what gradual underflow can lose per operation


def gamma(n: int, u: float) -> float:
    """n u / (1 - n u), the standard factor of n accumulated roundings."""
    return n * u / (1.0 - n * u)


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
    lower, upper, w, b = lower.double(), upper.double(), weight.double(), bias.double()
    n = weight.shape[1]
    centre, reach, size = _centre(lower, upper)
    mid = centre @ w.T + b
    spread = reach @ w.abs().T
    mass = size @ w.abs().T + b.abs()
    err = rounding_slack(n, mass, spread)
    return outward(
        mid - spread - err - 4 * U64 * (mid - spread).abs(), mid + spread + err + 4 * U64 * (mid + spread).abs()
    )


def rounding_slack(n: int, mass: Tensor, spread: Tensor) -> Tensor:
    """What n-term float32 sums of total magnitude `mass`, and our own float64 arithmetic, can be off by."""
    deployed = (gamma(n + 1, U32) + gamma(2 * n + 8, U64)) * mass * (1 + gamma(n + 4, U64))
    return (deployed + gamma(n + 4, U64) * spread + (n + 1) * TINY32) * (1 + 8 * U64)


def margins(lower: Tensor, upper: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """Lower bound of min_{j != y} (f_y - f_j) for a last affine layer, over the box and every float32 evaluation.

    The difference of rows (w_y - w_j) is bounded as one, which is tighter than the difference of bounds; the deployed
    rounding errors of both logits are then taken off.

    Args:
        lower, upper: [B, I]. weight: [K, I]. bias: [K]. y: [B] int64.

    Returns:
        [B] float64.
    """
    lower, upper, w, b = lower.double(), upper.double(), weight.double(), bias.double()
    n, classes = weight.shape[1], weight.shape[0]
    centre, reach, size = _centre(lower, upper)
    mass = size @ w.abs().T + b.abs()  # [B, K]
    deployed = rounding_slack(n, mass, torch.zeros_like(mass))
    worst = torch.full_like(centre[:, 0], torch.inf)
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
        worst[rows] = torch.nextafter(gap, torch.full_like(gap, -torch.inf)).amin(dim=1)
    return worst
