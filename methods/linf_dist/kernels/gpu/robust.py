# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Finite p for the few pairs that the fast kernels cannot represent: any distance, true divisions, plain loops.

Both kernels look at their flags first and return when there are none, so that the host need not know.
"""

import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu.launch import on_device

SIDE = 16  # pairs of a forward program: SIDE x SIDE
FEATURES = 16


@triton.jit
def redo_pairs(
    x_ptr, w_ptr, y_ptr, p_ptr, n_rows, n_outs, n_in, SIDE: tl.constexpr, FEATURES: tl.constexpr
):
    """Replace every negative y[b, o] by ||x[b] - w[o]||_p; row-major x and w."""
    b = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    o = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    at = y_ptr + b[:, None] * n_outs + o[None, :]
    y = tl.load(at, mask=(b < n_rows)[:, None] & (o < n_outs)[None, :], other=0.0)
    flagged = y < 0
    if tl.max(tl.max(flagged.to(tl.int32), axis=1), axis=0) == 0:
        return
    p = tl.load(p_ptr)
    lane = tl.arange(0, FEATURES)
    x_at = x_ptr + b.to(tl.int64)[:, None] * n_in
    w_at = w_ptr + o.to(tl.int64)[:, None] * n_in
    here = (b < n_rows)[:, None]
    there = (o < n_outs)[:, None]
    # One maximum per lane, then over the lanes: a NaN must survive both.
    wide = tl.zeros((SIDE, SIDE, FEATURES), tl.float32)
    broken = tl.zeros((SIDE, SIDE, FEATURES), tl.int32)
    for start in range(0, n_in, FEATURES):
        i = start + lane[None, :]
        x = tl.load(x_at + i, mask=here & (i < n_in), other=0.0)
        w = tl.load(w_at + i, mask=there & (i < n_in), other=0.0)
        d = tl.abs(x[:, None, :] - w[None, :, :])
        broken = tl.where(d != d, 1, broken)
        wide = tl.where(d > wide, d, wide)
    m = tl.max(wide, axis=2)
    nan = tl.max(broken, axis=2) > 0
    inner = (m > 0) & (m < float("inf"))
    unit = tl.where(inner, m, 1.0)
    total = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, n_in, FEATURES):
        i = start + lane[None, :]
        x = tl.load(x_at + i, mask=here & (i < n_in), other=0.0)
        w = tl.load(w_at + i, mask=there & (i < n_in), other=0.0)
        t = tl.div_rn(tl.abs(x[:, None, :] - w[None, :, :]), tl.broadcast_to(unit[:, :, None], (SIDE, SIDE, FEATURES)))
        total += tl.sum(tl.exp2(p * tl.log2(t)), axis=2)
    y = tl.where(inner, m * tl.exp2(tl.log2(total) / p), m)
    y = tl.where(nan, float("nan"), y)
    tl.store(at, y, mask=flagged)


@triton.jit
def redo_rows(
    base_ptr, other_ptr, y_ptr, scale_ptr, flag_ptr, out_ptr, p_ptr, n_rows, n_pairs, n_in,
    SIDE: tl.constexpr, FEATURES: tl.constexpr,
):
    """out[r] = sum_s scale[r, s] * sgn(d) * (|d| / y[r, s])^(p - 1), d = base[r] - other[s], for the flagged rows r."""
    r = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    here = r < n_rows
    flagged = tl.load(flag_ptr + r, mask=here, other=0) != 0
    if tl.max(flagged.to(tl.int32), axis=0) == 0:
        return
    p = tl.load(p_ptr)
    i = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inside = flagged[:, None] & (i < n_in)[None, :]
    base = tl.load(base_ptr + r.to(tl.int64)[:, None] * n_in + i[None, :], mask=inside, other=0.0)
    total = tl.zeros((SIDE, FEATURES), tl.float32)
    for s in range(0, n_pairs):
        other = tl.load(other_ptr + s * n_in + i, mask=i < n_in, other=0.0)
        y = tl.load(y_ptr + r * n_pairs + s, mask=here, other=0.0)
        scale = tl.load(scale_ptr + r * n_pairs + s, mask=here, other=0.0)
        unit = tl.where((y > 0) & (y < float("inf")), y, 1.0)
        d = base - other[None, :]
        t = tl.div_rn(tl.abs(d), tl.broadcast_to(unit[:, None], (SIDE, FEATURES)))
        # p = 1: the power is 1 even where d = 0, whose sign is 0. A rounded y must not give weights above 1.
        weight = tl.minimum(tl.exp2(tl.maximum(p - 1, 1e-30) * tl.log2(t)), 1.0)
        v = tl.where(d > 0, weight, tl.where(d < 0, -weight, 0.0)) * scale[:, None]
        total += tl.where(scale[:, None] != 0, v, 0.0)
    tl.store(out_ptr + r.to(tl.int64)[:, None] * n_in + i[None, :], total, mask=inside)


def redo_forward(x: Tensor, w: Tensor, y: Tensor, exponent: Tensor) -> None:
    """Recompute the entries of y [B, O] that are negative, in place. x [B, I], w [O, I], exponent float32 [1]."""
    x, w = x.contiguous(), w.contiguous()
    with on_device(x):
        redo_pairs[(triton.cdiv(y.shape[0], SIDE), triton.cdiv(y.shape[1], SIDE))](
            x, w, y, exponent, y.shape[0], y.shape[1], x.shape[1], SIDE=SIDE, FEATURES=FEATURES, num_warps=4,
            num_stages=1,
        )


def redo_gradient(
    base: Tensor, other: Tensor, y: Tensor, scale: Tensor, flags: Tensor, out: Tensor, exponent: Tensor
) -> None:
    """Recompute the rows of `out` [R, I] whose flag (int32 [R]) is set, in place; y and scale are [R, S]."""
    with on_device(base):
        redo_rows[(triton.cdiv(out.shape[0], SIDE), triton.cdiv(out.shape[1], 64))](
            base.contiguous(), other.contiguous(), y.contiguous(), scale.contiguous(), flags, out, exponent,
            out.shape[0], y.shape[1], out.shape[1], SIDE=SIDE, FEATURES=64, num_warps=4, num_stages=1,
        )
