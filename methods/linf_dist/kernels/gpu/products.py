# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Sums of even powers by matrix units, fused: what `matmul` composes of torch operations, in three kernels.

`form_powers` reads an operand once and writes all its powers in the format's parts. `power_values` multiplies them,
one power to a slice of the grid, whose results torch adds up. `power_gradients` runs through the powers of one operand
for a tile of the result and combines them with those of the other by Horner's rule in registers: total <- total * a +
coefficient * (c @ b^m). So no product of the size of a weight matrix is ever written out.

Memory: both operands' powers, (p - 1) * 4 bytes per entry: 734 MB for 5120 x 5120 at p = 8.

Compiled for sm_90 (Triton 3.7.1, `counts`): bf16x3 and tf32 run on the asynchronous units (HGMMA, 64 x 128 x 16 and
x 8, float32 sums) with operands copied ahead, float32 on plain FFMA.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu.launch import INTERPRETED, on_device
from methods.linf_dist.kernels.matmul_formats import halves, round_tf32

IEEE, TF32, SPLIT = 0, 1, 2  # how a product is made: one of float32, one of tf32, three of bfloat16
KINDS = {"float32": IEEE, "tf32": TF32, "bf16x3": SPLIT}
# Tiles of a product: 128 x 128 results of 8 warps, operands three steps ahead. The interpreter only computes padding.
TILE, DEPTH = (16, 16) if INTERPRETED else (128, 32)
FORM_ROWS, FORM_FEATURES = (16, 16) if INTERPRETED else (4, 256)
PART = torch.float32 if INTERPRETED else torch.bfloat16  # the interpreter cannot multiply bfloat16: same numbers, wider


@triton.jit
def nearest(t, DROPPED: tl.constexpr):
    """t rounded to nearest even with DROPPED bits less, by its bits: the same everywhere. Finite t."""
    bits = t.to(tl.int32, bitcast=True)
    HALF: tl.constexpr = (1 << (DROPPED - 1)) - 1
    bits = (bits + HALF + ((bits >> DROPPED) & 1)) & -(1 << DROPPED)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def form_powers(
    a_ptr, scale_ptr, high_ptr, low_ptr, sum_ptr, n_rows, n_in,
    COUNT: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, FEATURES: tl.constexpr,
):
    """(a scale)^m for m = 1 .. COUNT into high (and low) [COUNT, n_rows, n_in], non-finite entries as 0.

    Also partial row sums of the next power into sum [n_rows, programs along the features].
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inside = (r < n_rows)[:, None] & (i < n_in)[None, :]
    at = r.to(tl.int64)[:, None] * n_in + i[None, :]
    a = tl.load(a_ptr + at, mask=inside, other=0.0)
    a = tl.where(tl.abs(a) < float("inf"), a, 0.0) * tl.load(scale_ptr)
    t = a
    size = tl.cast(n_rows, tl.int64) * n_in
    for m in tl.static_range(COUNT):
        here = at + m * size
        if KIND == 2:
            high = nearest(t, 16)
            low = nearest(t - high, 16)
            tl.store(high_ptr + here, high.to(high_ptr.dtype.element_ty), mask=inside)
            tl.store(low_ptr + here, low.to(low_ptr.dtype.element_ty), mask=inside)
        elif KIND == 1:
            tl.store(high_ptr + here, nearest(t, 13), mask=inside)
        else:
            tl.store(high_ptr + here, t, mask=inside)
        t *= a
    tl.store(sum_ptr + r * tl.num_programs(1) + tl.program_id(1), tl.sum(t, axis=1), mask=r < n_rows)


@triton.jit
def dot_parts(a, a_low, b, b_low, total, KIND: tl.constexpr):
    """total + a @ b in the format's products; the low parts are read for KIND 2 only."""
    if KIND == 0:
        return tl.dot(a, b, total, input_precision="ieee")
    if KIND == 1:
        return tl.dot(a, b, total, input_precision="tf32")
    total = tl.dot(a, b, total)
    total = tl.dot(a, b_low, total)
    return tl.dot(a_low, b, total)


