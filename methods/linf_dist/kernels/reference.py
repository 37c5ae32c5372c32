"""l_p distances in plain torch: a float64 oracle for tests and the memory-bounded fall-back that runs on any device.

Both are closed forms (arXiv 2102.05363, sections 3-4; the gradient is that of 2110.06850, appendix B). Autograd never
differentiates through `**`, `amax` or `cdist`: at d = 0 or M = 0 these give NaN, and at ties they split the gradient.

Conventions, shared with the native kernels, for d = x_b - w_o, M = max_i |d_i|, y = ||d||_p:

* M == 0: y = 0 and the gradient is exactly 0, for every p.
* p = inf: the whole gradient goes to ONE coordinate, the lowest i with |d_i| == M.
* NaN in d makes y and every gradient entry of the pair NaN; M == inf gives y = inf and gradient 0.

At p = inf the forward also returns a `code` [B, O] int32 for the backward: the index, with the top bit set where
d < 0; `NO_GRADIENT` where the gradient is 0 and `NAN_PAIR` where it is NaN.
"""

import math

import torch
from torch import Tensor

NO_GRADIENT = -1  # code of a pair at distance 0 or infinity
NAN_PAIR = -2  # code of a pair with a NaN coordinate
INDEX_BITS = 0x7FFFFFFF
SIGN_BIT = -(2**31)

# Elements of one [b, o, I] block. On a CPU four such float32 buffers (16 MB) stay near the cache; a GPU wants fewer
# launches and has the memory (4 x 64 MB).
CPU_BUDGET = 2**20
GPU_BUDGET = 2**24


def oracle_dist(x: Tensor, w: Tensor, p: float) -> Tensor:
    """[B, I], [O, I] -> [B, O] float64, the whole [B, O, I] broadcast at once: for small test shapes only."""
    d = (x.double()[:, None] - w.double()[None]).abs()  # [B, O, I]
    m = d.amax(-1)  # [B, O]; NaN propagates
    if math.isinf(p):
        return m
    t = d / torch.where((m > 0) & m.isfinite(), m, 1.0)[..., None]
    y = m * (t**p).sum(-1) ** (1.0 / p)
    return torch.where(m.isfinite() & (m > 0), y, m)


def oracle_weights(x: Tensor, w: Tensor, p: float) -> Tensor:
    """dy[b, o] / dx[b, i] as [B, O, I] float64; dy / dw is its negative."""
    d = x.double()[:, None] - w.double()[None]  # [B, O, I]
    y = oracle_dist(x, w, p)[..., None]
    if math.isinf(p):
        first = ((d.abs() == y).cumsum(-1) == 1) & (d.abs() == y)  # the lowest index among ties
        v = d.sign() * first
    else:
        v = d.sign() * (d.abs() / torch.where(y > 0, y, 1.0)) ** (p - 1)
    v = torch.where((y == 0) | y.isinf(), torch.zeros_like(v), v)
    return torch.where(y.isnan(), torch.full_like(v, math.nan), v)


