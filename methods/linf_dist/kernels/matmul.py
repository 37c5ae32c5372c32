"""Even p <= 12 by matrix products: the distance layer of a training step on the matrix units of a GPU.

For even p, sum_i (x_i - w_i)^p = sum_i x_i^p + sum_i w_i^p + sum_m C(p, m) (-1)^m <x^(p-m), w^m>: one product of
powers with inner size (p - 1) I. The gradient takes two more, with c = g / y^(p-1):
dx = sum_m (-1)^m C(p-1, m) x^(p-1-m) (c @ w^m) and dw the same with x and w exchanged.

The guard. Where x and w are large and close, the sum cancels and may even be negative; few such pairs are enough to
ruin a run through c. A pair whose sum is below (kappa (|x|_p + |w|_p))^p is flagged: its distance is computed directly,
its c is 0, and its gradient is added directly. More flagged pairs than the capacity: the whole layer is computed
directly.

Training only. `dist_matmul` refuses to run where gradients are off, so that no evaluation or certificate can reach it,
and its format is an argument (`matmul_formats`), never a switch.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from methods.linf_dist.kernels import gpu, ops
from methods.linf_dist.kernels.matmul_formats import check_format, default_kappa, product

EXPONENTS = (2, 4, 6, 8, 10, 12)  # above, binomials and the guard leave too little
CAPACITY = 0.05  # share of the pairs that may be flagged
SMALLEST = 1e-28  # sums of scaled powers below have lost terms to underflow
PAIR_BUDGET = 2**20  # coordinates of flagged pairs gathered at a time on a CPU


@dataclass
class MatmulStats:
    """Flagged pairs of one layer, added up on its device: reading `share` waits for the device, updating does not."""

    pairs: int = 0
    calls: int = 0
    _flagged: Tensor | None = field(default=None, repr=False)
    _overflows: Tensor | None = field(default=None, repr=False)

    def add(self, flagged: Tensor, pairs: int, capacity: int) -> None:
        """Count one call's `flagged` (int64 scalar) of `pairs`."""
        self.pairs += pairs
        self.calls += 1
        over = (flagged > capacity).to(torch.int64)
        self._flagged = flagged if self._flagged is None else self._flagged + flagged
        self._overflows = over if self._overflows is None else self._overflows + over

    def ratio(self) -> Tensor | None:
        """`share` as a scalar on the device; None before the first call."""
        return None if self._flagged is None else self._flagged / max(1, self.pairs)

    @property
    def share(self) -> float:
        """Flagged pairs over all pairs; 0 before the first call."""
        return 0.0 if self._flagged is None else int(self._flagged) / max(1, self.pairs)

    @property
    def overflows(self) -> int:
        """Calls with more flagged pairs than the capacity: the direct kernels are the better choice then."""
        return 0 if self._overflows is None else int(self._overflows)


def has_units(x: Tensor) -> bool:
    """Whether products of tensors like `x` run on matrix units that take every format, by the Triton kernels."""
    return gpu.available(x)


def dist_matmul(
    x: Tensor, w: Tensor, p: float, *, format: str, kappa: float | None = None, capacity: float = CAPACITY,
    stats: MatmulStats | None = None,
) -> Tensor:
    """`dist` by guarded matrix products: out[b, o] = (sum_i |x[b, i] - w[o, i]| ** p) ** (1 / p), even p <= 12.

    Args:
        x: [B, I] float32. w: [O, I] float32 on its device.
        p: one of `EXPONENTS`.
        format: of the products: float32, tf32 or bf16x3.
        kappa: guard; the default (`matmul_formats.KAPPA`) is .25, .5 and .4 at p = 8, and grows with p.
        capacity: share of the pairs that may be flagged before the whole layer is computed directly.
        stats: counts flagged pairs.

    Returns:
        [B, O], differentiable once in `x` and `w`. Relative error up to about 3e-3 in tf32, 1e-3 in bf16x3, 3e-4 in
        float32 where one weight dominates each row (gradients, l_2 norm: 2e-3, 3e-4, 5e-5), ten times less in Gaussian
        layers. Zero distances, NaN and infinity as `dist`.

    Raises:
        ValueError: shapes or dtypes disagree, p, format, kappa or capacity out of range.
        RuntimeError: gradients are off (certificates and evaluations take `dist`), or a CUDA device without Triton.
    """
    ops._check(x, w, p)
    check_format(format)
    if x.dtype != torch.float32:
        raise ValueError(f"x ({x.dtype}) must be float32 for matrix products; `dist` takes float64")
    if p not in EXPONENTS:
        raise ValueError(f"p (={p}) must be one of {', '.join(map(str, EXPONENTS))} for products; `dist` takes any")
    kappa = default_kappa(int(p), format) if kappa is None else kappa
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa (={kappa}) must lie in [0, 1]")
    if not 0 <= capacity <= 1:
        raise ValueError(f"capacity (={capacity}) must lie in [0, 1]: it is a share of the pairs")
    if not torch.is_grad_enabled():
        raise RuntimeError("dist_matmul is for training; where gradients are off, use dist, whose numbers are exact")
    if x.is_cuda and not gpu.available(x):
        raise RuntimeError("dist_matmul needs the Triton kernels on a CUDA device (`bench doctor` says why); use dist")
    pairs = x.shape[0] * w.shape[0]
    room = math.ceil(capacity * pairs)
    y, _, count = lp_dist_matmul(x, w, float(p), format, float(kappa), room)
    if stats is not None:
        stats.add(count, pairs, room)
    return y


