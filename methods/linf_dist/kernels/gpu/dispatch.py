"""The choice of the GPU kernels: for a device (all of them or none) and for an exponent. Imports Triton when asked."""

import functools
import hashlib
import importlib.util
import math
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

MIN_CAPABILITY = (8, 0)  # maxima that propagate NaN
# Lists pay where a layer is large: below, building them costs as much as the distances.
LIST_MIN_OUT, LIST_MIN_IN = 64, 128


def available(x: Tensor) -> bool:
    """Whether the Triton kernels compute distances of tensors like `x`: float32 on a CUDA device that passed the test.

    The first call on a device compiles kernels and waits for the device; later ones only look at the answer.
    """
    return x.is_cuda and x.dtype == torch.float32 and _verdict(x.device.index or 0, _wanted()) == ""


def _wanted() -> str:
    return os.environ.get("BENCH_KERNELS", "")


@functools.cache
def _verdict(device: int, wanted: str) -> str:
    """"" where the kernels may run on CUDA device number `device`, else the reason why not."""
    if wanted == "reference":
        return "BENCH_KERNELS=reference"
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("distances met a new device inside a CUDA graph capture; run one step before it")
    print(f"certbench: compiling and testing the kernels of CUDA device {device} (minutes once, then seconds)",
          file=sys.stderr, flush=True)
    reason = _obstacle(device)
    if reason and wanted == "native":
        raise RuntimeError(f"BENCH_KERNELS=native, but Triton kernels do not run on CUDA device {device}: {reason}")
    if reason:
        print(f"certbench: distances on CUDA device {device} run in plain torch, far slower: {reason}",
              file=sys.stderr, flush=True)
    return reason


def _obstacle(device: int) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it comes with torch's CUDA wheels)"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    try:
        from methods.linf_dist.kernels.gpu import selftest

        return selftest.failure(torch.device("cuda", device))
    except Exception as error:  # whatever the compiler or the driver makes of a new device: plain torch still works
        return f"{type(error).__name__}: {error}".splitlines()[0]


def forward(
    x: Tensor, w: Tensor, p: float, with_code: bool, exponent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y [B, O], code) as `reference.forward`, for x [B, I] and w [O, I] float32 that are `available`.

    `exponent` (float32 [1] on the device) stands for a finite p inside the kernels, so that a captured CUDA graph can
    be replayed with another value; `p` selects the kernels and must stay in the same family (below 64, or above).
    An even p up to 62 has kernels of its own, which do not read it.
    """
    from methods.linf_dist.kernels.gpu import finite, linf, lists

    if math.isinf(p):
        large = w.shape[0] >= LIST_MIN_OUT and x.shape[1] >= LIST_MIN_IN
        return (lists.linf_forward if large else linf.forward)(x, w, with_code)
    y = (lists.forward if p >= lists.MIN_P else finite.forward)(x, w, p, exponent)
    return y, x.new_empty(0, 0, dtype=torch.int32)


def backward(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, code: Tensor, p: float, need_x: bool, need_w: bool,
    exponent: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dx [B, I], dw [O, I]) for upstream `grad` [B, O], the forward's y and code; the one not needed is [0, 0]."""
    from methods.linf_dist.kernels.gpu import gradient, lists, scatter

    if math.isinf(p):
        return scatter.backward(grad, code, x.shape[1], need_x, need_w)
    run = lists.backward if p >= lists.MIN_P else gradient.backward
    return run(grad, x, w, y, p, need_x, need_w, exponent)


def interval(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """(d_lo, d_hi) [B, O] as `reference.interval`, bit for bit."""
    from methods.linf_dist.kernels.gpu import bounds

    return bounds.interval(lower, upper, w)


def info() -> dict[str, object]:
    """Which code computes float32 distances on CUDA devices, for the record of a run.

    Keys: gpu_backend ("triton", "reference" or "none" without a device), gpu_reason, triton (version),
    gpu_source_sha256. Asks the current device only, and tests it if no one has.
    """
    if not torch.cuda.is_available():
        return {"gpu_backend": "none", "gpu_reason": "no CUDA device", "triton": "", "gpu_source_sha256": ""}
    reason = _verdict(torch.cuda.current_device(), _wanted())
    if reason:
        return {"gpu_backend": "reference", "gpu_reason": reason, "triton": "", "gpu_source_sha256": ""}
    import triton

    return {"gpu_backend": "triton", "gpu_reason": "", "triton": triton.__version__,
            "gpu_source_sha256": source_sha256()}


@functools.cache
def source_sha256() -> str:
    """One hash over this package's sources, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