def oracle_grads(grad: Tensor, x: Tensor, w: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """(dx [B, I], dw [O, I]) in float64 for the upstream gradient `grad` [B, O]."""
    v = oracle_weights(x, w, p) * grad.double()[..., None]  # [B, O, I]
    return v.sum(1), -v.sum(0)


def oracle_interval(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the l_inf distance over the box, in the dtype given: the defining formula, whole broadcast."""
    a = lower[:, None] - w[None]  # [B, O, I]
    c = w[None] - upper[:, None]
    lo = torch.maximum(a, c).clamp(min=0).amax(-1) + 0.0
    return lo, torch.maximum(a.abs(), c.abs()).amax(-1)


def blocks(n_rows: int, n_out: int, n_in: int, budget: int) -> list[tuple[slice, slice]]:
    """Slices (b, o) that cut [B, O, I] into blocks of at most `budget` elements (or one pair), in a fixed order."""
    o_step = max(1, min(n_out, budget // max(1, n_in)))
    b_step = max(1, min(n_rows, budget // max(1, n_in * o_step)))
    return [
        (slice(b, min(b + b_step, n_rows)), slice(o, min(o + o_step, n_out)))
        for b in range(0, n_rows, b_step)
        for o in range(0, n_out, o_step)
    ]


def _blocks_of(x: Tensor, w: Tensor) -> list[tuple[slice, slice]]:
    budget = CPU_BUDGET if x.device.type == "cpu" else GPU_BUDGET
    return blocks(x.shape[0], w.shape[0], x.shape[1], budget)


def forward(x: Tensor, w: Tensor, p: float, with_code: bool) -> tuple[Tensor, Tensor]:
    """Distances and, for p = inf `with_code`, the int32 codes of the module docstring (else an empty tensor).

    x [B, I], w [O, I], float32 or float64, any device -> [B, O] in their dtype. Memory O(budget + B * O).
    """
    y = x.new_empty(x.shape[0], w.shape[0])
    code = x.new_empty((y.shape if with_code and math.isinf(p) else (0, 0)), dtype=torch.int32)
    for b, o in _blocks_of(x, w):
        d = x[b, None] - w[None, o]  # [b, o, I]
        if math.isinf(p):
            y[b, o] = d.abs().amax(-1)
            if code.numel():
                code[b, o] = _encode(d, y[b, o])
            continue
        a = d.abs_()
        m = a.amax(-1)
        inner = (m > 0) & m.isfinite()
        s = (a / torch.where(inner, m, 1.0)[..., None]).pow_(p).sum(-1)
        y[b, o] = torch.where(inner, m * s ** (1.0 / p), m)  # outside: 0, inf and NaN are their own distance
    return y, code


def _encode(d: Tensor, m: Tensor) -> Tensor:
    index = d.abs().argmax(-1)  # torch documents the first maximal index; pinned by a test
    negative = d.gather(-1, index[..., None])[..., 0] < 0
    code = torch.where(negative, index + SIGN_BIT, index)
    code = torch.where((m == 0) | m.isinf(), NO_GRADIENT, code)
    return torch.where(m.isnan(), NAN_PAIR, code).to(torch.int32)


def backward(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, code: Tensor, p: float
) -> tuple[Tensor, Tensor]:
    """(dx [B, I], dw [O, I]) for upstream `grad` [B, O], the saved distances `y` and, at p = inf, their `code`."""
    dx, dw = torch.zeros_like(x), torch.zeros_like(w)
    if math.isinf(p):
        _scatter(grad, code, dx, dw)
        return dx, dw
    for b, o in _blocks_of(x, w):
        d = x[b, None] - w[None, o]  # [b, o, I]
        yb = y[b, o]
        scale = torch.where((yb == 0) | yb.isinf(), 0.0, grad[b, o])
        scale = torch.where(yb.isnan(), yb, scale)  # not through the base: NaN ** 0 is 1
        unit = torch.where((yb > 0) & yb.isfinite(), yb, 1.0)
        r = (d.abs() / unit[..., None]).pow_(p - 1).clamp_(max=1.0)  # y rounded down must not give weights above 1
        v = torch.where(scale[..., None] != 0, d.sign() * r * scale[..., None], 0.0)
        dx[b] += v.sum(1)
        dw[o] -= v.sum(0)
    return dx, dw


def _scatter(grad: Tensor, code: Tensor, dx: Tensor, dw: Tensor) -> None:
    skip = (code == NO_GRADIENT) | (code == NAN_PAIR)
    index = torch.where(skip, 0, code & INDEX_BITS).long()  # [B, O]
    v = torch.where(code < 0, -grad, grad)
    v = torch.where(skip, 0.0, v)
    dx.scatter_add_(1, index, v)
    dw.scatter_add_(1, index.T, -v.T)
    broken = code == NAN_PAIR
    dx[broken.any(1)] = math.nan
    dw[broken.any(0)] = math.nan


def interval(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`oracle_interval` in blocks: same formula, same bits, bounded memory."""
    lo, hi = (lower.new_empty(lower.shape[0], w.shape[0]) for _ in range(2))
    for b, o in _blocks_of(lower, w):
        lo[b, o], hi[b, o] = oracle_interval(lower[b], upper[b], w[o])
    return lo, hi
