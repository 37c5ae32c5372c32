"""Linear bounds pulled back through a tape: CROWN-IBP margins, and the fused cross-entropy of loss fusion.

CROWN-IBP (arXiv 1906.06316): interval bounds for every ReLU, one backward pass of linear bounds for the class margins.
Loss fusion (arXiv 2002.12920): the sum of exponentials inside the cross-entropy is bounded as one number, so the
backward pass carries one row instead of K - 1. In training both are rounded to nearest; `crown_ibp_bound` controls all
roundings and is a class F32 certificate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import Bound, Eps, margin
from bench.threat import box, box_float32

from .box import Passed, bias_of, class_rows
from .interval import U64, gamma, rounding_slack
from .interval_net import Reached, check, reach, size
from .nets import ReluNet
from .radius import certified_radius as interval_radius
from .radius import refine
from .tape import add_down, contract, pull

# Bytes of one layer's rows in a certificate, some ten such tensors live at a time: enough to keep a GPU busy, and what
# stays in a CPU's caches (in parts of 8 MiB a certificate takes 0.6 of the time that it takes in parts of 256).
MEMORY = {"cuda": 256 << 20, "cpu": 8 << 20}


def crown_ibp_margins(passed: Passed, y: Tensor) -> Tensor:
    """CROWN-IBP lower bounds of f_y - f_j, [B, K], 0 at j = y; differentiable. Needs a tape.

    Only the K - 1 other classes are pulled back.
    """
    others = other_classes(y, passed.head.out_features)  # [B, K-1]
    rows, offset = class_rows(passed.head, y)
    picked = rows.gather(1, others.unsqueeze(2).expand(-1, -1, rows.shape[2]))
    low = _lower(passed, picked) + offset.gather(1, others)
    return torch.zeros_like(offset).scatter(1, others, low)


def _lower(passed: Passed, rows: Tensor) -> Tensor:
    """Lower bounds [B, S] over the box of rows [B, S, H] times what enters the last layer."""
    assert passed.tape is not None
    centre, spread = passed.image.box()
    pulled, constant = pull(passed.tape, rows)
    return contract(pulled, centre) - contract(pulled.abs(), spread) + constant


def other_classes(y: Tensor, classes: int) -> Tensor:
    """The classes but the label, ascending, [B, K-1]."""
    every = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    return every + (every >= y.unsqueeze(1))


def fused_cross_entropy(passed: Passed, y: Tensor, share: float) -> Tensor:
    """Upper bound of the worst-case cross-entropy, [B], by loss fusion.

    log sum_j exp(f_j - f_y) <= log(share * linear + (1 - share) * interval): exp is bounded above by its chord over the
    interval of each difference, and the weighted sum of differences is one row for the backward pass. It is another
    objective than the cross-entropy of CROWN-IBP margins, mostly a looser one, and costs a fraction of it.

    Args:
        share: weight of the linear bound, in [0, 1]; 0 leaves the backward pass out and equals plain interval training.
    """
    # Differences d_j = f_j - f_y, between these; both are 0 at j = y.
    upper = -passed.margins(y)
    shift = upper.detach().amax(dim=1, keepdim=True)  # [B, 1], >= 0; keeps exp finite, gradient-free as it cancels
    interval = (upper - shift).exp().sum(dim=1)
    if share == 0:
        return interval.log() + shift[:, 0]
    rows, offset = class_rows(passed.head, y)  # f_y - f_j
    lower = -_upper_margins(passed, rows, offset)
    low, high = (lower - shift).exp(), (upper - shift).exp()
    slope = (high - low) / (upper - lower).clamp(min=1e-6)  # [B, K]; the label's is 0 / 1e-6 = 0
    rest = (low - slope * lower).sum(dim=1)
    row = torch.bmm(slope.unsqueeze(1), rows)  # [B, 1, H], sum_j slope_j (w_y - w_j)
    linear = rest - _lower(passed, row)[:, 0] - (slope * offset).sum(dim=1)
    # The true sum is at least exp(-shift); only rounding can bring the bound below that.
    mixed = share * linear + (1 - share) * interval
    return torch.maximum(mixed, (-shift[:, 0]).exp()).log() + shift[:, 0]


def _upper_margins(passed: Passed, rows: Tensor, offset: Tensor) -> Tensor:
    """Interval upper bounds of f_y - f_j, [B, K]."""
    centre, spread = passed.flow.box()
    middle = torch.bmm(rows, centre.unsqueeze(2)).squeeze(2) + offset
    return middle + torch.bmm(rows.abs(), spread.unsqueeze(2)).squeeze(2)


# --- the certificate --------------------------------------------------------------------------------------------------


@torch.no_grad()
def crown_ibp_bound(net: ReluNet, x: Tensor, y: Tensor, eps: Eps) -> Bound:
    """Margin bound: per class the better of interval propagation and CROWN-IBP; class F32.

    CROWN-IBP alone can be worse than intervals (its relaxation of an unstable ReLU is not inside the box); the better
    of two valid bounds is valid. Same arguments and errors as `interval_net.ibp_bound`.
    """
    return both_bounds(net, x, y, eps)[0]


@torch.no_grad()
def both_bounds(net: ReluNet, x: Tensor, y: Tensor, eps: Eps) -> list[Bound]:
    """`crown_ibp_bound` and `interval_net.ibp_bound` for one interval pass."""
    check(net, x)
    interval, better = _margins(net, *box(x, eps), y)
    return [Bound(better, "crown_ibp", "F32"), Bound(interval, "ibp", "F32")]


@torch.no_grad()
def certified_radius(net: ReluNet, x: Tensor, y: Tensor) -> Tensor:
    """A radius per example that `crown_ibp_bound` proves, [B] float64; 0 where wrong.

    Not below the one of intervals. The bound is not exactly monotone in the radius, so a larger one may exist.
    """
    start = interval_radius(net, x, y)
    gap = margin(net(x), y)
    guess = (start * 1.1).float()
    found = refine(lambda rows, radius: _margins(net, *box_float32(x[rows], radius), y[rows])[1], guess, gap).double()
    return torch.where(gap > 0, torch.maximum(found, start), torch.zeros_like(gap))


def _margins(net: ReluNet, lower: Tensor, upper: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Margin bounds by intervals, and by the better of both per class, [B] float64; in parts that fit the memory."""
    memory = MEMORY["cpu" if lower.device.type == "cpu" else "cuda"]
    count = max(1, memory // max(1, 8 * net.head.out_features * widest(net, lower[:1])))
    parts = [
        _margins_of(net, *part) for part in zip(lower.split(count), upper.split(count), y.split(count), strict=True)
    ]
    interval, better = (torch.cat(column) for column in zip(*parts, strict=True))
    return interval, better


def widest(net: ReluNet, x: Tensor) -> int:
    """The largest number of activations of any layer on one image, x [1, C, H, W]."""
    sizes = [x.numel()]
    handles = [m.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel())) for m in net.modules()]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)