@triton.jit
def power_values(
    x_ptr, x_low_ptr, w_ptr, w_low_ptr, coefficient_ptr, out_ptr, n_rows, n_outs, n_in,
    COUNT: tl.constexpr, KIND: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):
    """out[m - 1] = coefficient[m] x^(COUNT + 1 - m) @ (w^m)^T, m = 1 .. COUNT: out [COUNT, n_rows, n_outs]."""
    b = tl.program_id(0) * TILE + tl.arange(0, TILE)
    o = tl.program_id(1) * TILE + tl.arange(0, TILE)
    m = tl.program_id(2) + 1
    k = tl.arange(0, DEPTH)
    x_at = (b + (COUNT - m) * n_rows).to(tl.int64)[:, None] * n_in + k[None, :]
    w_at = (o + (m - 1) * n_outs).to(tl.int64)[None, :] * n_in + k[:, None]
    rows = (b < n_rows)[:, None]
    outs = (o < n_outs)[None, :]
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, n_in, DEPTH):
        x_there = rows & (start + k < n_in)[None, :]
        w_there = outs & (start + k < n_in)[:, None]
        x = tl.load(x_ptr + x_at + start, mask=x_there, other=0.0)
        w = tl.load(w_ptr + w_at + start, mask=w_there, other=0.0)
        x_low = x
        w_low = w
        if KIND == 2:
            x_low = tl.load(x_low_ptr + x_at + start, mask=x_there, other=0.0)
            w_low = tl.load(w_low_ptr + w_at + start, mask=w_there, other=0.0)
        total = dot_parts(x, x_low, w, w_low, total, KIND)
    at = (b + (m - 1) * n_rows).to(tl.int64)[:, None] * n_outs + o[None, :]
    tl.store(out_ptr + at, total * tl.load(coefficient_ptr + m), mask=rows & outs)


@triton.jit
def power_gradients(
    base_ptr, scale_ptr, c_ptr, c_low_ptr, other_ptr, other_low_ptr, sum_ptr, coefficient_ptr, out_ptr,
    n_rows, n_pairs, n_in,
    COUNT: tl.constexpr, KIND: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):
    """out[r, i] = sum_s c[r, s] (base[r, i] scale - other[s, i])^COUNT, out [n_rows, n_in].

    c [n_rows, n_pairs] in parts; other: powers 1 .. COUNT, [COUNT, n_pairs, n_in] in parts; sum: row sums of c.
    """
    r = tl.program_id(0) * TILE + tl.arange(0, TILE)
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    k = tl.arange(0, DEPTH)
    rows = (r < n_rows)[:, None]
    columns = (i < n_in)[None, :]
    here = r.to(tl.int64)[:, None] * n_in + i[None, :]
    scale = tl.load(scale_ptr)
    total = tl.zeros((TILE, TILE), tl.float32) + tl.load(sum_ptr + r, mask=r < n_rows, other=0.0)[:, None]
    c_at = r.to(tl.int64)[:, None] * n_pairs + k[None, :]
    for m in range(0, COUNT):
        part = tl.zeros((TILE, TILE), tl.float32)
        other_at = (k + m * n_pairs).to(tl.int64)[:, None] * n_in + i[None, :]
        for start in range(0, n_pairs, DEPTH):
            c_there = rows & (start + k < n_pairs)[None, :]
            there = columns & (start + k < n_pairs)[:, None]
            c = tl.load(c_ptr + c_at + start, mask=c_there, other=0.0)
            other = tl.load(other_ptr + other_at, mask=there, other=0.0)
            c_low = c
            other_low = other
            if KIND == 2:
                c_low = tl.load(c_low_ptr + c_at + start, mask=c_there, other=0.0)
                other_low = tl.load(other_low_ptr + other_at, mask=there, other=0.0)
            part = dot_parts(c, c_low, other, other_low, part, KIND)
            other_at += tl.cast(n_in, tl.int64) * DEPTH
        base = tl.load(base_ptr + here, mask=rows & columns, other=0.0)  # again each time: registers are short
        base = tl.where(tl.abs(base) < float("inf"), base, 0.0) * scale
        total = total * base + tl.load(coefficient_ptr + m + 1) * part
    tl.store(out_ptr + here, total, mask=rows & columns)


