"""Register tiles and the packed operand layout that the Triton kernels share; plain torch, no Triton.

A kernel's tile is a 4-D tensor [rows, outs, thread_rows, thread_outs]. Triton's default layout gives the last two axes
to threads and keeps the first two in registers, so each thread holds `rows` x `outs` results and reads `rows` + `outs`
operands per feature. Packed operands, [tile, feature, row of the tile], make these reads 128-bit loads at constant
offsets, with neither shared memory nor a barrier in the loop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

UNROLL = 8  # features per trip of an inner loop: its pointer arithmetic is shared by all of them
FEATURE_BLOCK = 32  # features between two looks at the argmax; also the granularity of the padding of I


@dataclass(frozen=True)
class Tile:
    """`rows` x `outs` results per thread, on `thread_rows` x `thread_outs` threads."""

    rows: int
    outs: int
    thread_rows: int
    thread_outs: int

    @property
    def n_rows(self) -> int:
        return self.rows * self.thread_rows

    @property
    def n_outs(self) -> int:
        return self.outs * self.thread_outs

    @property
    def warps(self) -> int:
        return self.thread_rows * self.thread_outs // 32

    def constants(self) -> dict[str, int]:
        """The tile as the compile-time arguments that every kernel takes."""
        return {"ROWS": self.rows, "OUTS": self.outs, "THREAD_ROWS": self.thread_rows, "THREAD_OUTS": self.thread_outs}


WIDE = Tile(rows=8, outs=4, thread_rows=8, thread_outs=16)  # 64 x 64, 4 warps
NARROW = Tile(rows=4, outs=1, thread_rows=2, thread_outs=16)  # 8 x 16, 1 warp: the last layer (10 classes)


def choose(n_outs: int) -> Tile:
    """The tile for a layer with so many outputs. It never changes a bit of a result: a result has one thread."""
    return NARROW if n_outs <= NARROW.n_outs else WIDE


def padded(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple, at least one."""
    return max(1, -(-size // multiple)) * multiple


def pack(a: Tensor, rows: int, features: int = FEATURE_BLOCK) -> Tensor:
    """[R, I] of any strides -> [tiles, I', rows] contiguous, R and I padded with zeros to multiples.

    A padded feature is 0 in both operands and adds nothing to any distance; results of padded rows are not stored.
    """
    n, n_in = a.shape
    full = torch.nn.functional.pad(a, (0, padded(n_in, features) - n_in, 0, padded(n, rows) - n))
    return full.view(-1, rows, full.shape[1]).transpose(1, 2).contiguous()


def pack_tiles(a: Tensor, tile: Tile) -> Tensor:
    """[R, I] -> [row tiles, column tiles, rows, outs, thread_rows, thread_outs]: one register after the other.

    For the operand that a thread keeps: read with scalar loads, it leaves the layout of the tile alone.
    """
    n, n_in = a.shape
    full = torch.nn.functional.pad(a, (0, padded(n_in, tile.n_outs) - n_in, 0, padded(n, tile.n_rows) - n))
    split = full.view(-1, tile.thread_rows, tile.rows, full.shape[1] // tile.n_outs, tile.thread_outs, tile.outs)
    return split.permute(0, 3, 2, 5, 1, 4).contiguous()
