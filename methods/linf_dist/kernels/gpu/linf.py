# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""p = inf on the GPU: the distance, and the code of its argmax for the backward (encoding of `reference`).

The inner loop has two instructions per (row, output, feature): a subtraction and a maximum, whose NaN-propagating
form takes the absolute value for free. No index is tracked: every 32 features a thread compares its maxima with the
previous ones and keeps the number of the block that raised them last; a second kernel searches that one block, four
pairs to a warp, for the lowest index that attains the distance. The numbers are those of `reference`, bit for bit:
one rounded subtraction per coordinate and exact maxima.

Counted for sm_90 (Triton 3.7.1, `counts`): 2.10 instructions per element in the inner loop, 2.20 with the argmax, 72
and 128 registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu import tiling
from methods.linf_dist.kernels.gpu.launch import on_device

BLOCK = tiling.FEATURE_BLOCK
PAIRS = 64  # outputs searched by one program of the second kernel


@triton.jit
def linf_forward(
    x_ptr, w_ptr, y_ptr, block_ptr, run_ptr, n_rows, n_outs, n_blocks,
    GATED: tl.constexpr, WITH_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, OUTS: tl.constexpr, THREAD_ROWS: tl.constexpr, THREAD_OUTS: tl.constexpr,
):
    """y [n_rows, n_outs] and, WITH_BLOCK, the first block of BLOCK features that attains it; packed x and w.

    GATED: only if *run_ptr, so that the device chooses between this kernel and the candidate lists.
    """
    if GATED:  # noqa: SIM102 (`and` would load before it looks at the constant)
        if tl.load(run_ptr) == 0:
            return
    TILE_ROWS: tl.constexpr = ROWS * THREAD_ROWS
    TILE_OUTS: tl.constexpr = OUTS * THREAD_OUTS
    row_tile = tl.program_id(0)
    out_tile = tl.program_id(1)
    rows = tl.arange(0, ROWS)[:, None] + tl.arange(0, THREAD_ROWS)[None, :] * ROWS  # [ROWS, THREAD_ROWS]
    outs = tl.arange(0, OUTS)[:, None] + tl.arange(0, THREAD_OUTS)[None, :] * OUTS  # [OUTS, THREAD_OUTS]
    x_at = x_ptr + row_tile.to(tl.int64) * n_blocks * (BLOCK * TILE_ROWS) + rows
    w_at = w_ptr + out_tile.to(tl.int64) * n_blocks * (BLOCK * TILE_OUTS) + outs
    y = tl.zeros((ROWS, OUTS, THREAD_ROWS, THREAD_OUTS), tl.float32)
    winner = tl.zeros((ROWS, OUTS, THREAD_ROWS, THREAD_OUTS), tl.int32)
    for block in range(0, n_blocks):
        before = y
        for i in tl.static_range(BLOCK):
            x = tl.load(x_at + i * TILE_ROWS)
            w = tl.load(w_at + i * TILE_OUTS)
            d = tl.abs(x[:, None, :, None] - w[None, :, None, :])
            y = tl.maximum(y, d, propagate_nan=tl.PropagateNan.ALL)
        if WITH_BLOCK:
            winner = tl.where(y > before, block, winner)  # strictly: the first block to attain the maximum stays
        x_at += BLOCK * TILE_ROWS
        w_at += BLOCK * TILE_OUTS
    b = (row_tile * TILE_ROWS + rows)[:, None, :, None]
    o = (out_tile * TILE_OUTS + outs)[None, :, None, :]
    inside = (b < n_rows) & (o < n_outs)
    tl.store(y_ptr + b * n_outs + o, y, mask=inside)
    if WITH_BLOCK:
        tl.store(block_ptr + b * n_outs + o, winner, mask=inside)


@triton.jit
def linf_locate(
    x_ptr, w_ptr, y_ptr, code_ptr, run_ptr, n_outs, n_in, GATED: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr
):
    """Replace the winning block in `code` by the code of the argmax: index | sign << 31, or one of the sentinels."""
    if GATED:  # noqa: SIM102 (`and` would load before it looks at the constant)
        if tl.load(run_ptr) == 0:
            return
    b = tl.program_id(0)
    o = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)  # [PAIRS]
    inside = o < n_outs
    at = b * n_outs + o
    y = tl.load(y_ptr + at, mask=inside, other=0.0)
    block = tl.load(code_ptr + at, mask=inside, other=0)
    lane = tl.arange(0, BLOCK)
    i = block[:, None] * BLOCK + lane[None, :]  # [PAIRS, BLOCK]
    there = inside[:, None] & (i < n_in)
    d = tl.load(x_ptr + b * n_in + i, mask=there, other=0.0) - tl.load(w_ptr + o[:, None] * n_in + i, mask=there,
                                                                       other=0.0)
    # The smallest key is the lowest index among the hits, and carries the sign of its difference.
    key = tl.where(tl.abs(d) == y[:, None], 2 * lane[None, :] + (d < 0).to(tl.int32), 2 * BLOCK)
    first = tl.min(key, axis=1)
    code = (block * BLOCK + (first >> 1)) | (first << 31)
    code = tl.where((y == 0) | (y == float("inf")), -1, code)  # reference.NO_GRADIENT
    code = tl.where(y == y, code, -2)  # reference.NAN_PAIR
    tl.store(code_ptr + at, code, mask=inside)


def forward(x: Tensor, w: Tensor, with_code: bool) -> tuple[Tensor, Tensor]:
    """x [B, I], w [O, I] float32 -> (y [B, O], code [B, O] int32, or [0, 0] without), as `reference.forward`."""
    y, code = empty_results(x, w, with_code)
    if y.numel():
        run_dense(x.contiguous(), w.contiguous(), y, code, None)
    return y, code


def empty_results(x: Tensor, w: Tensor, with_code: bool) -> tuple[Tensor, Tensor]:
    """Uninitialised y [B, O] and code ([0, 0] without)."""
    shape = (x.shape[0], w.shape[0])
    return x.new_empty(shape), x.new_empty(shape if with_code else (0, 0), dtype=torch.int32)


def run_dense(x: Tensor, w: Tensor, y: Tensor, code: Tensor, run: Tensor | None) -> None:
    """Fill y and code (where it has entries) over all features; with `run` (int32 [1]) only if that is not 0."""
    n_rows, n_outs = y.shape
    tile = tiling.choose(n_outs)
    packed_x, packed_w = tiling.pack(x, tile.n_rows), tiling.pack(w, tile.n_outs)
    gate = {"GATED": run is not None, "num_stages": 1}
    run = y if run is None else run
    with_code = code.numel() > 0
    with on_device(x):
        linf_forward[(packed_x.shape[0], packed_w.shape[0])](
            packed_x, packed_w, y, code, run, n_rows, n_outs, packed_x.shape[1] // BLOCK,
            WITH_BLOCK=with_code, BLOCK=BLOCK, **tile.constants(), num_warps=tile.warps, **gate,
        )
        if with_code:
            linf_locate[(n_rows, triton.cdiv(n_outs, PAIRS))](
                x, w, y, code, run, n_outs, x.shape[1], PAIRS=PAIRS, BLOCK=BLOCK, num_warps=4, **gate,
            )
