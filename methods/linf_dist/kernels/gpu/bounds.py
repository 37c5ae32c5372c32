# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Bounds of the l_inf distance over a box on the GPU: `reference.interval`, bit for bit.

Per (row, output, feature) two subtractions and four maxima, 6.20 instructions in all (counted for sm_90, Triton 3.7.1,
`counts`); maxima run at half rate, so these bound the time.
Every operation is a correctly rounded subtraction or an exact maximum: certificates may rest on it.
"""

import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu import tiling
from methods.linf_dist.kernels.gpu.launch import on_device


@triton.jit
def linf_bounds(
    lower_ptr, upper_ptr, w_ptr, lo_ptr, hi_ptr, n_rows, n_outs, n_steps,
    UNROLL: tl.constexpr,
    ROWS: tl.constexpr, OUTS: tl.constexpr, THREAD_ROWS: tl.constexpr, THREAD_OUTS: tl.constexpr,
):
    """lo = max(0, max_i max(l - w, w - u)) and hi = max_i max(|l - w|, |w - u|), [n_rows, n_outs]; packed operands."""
    TILE_ROWS: tl.constexpr = ROWS * THREAD_ROWS
    TILE_OUTS: tl.constexpr = OUTS * THREAD_OUTS
    row_tile = tl.program_id(0)
    out_tile = tl.program_id(1)
    rows = tl.arange(0, ROWS)[:, None] + tl.arange(0, THREAD_ROWS)[None, :] * ROWS
    outs = tl.arange(0, OUTS)[:, None] + tl.arange(0, THREAD_OUTS)[None, :] * OUTS
    x_at = row_tile.to(tl.int64) * n_steps * (UNROLL * TILE_ROWS) + rows
    w_at = w_ptr + out_tile.to(tl.int64) * n_steps * (UNROLL * TILE_OUTS) + outs
    lower_at = lower_ptr + x_at
    upper_at = upper_ptr + x_at
    lo = tl.zeros((ROWS, OUTS, THREAD_ROWS, THREAD_OUTS), tl.float32)
    hi = tl.zeros((ROWS, OUTS, THREAD_ROWS, THREAD_OUTS), tl.float32)
    for _step in range(0, n_steps):
        for i in tl.static_range(UNROLL):
            w = tl.load(w_at + i * TILE_OUTS)[None, :, None, :]
            below = tl.load(lower_at + i * TILE_ROWS)[:, None, :, None] - w
            above = w - tl.load(upper_at + i * TILE_ROWS)[:, None, :, None]
            lo = tl.maximum(lo, below, propagate_nan=tl.PropagateNan.ALL)
            lo = tl.maximum(lo, above, propagate_nan=tl.PropagateNan.ALL)
            hi = tl.maximum(hi, tl.abs(below), propagate_nan=tl.PropagateNan.ALL)
            hi = tl.maximum(hi, tl.abs(above), propagate_nan=tl.PropagateNan.ALL)
        lower_at += UNROLL * TILE_ROWS
        upper_at += UNROLL * TILE_ROWS
        w_at += UNROLL * TILE_OUTS
    b = (row_tile * TILE_ROWS + rows)[:, None, :, None]
    o = (out_tile * TILE_OUTS + outs)[None, :, None, :]
    inside = (b < n_rows) & (o < n_outs)
    tl.store(lo_ptr + b * n_outs + o, lo + 0.0, mask=inside)  # max(0, -0) may be -0: the sum is +0
    tl.store(hi_ptr + b * n_outs + o, hi, mask=inside)


def interval(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """lower, upper [B, I], w [O, I] float32, lower <= upper -> (d_lo, d_hi) [B, O], as `reference.interval`."""
    n_rows, n_outs = lower.shape[0], w.shape[0]
    lo, hi = lower.new_empty(n_rows, n_outs), lower.new_empty(n_rows, n_outs)
    if lo.numel() == 0:
        return lo, hi
    tile = tiling.choose(n_outs)
    packed = [tiling.pack(a, rows, tiling.UNROLL)
              for a, rows in ((lower, tile.n_rows), (upper, tile.n_rows), (w, tile.n_outs))]
    with on_device(lower):
        linf_bounds[(packed[0].shape[0], packed[2].shape[0])](
            *packed, lo, hi, n_rows, n_outs, packed[0].shape[1] // tiling.UNROLL, UNROLL=tiling.UNROLL,
            **tile.constants(), num_warps=tile.warps, num_stages=1,
        )
    return lo, hi
