"""What a finished net costs: parameters, operations, milliseconds per prediction and per certificate, peak memory.

Times are medians over whole batches, per example, in `exact_eval`, that is in the arithmetic in which the certificates
were issued. Training seconds come from the training loop, attack seconds from the evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from .cascade import Images, batch
from .chunks import Chunks, is_out_of_memory
from .contract import DataSpec, Method
from .eps import Eps
from .exact import exact_eval
from .memory import peak_memory_bytes

REPEATS = 7  # timed batches; the median of 5 and more is stable against a neighbour's burst
BUDGET_S = 4.0  # per timed operation: slow certificates are timed on fewer batches, at least one


def measure_cost(
    method: Method,
    recipe: Any,
    net: nn.Module,
    split: Images,
    *,
    spec: DataSpec,
    eps: Eps,
    batch_size: int | None = None,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Cost of a finished net, measured on the first batch of a split.

    Args:
        batch_size: as evaluation would use; halved when memory runs out.

    Returns:
        params: trainable numbers. flops: operations of one forward pass of one image, None where no formula is known.
        forward_ms, certify_ms: milliseconds per example of a prediction and of the headline certificate at eps.
        peak_memory_bytes: of the GPU's allocator or of this process, None where the system does not tell.
    """
    device = split.labels.device
    chunks = Chunks.fitting(device, batch_size)
    with exact_eval(net):
        while True:
            rows = torch.arange(min(chunks.size, len(split)), device=device)
            x, y = batch(split, recipe, rows)
            try:
                forward = seconds(lambda x=x: net(x), device, repeats)  # type: ignore[misc]
                certify = seconds(lambda x=x, y=y: method.margin_bound(net, x, y, eps), device, repeats)  # type: ignore[misc]
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(rows) == 1:
                    raise
                chunks.size = len(rows) // 2
    return {
        "params": sum(p.numel() for p in net.parameters()),
        "flops": _flops(method, net, spec.cropped(getattr(recipe, "crop", 0))),
        "forward_ms": 1000 * forward / len(rows),
        "certify_ms": 1000 * certify / len(rows),
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def seconds(work: Callable[[], Any], device: torch.device, repeats: int = REPEATS) -> float:
    """Median seconds of one call, after one call that is not timed; the device is waited for."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else _nothing
    work()
    wait()
    times: list[float] = []
    while len(times) < repeats and sum(times) < BUDGET_S:
        began = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - began)
    return median(times)


def _flops(method: Method, net: nn.Module, data: DataSpec) -> int | None:
    try:
        return int(method.flops(net, data))
    except ValueError:  # a layer without a formula; `bench check` tells the author, a finished run need not fail of it
        return None


def _nothing() -> None:
    """On a CPU there is nothing to wait for."""
