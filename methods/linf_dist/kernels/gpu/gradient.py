# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Finite p on the GPU, backward: v = g * sgn(d) * (|d| / y)^(p - 1) summed over outputs (dx) and over rows (dw).

Two shapes of the same sum, both without atomics and in a fixed order:

* `gradient_rows` gives one of the two (the first layer needs no dx, an attack no dw): a thread holds 8 x 4 entries of
  the result and runs through the other operand. dw is dx with x and w exchanged, since the power is odd.
* `gradient_fused` gives both with one power per (row, output, feature): a thread holds 64 rows of one feature of x and
  of dx, so the sum over rows that dw needs stays inside the thread; each tile of 64 rows writes its own partial dw.

Pairs outside the fast range have coefficient 0 here; the rows of dx and dw that contain one are then recomputed by
`robust.redo_gradient`, so that all other rows keep their bits.

Counted for sm_90 (Triton 3.7.1, `counts`), instructions per element, one gradient / both: p = 8 6.13 / 7.50, p = 12
7.13 / 8.50, p = 20 9.20 / 10.91, real p 7.20 / 8.91 (2 of them on the special-function unit). Both gradients take 255
registers, without spills in the loop.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu import robust, tiling
from methods.linf_dist.kernels.gpu.finite import PLAIN_MAX, half_of_even
from methods.linf_dist.kernels.gpu.launch import INTERPRETED, exponent_buffer, on_device
from methods.linf_dist.kernels.gpu.power import fast_log2, power, with_sign_of

FUSED_ROWS = 64  # rows of x per program of the fused kernel, all in one thread's registers
FUSED_FEATURES = 128  # features per program, one per thread
WORKSPACE_BYTES = 2**31  # partial dw of the fused kernel above this: two passes instead
SLICES = 4  # parts of the outputs that fused programs take: enough programs to fill a device; fixed, for fixed bits


@triton.jit
def weights(d, coefficient, inverse, p1, HALF_P: tl.constexpr, NORMALISED: tl.constexpr, INTERPRETED: tl.constexpr):
    """coefficient * sgn(d) * (|d| * inverse)^p1; un-normalised, `coefficient` holds inverse^p1 already."""
    LESS: tl.constexpr = HALF_P - 1
    if HALF_P == 0:
        return tl.exp2(p1 * fast_log2(tl.abs(d) * inverse, INTERPRETED)) * with_sign_of(coefficient, d)
    if NORMALISED:
        d = d * inverse
    if HALF_P == 1:
        return d * coefficient
    return (d * coefficient) * power(d * d, LESS)


# Were the alignment of base_ptr known, its loads would be vectorised and would impose their layout on the whole tile.
@triton.jit(do_not_specialize_on_alignment=["base_ptr"])
def gradient_rows(
    base_ptr, other_ptr, coefficient_ptr, inverse_ptr, out_ptr, p_ptr, n_rows, n_in, n_steps,
    HALF_P: tl.constexpr, NORMALISED: tl.constexpr, INTERPRETED: tl.constexpr, UNROLL: tl.constexpr,
    ROWS: tl.constexpr, OUTS: tl.constexpr, THREAD_ROWS: tl.constexpr, THREAD_OUTS: tl.constexpr,
):
    """out[r, i] = sum_s weights(base[r, i] - other[s, i]); base by `tiling.pack_tiles`, the others by `pack`."""
    TILE_ROWS: tl.constexpr = ROWS * THREAD_ROWS
    TILE_FEATURES: tl.constexpr = OUTS * THREAD_OUTS
    row_tile = tl.program_id(0)
    feature_tile = tl.program_id(1)
    rows = tl.arange(0, ROWS)[:, None] + tl.arange(0, THREAD_ROWS)[None, :] * ROWS
    features = tl.arange(0, OUTS)[:, None] + tl.arange(0, THREAD_OUTS)[None, :] * OUTS
    pair_at = row_tile.to(tl.int64) * n_steps * (UNROLL * TILE_ROWS) + rows
    coefficient_at = coefficient_ptr + pair_at
    inverse_at = inverse_ptr + pair_at
    other_at = other_ptr + feature_tile.to(tl.int64) * n_steps * (UNROLL * TILE_FEATURES) + features
    r = (row_tile * TILE_ROWS + rows)[:, None, :, None]
    i = (feature_tile * TILE_FEATURES + features)[None, :, None, :]
    register = tl.arange(0, ROWS)[:, None, None, None] * OUTS + tl.arange(0, OUTS)[None, :, None, None]
    thread = tl.arange(0, THREAD_ROWS)[:, None] * THREAD_OUTS + tl.arange(0, THREAD_OUTS)[None, :]
    block = (row_tile * tl.num_programs(1) + feature_tile).to(tl.int64) * (TILE_ROWS * TILE_FEATURES)
    base = tl.load(base_ptr + block + register * (THREAD_ROWS * THREAD_OUTS) + thread[None, None, :, :])
    p1 = tl.maximum(tl.load(p_ptr) - 1, 1e-30)  # p = 1: |d|^0 is 1, but its product with sgn(0) is 0
    total = tl.zeros((ROWS, OUTS, THREAD_ROWS, THREAD_OUTS), tl.float32)
    for _step in range(0, n_steps):
        for s in tl.static_range(UNROLL):
            d = base - tl.load(other_at + s * TILE_FEATURES)[None, :, None, :]
            coefficient = tl.load(coefficient_at + s * TILE_ROWS)[:, None, :, None]
            inverse = coefficient
            if NORMALISED:
                inverse = tl.load(inverse_at + s * TILE_ROWS)[:, None, :, None]
            total += weights(d, coefficient, inverse, p1, HALF_P, NORMALISED, INTERPRETED)
        other_at += UNROLL * TILE_FEATURES
        coefficient_at += UNROLL * TILE_ROWS
        inverse_at += UNROLL * TILE_ROWS
    tl.store(out_ptr + r.to(tl.int64) * n_in + i, total, mask=(r < n_rows) & (i < n_in))