@dataclass(frozen=True)
class Powers:
    """Powers 1 .. count of an operand in a format's parts, [count, R, I] (low: of bf16x3), and sums of the next."""

    high: Tensor
    low: Tensor
    sums: Tensor  # [R]


def powers(a: Tensor, scale: Tensor, count: int, name: str) -> Powers:
    """Powers of a [R, I] contiguous float32 times `scale` (float32 scalar on the device)."""
    kind = KINDS[name]
    shape = (count, *a.shape)
    high = torch.empty(shape, dtype=PART if kind == SPLIT else torch.float32, device=a.device)
    low = torch.empty_like(high) if kind == SPLIT else high
    across = triton.cdiv(a.shape[1], FORM_FEATURES)
    sums = torch.empty(a.shape[0], across, dtype=torch.float32, device=a.device)
    with on_device(a):
        form_powers[(triton.cdiv(a.shape[0], FORM_ROWS), across)](
            a, scale, high, low, sums, *a.shape, COUNT=count, KIND=kind, ROWS=FORM_ROWS, FEATURES=FORM_FEATURES,
            num_warps=4, num_stages=1,
        )
    return Powers(high, low, sums.sum(1))


def values(x: Tensor, w: Tensor, scale: Tensor, p: int, name: str) -> tuple[Tensor, Tensor]:
    """(sum_i ((x_i - w_i) scale)^p, |x scale|_p + |w scale|_p), both [B, O]; x [B, I], w [O, I] contiguous."""
    a, b = powers(x, scale, p - 1, name), powers(w, scale, p - 1, name)
    parts = torch.empty(p - 1, x.shape[0], w.shape[0], dtype=torch.float32, device=x.device)
    with on_device(x):
        power_values[(triton.cdiv(x.shape[0], TILE), triton.cdiv(w.shape[0], TILE), p - 1)](
            a.high, a.low, b.high, b.low, _binomials(p, x.device), parts, x.shape[0], w.shape[0], x.shape[1],
            COUNT=p - 1, KIND=KINDS[name], TILE=TILE, DEPTH=DEPTH, num_warps=8, num_stages=3,
        )
    norms = (a.sums ** (1 / p))[:, None] + (b.sums ** (1 / p))[None]
    return parts.sum(0) + a.sums[:, None] + b.sums[None], norms


def gradient(base: Tensor, other: Tensor, c: Tensor, scale: Tensor, p: int, name: str) -> Tensor:
    """sum_s c[., s] ((base - other[s]) scale)^(p - 1): [R, I] for base [R, I], other [S, I], c [R, S]."""
    kind = KINDS[name]
    c = c.contiguous()
    high, low = c, c
    if kind == SPLIT:
        high, low = (part.to(PART) for part in halves(c))
    elif kind == TF32:
        high = low = round_tf32(c)
    b = powers(other, scale, p - 1, name)
    out = torch.empty_like(base)
    with on_device(base):
        power_gradients[(triton.cdiv(base.shape[0], TILE), triton.cdiv(base.shape[1], TILE))](
            base, scale, high, low, b.high, b.low, c.sum(1), _binomials(p - 1, base.device), out, base.shape[0],
            other.shape[0], base.shape[1], COUNT=p - 1, KIND=kind, TILE=TILE, DEPTH=DEPTH, num_warps=8, num_stages=3,
        )
    return out


def _binomials(n: int, device: torch.device) -> Tensor:
    """(-1)^m C(n, m) for m = 0 .. n, float32 on the device, made there: a copy from the host would wait."""
    m = torch.arange(n + 1, dtype=torch.float64, device=device)
    log = math.lgamma(n + 1) - torch.lgamma(m + 1) - torch.lgamma(n - m + 1)
    return (log.exp().round() * (1 - 2 * (m % 2))).float()
