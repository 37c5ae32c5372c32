"""Work through rows in chunks that fit the memory: an out-of-memory error halves the chunk and goes on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

CPU_ROWS, CUDA_ROWS = 250, 1000  # first chunk: fills a cache or a GPU without filling the memory
_SAYINGS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


@dataclass
class Chunks:
    """The current chunk size, shared by every pass of one evaluation so that a lesson is learnt once.

    halved: the sizes that failed, for the record.
    """

    size: int
    halved: list[int] = field(default_factory=list)

    @classmethod
    def fitting(cls, device: torch.device, size: int | None = None) -> Chunks:
        """The given size, or the default of the device."""
        return cls(size or (CUDA_ROWS if device.type == "cuda" else CPU_ROWS))

    def run(self, rows: Tensor, work: Callable[[Tensor], None]) -> None:
        """Call `work` on consecutive parts of `rows` [N].

        `work` must store its results last, so that a part that failed half-way can be repeated in smaller ones.

        Raises:
            The out-of-memory error itself, if a single row does not fit.
        """
        at = 0
        while at < len(rows):
            part = rows[at : at + self.size]
            try:
                work(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                self.halved.append(len(part))
                self.size = max(1, len(part) // 2)
            else:
                at += len(part)
                continue
            if torch.cuda.is_available():  # outside the except block: the traceback held on to the tensors
                gc.collect()
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means too little memory: torch raises a class of its own on a GPU, a sentence on a CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in _SAYINGS)