@triton.jit
def gradient_fused(
    x_ptr, w_ptr, coefficient_ptr, inverse_ptr, dx_ptr, dw_ptr, p_ptr, n_rows, n_outs, n_in, n_packed, n_slice,
    HALF_P: tl.constexpr, NORMALISED: tl.constexpr, INTERPRETED: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_FEATURES: tl.constexpr,
):
    """Partial gradients: dx [slices, n_rows, n_in], dw [row tiles, n_outs, n_in]; row-major x and w, n_slice outputs.

    Coefficients packed [row tile, n_packed outputs, TILE_ROWS]. The default layout of a [TILE_ROWS, TILE_FEATURES]
    tensor with one thread per feature keeps the rows in registers.
    """
    row_tile = tl.program_id(0)
    piece = tl.program_id(2)
    rows = tl.arange(0, TILE_ROWS)
    b = row_tile * TILE_ROWS + rows
    i = tl.program_id(1) * TILE_FEATURES + tl.arange(0, TILE_FEATURES)
    inside = (b < n_rows)[:, None] & (i < n_in)[None, :]
    at = b.to(tl.int64)[:, None] * n_in + i[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    p1 = tl.maximum(tl.load(p_ptr) - 1, 1e-30)
    start = piece * n_slice
    pair_at = (row_tile * n_packed + start).to(tl.int64) * TILE_ROWS + rows
    coefficient_at = coefficient_ptr + pair_at
    inverse_at = inverse_ptr + pair_at
    w_at = w_ptr + start.to(tl.int64) * n_in + i
    dw_at = dw_ptr + (row_tile * n_outs + start).to(tl.int64) * n_in + i
    dx = tl.zeros((TILE_ROWS, TILE_FEATURES), tl.float32)
    for _o in range(start, tl.minimum(start + n_slice, n_outs)):
        d = x - tl.load(w_at, mask=i < n_in, other=0.0)[None, :]
        coefficient = tl.load(coefficient_at)[:, None]
        inverse = coefficient
        if NORMALISED:
            inverse = tl.load(inverse_at)[:, None]
        v = weights(d, coefficient, inverse, p1, HALF_P, NORMALISED, INTERPRETED)
        dx += v
        tl.store(dw_at, -tl.sum(v, axis=0), mask=i < n_in)
        w_at += n_in
        dw_at += n_in
        coefficient_at += TILE_ROWS
        inverse_at += TILE_ROWS
    tl.store(dx_ptr + piece.to(tl.int64) * n_rows * n_in + at, dx, mask=inside)


@dataclass(frozen=True)
class Coefficients:
    """What the kernels need of each pair, [B, O] float32: see `weights`. `redo` marks pairs outside the fast range."""

    coefficient: Tensor
    inverse: Tensor
    scale: Tensor  # the upstream gradient with 0 for distances 0 and inf, NaN for NaN
    redo: Tensor


def coefficients(grad: Tensor, y: Tensor, p: float, half: int) -> Coefficients:
    """Pair by pair, in a few elementwise passes over [B, O]."""
    plain = 0 < 2 * half <= PLAIN_MAX
    low, high = (1e-28 ** (1 / p), 1e30 ** (1 / p)) if plain else (2.0**-100, 2.0**100)
    fast = (y >= low) & (y <= high)
    scale = torch.where((y == 0) | (y == math.inf), torch.zeros_like(grad), grad)
    scale = torch.where(y.isnan(), y, scale)
    inverse = torch.where(fast, 1 / y, torch.zeros_like(y))
    value = grad * y.pow(1 - p) if plain else grad
    nothing = torch.where(y.isnan(), y, torch.zeros_like(y))
    return Coefficients(torch.where(fast, value, nothing), inverse, scale, ~fast & (y > 0))


def backward(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, p: float, need_x: bool, need_w: bool, exponent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(dx [B, I], dw [O, I]) for upstream `grad` [B, O] and the distances y [B, O]; the one not needed is [0, 0].

    `exponent` as in `finite.forward`.
    """
    if y.numel() == 0:
        return (torch.zeros_like(x) if need_x else x.new_empty(0, 0),
                torch.zeros_like(w) if need_w else w.new_empty(0, 0))
    half = half_of_even(p)
    exponent = exponent_buffer(p, x) if exponent is None else exponent
    x, w = x.contiguous(), w.contiguous()
    c = coefficients(grad.contiguous(), y, p, half)
    dx, dw = x.new_empty(0, 0), w.new_empty(0, 0)
    partial_bytes = -(-x.shape[0] // FUSED_ROWS) * w.numel() * w.element_size()
    if need_x and need_w and partial_bytes <= WORKSPACE_BYTES:
        dx, dw = _fused(x, w, c, half, exponent)
    else:
        if need_x:
            dx = _rows(x, w, c.coefficient, c.inverse, half, exponent)
        if need_w:
            dw = _rows(w, x, c.coefficient.t(), c.inverse.t(), half, exponent)
    if need_x:
        robust.redo_gradient(x, w, y, c.scale, c.redo.any(1).int(), dx, exponent)
    if need_w:
        robust.redo_gradient(w, x, y.t(), c.scale.t(), c.redo.any(0).int(), dw, exponent)
    return dx, dw


def _flags(half: int) -> dict[str, int | bool]:
    return {"HALF_P": half, "NORMALISED": not 0 < 2 * half <= PLAIN_MAX, "INTERPRETED": INTERPRETED}


def _rows(base: Tensor, other: Tensor, coefficient: Tensor, inverse: Tensor, half: int, exponent: Tensor) -> Tensor:
    tile = tiling.choose(base.shape[1])
    out = torch.empty_like(base)
    kept = tiling.pack_tiles(base, tile)
    passing = tiling.pack(other.t(), tile.n_outs, tiling.UNROLL)  # [feature tiles, S', features]
    pairs = [tiling.pack(a, tile.n_rows, tiling.UNROLL) for a in (coefficient, inverse)]  # [row tiles, S', rows]
    with on_device(base):
        gradient_rows[(kept.shape[0], kept.shape[1])](
            kept, passing, *pairs, out, exponent, base.shape[0], base.shape[1], passing.shape[1] // tiling.UNROLL,
            **_flags(half), UNROLL=tiling.UNROLL, **tile.constants(), num_warps=tile.warps, num_stages=1,
        )
    return out


def _fused(x: Tensor, w: Tensor, c: Coefficients, half: int, exponent: Tensor) -> tuple[Tensor, Tensor]:
    n_rows, n_in, n_outs = x.shape[0], x.shape[1], w.shape[0]
    pairs = [tiling.pack(a, FUSED_ROWS, 1) for a in (c.coefficient, c.inverse)]  # [row tiles, O, FUSED_ROWS]
    row_tiles = pairs[0].shape[0]
    dx = x.new_empty(SLICES, n_rows, n_in)
    dw = w.new_empty(row_tiles, n_outs, n_in)
    with on_device(x):
        gradient_fused[(row_tiles, triton.cdiv(n_in, FUSED_FEATURES), SLICES)](
            x, w, *pairs, dx, dw, exponent, n_rows, n_outs, n_in, n_outs, triton.cdiv(n_outs, SLICES),
            **_flags(half), TILE_ROWS=FUSED_ROWS, TILE_FEATURES=FUSED_FEATURES, num_warps=FUSED_FEATURES // 32,
            num_stages=1,
        )
    return dx.sum(0), dw.sum(0) if row_tiles > 1 else dw[0]
