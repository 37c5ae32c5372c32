"""Where and how Triton kernels are launched: the device of the operands, the interpreter, the exponent's buffer."""

import contextlib

import torch
import triton
from torch import Tensor

# Under TRITON_INTERPRET=1 kernels run on CPU tensors through numpy. Inline PTX does not exist there.
INTERPRETED: bool = triton.knobs.runtime.interpret


def on_device(a: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the device of `a` current: Triton launches on the current device's current stream."""
    return torch.cuda.device(a.device) if a.is_cuda else contextlib.nullcontext()


def exponent_buffer(p: float, like: Tensor) -> Tensor:
    """float32 [1] with p on the device of `like`, where the kernels read it.

    A fill kernel takes p by value: no copy from the host, no synchronisation. Whoever captures a CUDA graph passes a
    buffer of their own instead and refills it between replays.
    """
    return torch.full((1,), p, dtype=torch.float32, device=like.device)
