# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Distances and gradients of a list of (row, output) pairs, computed directly: the guard of `matmul` on the GPU.

The list is made on the device by prefix sums and has room for all pairs; kernels read its length there. So the host
neither waits nor guesses, and a list of any length gives the right result. Gradients run row by row of the result
through that row's pairs: no atomics, a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu.launch import INTERPRETED, on_device
from methods.linf_dist.kernels.gpu.power import power

BLOCK = 64 if INTERPRETED else 512  # features at a time
PROGRAMS = 4 if INTERPRETED else 4096  # of one warp; they share the list


@triton.jit
def pair_values(
    x_ptr, w_ptr, y_ptr, list_ptr, count_ptr, n_outs, n_in, P: tl.constexpr, BLOCK: tl.constexpr
):
    """y[b, o] for the pairs b * n_outs + o of the list, normalised by their maximum."""
    lane = tl.arange(0, BLOCK)
    HALF: tl.constexpr = P // 2
    for k in range(tl.program_id(0), tl.load(count_ptr), tl.num_programs(0)):
        pair = tl.load(list_ptr + k)
        x_at = x_ptr + (pair // n_outs).to(tl.int64) * n_in
        w_at = w_ptr + (pair % n_outs).to(tl.int64) * n_in
        best = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, n_in, BLOCK):
            i = start + lane
            d = tl.load(x_at + i, mask=i < n_in, other=0.0) - tl.load(w_at + i, mask=i < n_in, other=0.0)
            best = tl.maximum(best, tl.abs(d), propagate_nan=tl.PropagateNan.ALL)
        nan = tl.max((best != best).to(tl.int32), axis=0) > 0
        m = tl.max(tl.where(best == best, best, 0.0), axis=0)
        inner = (m > 0) & (m < float("inf"))
        unit = tl.zeros((BLOCK,), tl.float32) + tl.where(inner, m, 1.0)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, n_in, BLOCK):
            i = start + lane
            d = tl.load(x_at + i, mask=i < n_in, other=0.0) - tl.load(w_at + i, mask=i < n_in, other=0.0)
            t = tl.div_rn(d, unit)
            total += power(t * t, HALF)
        y = tl.where(inner, m * tl.exp2(tl.log2(tl.sum(total, axis=0)) / P), m)
        tl.store(y_ptr + pair, tl.where(nan, float("nan"), y))


@triton.jit
def pair_gradients(
    base_ptr, other_ptr, y_ptr, scale_ptr, list_ptr, start_ptr, out_ptr, n_pairs, n_in,
    P: tl.constexpr, BLOCK: tl.constexpr,
):
    """out[r] += sum over the listed s of scale[r, s] * (d / y[r, s])^(P - 1), d = base[r] - other[s].

    The list holds r * n_pairs + s in order; row r's part begins at start[r] and ends at start[r + 1].
    """
    r = tl.program_id(0)
    first = tl.load(start_ptr + r)
    end = tl.load(start_ptr + r + 1)
    if first == end:
        return
    LESS: tl.constexpr = P // 2 - 1
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_in
    here = r.to(tl.int64) * n_in + i
    base = tl.load(base_ptr + here, mask=inside, other=0.0)
    total = tl.load(out_ptr + here, mask=inside, other=0.0)
    for k in range(first, end):
        pair = tl.load(list_ptr + k)
        s = pair - r * n_pairs
        y = tl.load(y_ptr + pair)
        scale = tl.load(scale_ptr + pair)
        d = base - tl.load(other_ptr + s.to(tl.int64) * n_in + i, mask=inside, other=0.0)
        unit = tl.zeros((BLOCK,), tl.float32) + tl.where((y > 0) & (y < float("inf")), y, 1.0)
        t = tl.div_rn(d, unit)
        t = tl.minimum(tl.maximum(t, -1.0), 1.0)  # a rounded y must not give weights above 1
        v = t
        if P > 2:
            v = t * power(t * t, LESS)
        total += tl.where(scale != 0, v * scale, 0.0)  # d may be infinite where scale is 0
    tl.store(out_ptr + here, total, mask=inside)


def compact(flagged: Tensor) -> tuple[Tensor, Tensor]:
    """(indices of the flagged entries of bool [R, S] in order, int32 [R * S + 1]; where rows begin, int32 [R + 1]).

    Only the first start[R] indices mean something. On the device, without waiting for it.
    """
    flat = flagged.reshape(-1)
    place = flat.cumsum(0)  # int64
    slots = torch.where(flat, place - 1, flat.numel())  # the last slot collects the others
    found = torch.zeros(flat.numel() + 1, dtype=torch.int32, device=flat.device)
    found.scatter_(0, slots, torch.arange(flat.numel(), dtype=torch.int32, device=flat.device))
    ends = flagged.sum(1).cumsum(0)
    return found, torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)


def values(x: Tensor, w: Tensor, y: Tensor, flagged: Tensor, p: int) -> None:
    """Overwrite y [B, O] at the flagged pairs with ||x[b] - w[o]||_p, even p. x [B, I], w [O, I] contiguous."""
    if y.numel() == 0:
        return
    listed, starts = compact(flagged)
    with on_device(x):
        pair_values[(PROGRAMS,)](
            x, w, y, listed, starts[-1:], w.shape[0], x.shape[1], P=p, BLOCK=BLOCK, num_warps=1, num_stages=1
        )


def add_gradients(
    scale: Tensor, x: Tensor, w: Tensor, y: Tensor, flagged: Tensor, p: int, dx: Tensor, dw: Tensor
) -> None:
    """Add the flagged pairs' part to dx [B, I] and dw [O, I] in place, each unless it is [0, 0]; scale, y [B, O]."""
    for base, other, a, b, mask, out in ((x, w, y, scale, flagged, dx), (w, x, y.t(), scale.t(), flagged.t(), dw)):
        if out.numel() == 0:
            continue
        listed, starts = compact(mask)
        with on_device(x):
            pair_gradients[(base.shape[0], triton.cdiv(base.shape[1], BLOCK))](
                base, other, a.contiguous(), b.contiguous(), listed, starts, out, other.shape[0], base.shape[1],
                P=p, BLOCK=BLOCK, num_warps=4 if BLOCK > 64 else 1, num_stages=1,
            )
