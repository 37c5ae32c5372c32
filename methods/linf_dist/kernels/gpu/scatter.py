# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""The backward at p = inf on the GPU: each pair hands its whole gradient to one coordinate. No atomics.

One program owns one row of the result (a row of dx, or of dw) and takes the pairs of that row in order, 128 at a time.
Pairs that hit the same coordinate are added up inside the chunk by comparing all with all, and the first of them adds
the sum to memory; chunks follow one another behind a barrier. So every addition has a fixed place, and two calls give
the same bits. Price: 128 comparisons a pair, small beside the forward's `I` subtractions (counted for sm_90: 1140
instructions a thread for 128 pairs on 128 threads).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu.launch import on_device

CHUNK = 128


@triton.jit
def scatter_rows(grad_ptr, code_ptr, out_ptr, n_pairs, n_in, sign, CHUNK: tl.constexpr):
    """out[r, index(code[r, s])] += sign * sgn(code[r, s]) * grad[r, s] for all s; a NaN pair makes the row NaN."""
    r = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, CHUNK)
    n_broken = 0
    for start in range(0, n_pairs, CHUNK):
        s = start + lane
        inside = s < n_pairs
        code = tl.load(code_ptr + r * n_pairs + s, mask=inside, other=-1)
        grad = tl.load(grad_ptr + r * n_pairs + s, mask=inside, other=0.0)
        n_broken += tl.sum((code == -2).to(tl.int32), axis=0)
        skip = (code == -1) | (code == -2)  # reference.NO_GRADIENT, NAN_PAIR
        i = tl.where(skip, -1, code & 0x7FFFFFFF)
        v = tl.where(skip, 0.0, tl.where(code < 0, -sign * grad, sign * grad))
        same = i[:, None] == i[None, :]  # [source, target]: the sum over axis 0 stays inside a thread
        total = tl.sum(tl.where(same, v[:, None], 0.0), axis=0)
        first = tl.min(tl.where(same, lane[:, None], CHUNK), axis=0) == lane
        write = first & (i >= 0)
        at = out_ptr + r * n_in + i
        tl.store(at, tl.load(at, mask=write, other=0.0) + total, mask=write)
        tl.debug_barrier()  # the next chunk may read what another thread has just written
    if n_broken > 0:
        for start in range(0, n_in, CHUNK):
            i = start + lane
            tl.store(out_ptr + r * n_in + i, tl.full((CHUNK,), float("nan"), tl.float32), mask=i < n_in)


def backward(grad: Tensor, code: Tensor, n_in: int, need_x: bool, need_w: bool) -> tuple[Tensor, Tensor]:
    """grad [B, O], code [B, O] of the forward -> (dx [B, I], dw [O, I]); the one not needed is [0, 0]."""
    dx = grad.new_empty(0, 0)
    dw = grad.new_empty(0, 0)
    if need_x:
        dx = _scatter(grad.contiguous(), code.contiguous(), n_in, 1.0)
    if need_w:
        dw = _scatter(grad.t().contiguous(), code.t().contiguous(), n_in, -1.0)
    return dx, dw


def _scatter(grad: Tensor, code: Tensor, n_in: int, sign: float) -> Tensor:
    out = torch.zeros(grad.shape[0], n_in, dtype=grad.dtype, device=grad.device)
    if grad.numel():
        with on_device(grad):
            scatter_rows[(grad.shape[0],)](grad, code, out, grad.shape[1], n_in, sign, CHUNK=CHUNK, num_warps=4,
                                           num_stages=1)
    return out