@torch.library.custom_op("certbench::lp_dist_matmul", mutates_args=())
def lp_dist_matmul(
    x: Tensor, w: Tensor, p: float, format: str, kappa: float, room: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [B, O], flagged bool [B, O], their number int64 scalar)."""
    x, w = x.contiguous(), w.contiguous()
    scale = _scale(x, w)
    if gpu.available(x):
        from methods.linf_dist.kernels.gpu import products

        total, norms = products.values(x, w, scale, int(p), format)
    else:
        total, norms = _power_sums(_finite(x) * scale, _finite(w) * scale, int(p), format)
    flagged = ~((total >= (kappa * norms) ** p) & (total >= SMALLEST))
    y = total.clamp(min=0) ** (1.0 / p) / scale
    count = flagged.sum()
    return _redo_values(x, w, y, flagged, count, p, room), flagged, count


@lp_dist_matmul.register_fake
def _(x: Tensor, w: Tensor, p: float, format: str, kappa: float, room: int) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape[0], w.shape[0])
    return y, torch.empty_like(y, dtype=torch.bool), x.new_empty((), dtype=torch.int64)


@torch.library.custom_op("certbench::lp_dist_matmul_backward", mutates_args=())
def lp_dist_matmul_backward(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, flagged: Tensor, count: Tensor, p: float, format: str, room: int,
    need_x: bool, need_w: bool,
) -> tuple[Tensor, Tensor]:
    """(dx [B, I], dw [O, I]); the one not needed is [0, 0] (an op cannot return None)."""
    grad, x, w = grad.contiguous(), x.contiguous(), w.contiguous()
    empty = x.new_empty(0, 0)
    if not x.is_cuda and int(count) > room:
        nothing = x.new_empty(0, 0, dtype=torch.int32)
        dx, dw = ops.lp_dist_backward(grad, x, w, y, nothing, p, need_x, need_w)
        return dx, dw
    scale = _scale(x, w)
    c = torch.where(flagged, 0.0, grad * (y * scale) ** (1.0 - p))  # [B, O]
    dx = _power_gradient(x, w, c, scale, int(p), format) if need_x else empty
    dw = _power_gradient(w, x, c.t(), scale, int(p), format) if need_w else empty
    _add_flagged(grad, x, w, y, flagged, p, dx, dw)
    return dx, dw


@lp_dist_matmul_backward.register_fake
def _(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, flagged: Tensor, count: Tensor, p: float, format: str, room: int,
    need_x: bool, need_w: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0, 0)), w.new_empty(w.shape if need_w else (0, 0))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, w, ctx.p, ctx.format, _, ctx.room = inputs
    y, flagged, count = output
    ctx.save_for_backward(x, w, y, flagged, count)
    ctx.mark_non_differentiable(flagged, count)


def _backward(ctx, grad, _flagged, _count):  # type: ignore[no-untyped-def]
    x, w, y, flagged, count = ctx.saved_tensors
    need_x, need_w = ctx.needs_input_grad[:2]
    dx, dw = lp_dist_matmul_backward(
        grad, x, w, y, flagged, count, ctx.p, ctx.format, ctx.room, need_x, need_w
    )
    return dx if need_x else None, dw if need_w else None, None, None, None, None


lp_dist_matmul.register_autograd(_backward, setup_context=_setup_context)


def _scale(x: Tensor, w: Tensor) -> Tensor:
    """The power of two that makes max|x| + max|w| at most 1, a scalar on the device.

    Where an entry is not finite, so small a power that every sum of powers falls below SMALLEST and is flagged.
    """
    if x.numel() == 0 or w.numel() == 0:
        return x.new_ones(())
    # Halves: the sum itself may overflow.
    reach = torch.linalg.vector_norm(x, math.inf) / 2 + torch.linalg.vector_norm(w, math.inf) / 2
    exponent = torch.frexp(reach)[1].clamp(-100, 125)
    return torch.exp2(torch.where(reach.isfinite(), -1.0 - exponent, -126.0))


def _finite(a: Tensor) -> Tensor:
    """0 in place of what is not finite: pairs with such an entry are flagged, and infinity times c = 0 is NaN."""
    return torch.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0)


def _powers(a: Tensor, first: int, last: int) -> list[Tensor]:
    """a ** k for k = first .. last by repeated multiplication in float32."""
    found = [a]
    while len(found) < last:
        found.append(found[-1] * a)
    return found[first - 1 :]


def _power_sums(a: Tensor, b: Tensor, p: int, format: str) -> tuple[Tensor, Tensor]:
    """(sum_i (a_i - b_i)^p by one product, |a|_p + |b|_p), both [B, O]."""
    left, right = _powers(a, 1, p), _powers(b, 1, p)
    own_a, own_b = left[-1].sum(1), right[-1].sum(1)
    weighted = [(-1) ** m * math.comb(p, m) * right[m - 1] for m in range(1, p)]
    cross = product(torch.cat(left[-2::-1], 1), torch.cat(weighted, 1), format)
    norms = (own_a ** (1.0 / p))[:, None] + (own_b ** (1.0 / p))[None]
    return cross + own_a[:, None] + own_b[None], norms


def _power_gradient(base: Tensor, other: Tensor, c: Tensor, scale: Tensor, p: int, format: str) -> Tensor:
    """sum_s c[., s] ((base - other[s]) scale)^(p-1): [R, I] for base [R, I], other [S, I], c [R, S]."""
    if gpu.available(base):
        from methods.linf_dist.kernels.gpu import products

        return products.gradient(base, other, c, scale, p, format)
    q, n_in = p - 1, base.shape[1]
    a = _finite(base) * scale
    inner = product(c, torch.cat(_powers(_finite(other) * scale, 1, q), 1).t(), format)  # [R, q I], all powers at once
    total = c.sum(1, keepdim=True)
    for m in range(1, q + 1):  # Horner's rule in a
        total = total * a + (-1) ** m * math.comb(q, m) * inner[:, (m - 1) * n_in : m * n_in]
    return total


def _redo_values(x: Tensor, w: Tensor, y: Tensor, flagged: Tensor, count: Tensor, p: float, room: int) -> Tensor:
    """y with the flagged pairs computed directly; on a CPU the whole layer when they overflow the room.

    A GPU has room for the list of all pairs and no host to ask: it works through the list however long it is.
    """
    if gpu.available(x):
        from methods.linf_dist.kernels.gpu import pairs

        pairs.values(x, w, y, flagged, int(p))
        return y
    if int(count) > room:
        return ops.lp_dist(x, w, p, False)[0]
    for b, o in _flagged_pairs(flagged, x.shape[1]):
        d = (x[b] - w[o]).abs()  # [pairs, I]
        m = d.amax(1)
        inner = (m > 0) & m.isfinite()
        total = (d / torch.where(inner, m, 1.0)[:, None]).pow_(p).sum(1)
        y[b, o] = torch.where(inner, m * total ** (1.0 / p), m)
    return y


def _add_flagged(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, flagged: Tensor, p: float, dx: Tensor, dw: Tensor
) -> None:
    """Add the flagged pairs' gradients, computed directly, to dx and dw (each unless [0, 0]) in place."""
    scale = torch.where((y == 0) | y.isinf(), 0.0, grad)
    scale = torch.where(y.isnan(), y, scale)
    if gpu.available(x):
        from methods.linf_dist.kernels.gpu import pairs

        pairs.add_gradients(scale, x, w, y, flagged, int(p), dx, dw)
        return
    for b, o in _flagged_pairs(flagged, x.shape[1]):
        d = x[b] - w[o]
        unit = torch.where((y[b, o] > 0) & y[b, o].isfinite(), y[b, o], 1.0)
        v = d.sign() * (d.abs() / unit[:, None]).pow_(p - 1).clamp_(max=1.0)
        v = torch.where(scale[b, o][:, None] != 0, v * scale[b, o][:, None], 0.0)
        if dx.numel():
            dx.index_add_(0, b, v)
        if dw.numel():
            dw.index_add_(0, o, v, alpha=-1)


def _flagged_pairs(flagged: Tensor, n_in: int) -> list[tuple[Tensor, Tensor]]:
    """Rows and outputs of the flagged pairs, a bounded number at a time."""
    b, o = flagged.nonzero(as_tuple=True)
    at_once = max(1, PAIR_BUDGET // n_in)
    return list(zip(b.split(at_once), o.split(at_once), strict=True))