def _margins_of(net: ReluNet, lower: Tensor, upper: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    reached = reach(net, lower, upper, tape=True)
    interval = reached.class_margins(y)
    better = torch.maximum(interval, _linear_class_margins(reached, y))
    return interval.amin(dim=1), better.amin(dim=1)


def _linear_class_margins(reached: Reached, y: Tensor) -> Tensor:
    """CROWN-IBP lower bounds of f_y - f_j, [B, K] float64, infinity at j = y, every rounding taken off."""
    assert reached.tape is not None
    head = reached.head
    weight, bias, n = head.weight.double(), bias_of(head).double(), head.in_features
    mass = size((reached.lower, reached.upper)) @ weight.abs().T + bias.abs()  # [B, K]
    deployed = rounding_slack(n, mass, torch.zeros_like(mass)) + gamma(2 * n + 12, U64) * mass
    others = other_classes(y, head.out_features)
    own = y.unsqueeze(1)
    rows = weight[own] - weight[others]  # [B, K-1, I]
    offset = bias[own] - bias[others] - (deployed.gather(1, own) + deployed.gather(1, others)) * (1 + 8 * U64)
    pulled, constant = pull(reached.tape, rows)
    lower, upper = (end.double() for end in reached.image)
    least = contract(pulled.clamp(min=0), lower) + contract(pulled.clamp(max=0), upper)
    error = gamma(2 * lower.shape[1:].numel() + 8, U64) * contract(pulled.abs(), size((lower, upper)))
    low = add_down(add_down(least, -error * (1 + 1e-9), True), add_down(constant, offset, True), True)
    return torch.full_like(mass, torch.inf).scatter(1, others, low)
