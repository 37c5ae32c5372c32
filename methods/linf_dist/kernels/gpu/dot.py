# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
"""Matrix products of float32 operands whose precision is an argument of the kernel: tf32 units, or IEEE.

torch offers tf32 only through a process-wide switch, which a certificate computed beside it would see.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.linf_dist.kernels.gpu.launch import INTERPRETED, on_device

# Operand tiles of 128 x 32 float32 feed the units three stages ahead; the interpreter would only compute the padding.
TILE_M, TILE_N, TILE_K = (16, 16, 16) if INTERPRETED else (128, 128, 32)


@triton.jit
def dot_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K,
    PRECISION: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):
    """c [M, N] = a [M, K] b[N, K]^T, row-major float32, sums in float32."""
    m = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)
    n = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)
    k = tl.arange(0, TILE_K)
    a_at = a_ptr + m.to(tl.int64)[:, None] * K + k[None, :]
    b_at = b_ptr + n.to(tl.int64)[:, None] * K + k[None, :]
    total = tl.zeros((TILE_M, TILE_N), tl.float32)
    for start in range(0, K, TILE_K):
        inside = (start + k < K)[None, :]
        a = tl.load(a_at + start, mask=(m < M)[:, None] & inside, other=0.0)
        b = tl.load(b_at + start, mask=(n < N)[:, None] & inside, other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    c_at = c_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(c_at, total, mask=(m < M)[:, None] & (n < N)[None, :])


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a [M, K] @ b [N, K]^T -> [M, N], float32; precision is "tf32" or "ieee"."""
    a, b = a.contiguous(), b.contiguous()
    c = torch.empty(a.shape[0], b.shape[0], dtype=torch.float32, device=a.device)
    if c.numel():
        with on_device(a):
            dot_kernel[(triton.cdiv(a.shape[0], TILE_M), triton.cdiv(b.shape[0], TILE_N))](
                a, b, c, a.shape[0], b.shape[0], a.shape[1], PRECISION=precision, TILE_M=TILE_M, TILE_N=TILE_N,
                TILE_K=TILE_K, num_warps=8, num_stages=3,
            )
    return c
