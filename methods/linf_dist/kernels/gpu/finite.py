# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Finite p on the GPU, forward: three ways to the same sum, and a redo for the pairs they cannot represent.

* even p <= 12: the sum of |d|^p as it stands, by squaring (4 instructions per element at p = 8).
* even p > 12: a pass for M = max |d|, then the sum of (|d| / M)^p by squaring.
* real p: the same with the special-function unit's logarithm and exponential.

Each leaves -1 where its range does not do (a sum outside [1e-28, 1e30], M outside [2^-100, 2^100]; also zero, NaN and
infinite distances of the first way); `robust.redo_forward` then computes exactly these pairs, so that no other pair's
bits depend on them.

Counted for sm_90 (Triton 3.7.1, `counts`), instructions per element in the inner loops: 4.13 at p = 8, 5.13 at p = 10
and 12; the pass for M 2.12, then 7.14 at p = 20 and 6.14 at real p.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu import robust, tiling
from methods.linf_dist.kernels.gpu.launch import INTERPRETED, exponent_buffer, on_device
from methods.linf_dist.kernels.gpu.power import add_power, fast_log2

PLAIN_MAX = 12  # above, the window of distances that need no normalisation gets too narrow
EVEN_MAX = 62  # above, candidate lists (candidates.py)


@triton.jit
def finite_forward(
    x_ptr, w_ptr, y_ptr, p_ptr, n_rows, n_outs, n_steps,
    HALF_P: tl.constexpr, NORMALISED: tl.constexpr, INTERPRETED: tl.constexpr, UNROLL: tl.constexpr,
    ROWS: tl.constexpr, OUTS: tl.constexpr, THREAD_ROWS: tl.constexpr, THREAD_OUTS: tl.constexpr,
):
    """y [n_rows, n_outs], -1 where to be redone. HALF_P: p / 2, or 0 for the p at `p_ptr`. Packed x and w."""
    TILE_ROWS: tl.constexpr = ROWS * THREAD_ROWS
    TILE_OUTS: tl.constexpr = OUTS * THREAD_OUTS
    row_tile = tl.program_id(0)
    out_tile = tl.program_id(1)
    rows = tl.arange(0, ROWS)[:, None] + tl.arange(0, THREAD_ROWS)[None, :] * ROWS
    outs = tl.arange(0, OUTS)[:, None] + tl.arange(0, THREAD_OUTS)[None, :] * OUTS
    x_start = x_ptr + row_tile.to(tl.int64) * n_steps * (UNROLL * TILE_ROWS) + rows
    w_start = w_ptr + out_tile.to(tl.int64) * n_steps * (UNROLL * TILE_OUTS) + outs
    p = tl.load(p_ptr)
    m = tl.zeros((ROWS, OUTS, THREAD_ROWS, THREAD_OUTS), tl.float32)
    if NORMALISED:
        x_at = x_start
        w_at = w_start
        for _step in range(0, n_steps):
            for i in tl.static_range(UNROLL):
                d = tl.load(x_at + i * TILE_ROWS)[:, None, :, None] - tl.load(w_at + i * TILE_OUTS)[None, :, None, :]
                m = tl.maximum(m, tl.abs(d), propagate_nan=tl.PropagateNan.ALL)
            x_at += UNROLL * TILE_ROWS
            w_at += UNROLL * TILE_OUTS
    scale = 1.0 / m
    total = tl.zeros((ROWS, OUTS, THREAD_ROWS, THREAD_OUTS), tl.float32)
    x_at = x_start
    w_at = w_start
    for _step in range(0, n_steps):
        for i in tl.static_range(UNROLL):
            d = tl.load(x_at + i * TILE_ROWS)[:, None, :, None] - tl.load(w_at + i * TILE_OUTS)[None, :, None, :]
            if HALF_P == 0:
                total += tl.exp2(p * fast_log2(tl.abs(d) * scale, INTERPRETED))
            else:
                if NORMALISED:
                    d = d * scale
                total = add_power(total, d * d, HALF_P)
        x_at += UNROLL * TILE_ROWS
        w_at += UNROLL * TILE_OUTS
    root = tl.exp2(tl.log2(total) / p)
    if NORMALISED:
        y = tl.where((m >= 2.0**-100) & (m <= 2.0**100), m * root, -1.0)
        y = tl.where((m == 0) | (m == float("inf")) | (m != m), m, y)
    else:
        y = tl.where((total >= 1e-28) & (total <= 1e30), root, -1.0)
    b = (row_tile * TILE_ROWS + rows)[:, None, :, None]
    o = (out_tile * TILE_OUTS + outs)[None, :, None, :]
    tl.store(y_ptr + b * n_outs + o, y, mask=(b < n_rows) & (o < n_outs))


def half_of_even(p: float) -> int:
    """p / 2 where p is even and has kernels of its own, else 0."""
    return int(p) // 2 if p == int(p) and int(p) % 2 == 0 and p <= EVEN_MAX else 0


def forward(x: Tensor, w: Tensor, p: float, exponent: Tensor | None = None) -> Tensor:
    """x [B, I], w [O, I] float32, finite p >= 1 -> y [B, O].

    `exponent`: float32 [1] on the device, read in place of `p` by the kernels of real p (a CUDA graph then replays
    with whatever it holds; `p` still selects the kernel).
    """
    if math.isinf(p):
        raise ValueError("p = inf has kernels of its own: linf.forward")
    n_rows, n_outs = x.shape[0], w.shape[0]
    y = x.new_empty(n_rows, n_outs)
    if y.numel() == 0:
        return y
    half = half_of_even(p)
    exponent = exponent_buffer(p, x) if exponent is None else exponent
    tile = tiling.choose(n_outs)
    packed_x, packed_w = tiling.pack(x, tile.n_rows, tiling.UNROLL), tiling.pack(w, tile.n_outs, tiling.UNROLL)
    with on_device(x):
        finite_forward[(packed_x.shape[0], packed_w.shape[0])](
            packed_x, packed_w, y, exponent, n_rows, n_outs, packed_x.shape[1] // tiling.UNROLL,
            HALF_P=half, NORMALISED=not 0 < 2 * half <= PLAIN_MAX, INTERPRETED=INTERPRETED, UNROLL=tiling.UNROLL,
            **tile.constants(), num_warps=tile.warps, num_stages=1,
        )
    robust.redo_forward(x, w, y, exponent)
    return y
