"""Even p by guarded matrix products: accuracy against float64, flagged share and time against the direct kernels.

On a CPU the products are emulated, so only accuracy and flagged shares mean something there.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from methods.linf_dist.kernels import gpu, reference
from methods.linf_dist.kernels.matmul import MatmulStats, dist_matmul
from methods.linf_dist.kernels.matmul_formats import FORMATS
from methods.linf_dist.kernels.ops import dist

P = (8, 10, 12)
INPUTS = ("gaussian", "identity", "cancelling")
# Batch, inputs, outputs. The CPU's is as large as a minute allows; the GPU's second one is a layer of the paper's net.
CPU_SHAPES = ((128, 256, 128),)
GPU_SHAPES = ((512, 1024, 1024), (512, 5120, 5120))
MAX_REPEATS = {"cpu": 3, "cuda": 20}  # an emulation needs no exact times


def run(seconds: float = 50, device: torch.device | str = "cpu") -> list[dict[str, object]]:
    """Measure every format, exponent and kind of input on `device` in about `seconds`, on a CPU about 10 at most.

    Returns:
        One dict per row. device; pass (forward or forward_backward); p (a string), batch, n_in, n_out, format;
        inputs: gaussian, identity (-10 on the diagonal of w), cancelling (w close to x, common values large, in one
        output of four); flagged: share of pairs computed directly; max_rel_error: forward, the largest relative error
        of a distance, forward_backward, the largest error of a gradient entry relative to the largest entry;
        seconds: the best repetition; ratio_to_direct: how many times faster than the direct kernels (best against
        best, measured in turns).
    """
    device = torch.device(device)
    if device.type == "cuda" and not gpu.available(torch.empty(0, device=device)):
        raise RuntimeError(f"matrix products need the Triton kernels on {device}: {gpu.info()['gpu_reason']}")
    shapes = CPU_SHAPES if device.type == "cpu" else GPU_SHAPES
    cases = [(shape, kind, p) for shape in shapes for kind in INPUTS for p in P]
    end = time.perf_counter() + seconds
    rows: list[dict[str, object]] = []
    for number, (shape, kind, p) in enumerate(cases):
        budget = max(0.0, end - time.perf_counter()) / (len(cases) - number)
        rows += _case(shape, kind, p, device, time.perf_counter() + budget)
    return rows


def operands(kind: str, n_rows: int, n_in: int, n_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, I], w [O, I] and an upstream gradient [B, O] of a named kind, on the CPU, always the same."""
    g = torch.Generator().manual_seed(11)
    x, w = torch.randn(n_rows, n_in, generator=g), torch.randn(n_out, n_in, generator=g)
    if kind == "identity":
        w[torch.arange(n_out), torch.arange(n_out) % n_in] = -10
    elif kind == "cancelling":
        common = 5 * torch.randn(n_in, generator=g)
        x = common + 0.2 * x
        w[::4] = common + 0.2 * w[::4]
    elif kind != "gaussian":
        raise ValueError(f"inputs {kind!r}; choose one of {', '.join(INPUTS)}")
    return x, w, torch.randn(n_rows, n_out, generator=g)


def _case(
    shape: tuple[int, int, int], kind: str, p: int, device: torch.device, end: float
) -> list[dict[str, object]]:
    """The rows of one shape, kind of input and exponent: formats and the direct kernels in turns until `end`."""
    x, w, g = (a.to(device) for a in operands(kind, *shape))
    exact = _exact(x, w, g, p)
    x, w = x.requires_grad_(), w.requires_grad_()

    def direct() -> Tensor:
        return dist(x, w, float(p))

    def by_products(name: str) -> Callable[[], Tensor]:
        return lambda: dist_matmul(x, w, p, format=name, capacity=1.0)

    ways = {"direct": direct, **{name: by_products(name) for name in FORMATS}}
    best = _best(ways, x, w, g, end)
    rows: list[dict[str, object]] = []
    for name in FORMATS:
        stats = MatmulStats()
        y = dist_matmul(x, w, p, format=name, capacity=1.0, stats=stats)
        grads = torch.autograd.grad(y, (x, w), g)
        errors = {"forward": _relative(y.detach(), exact[0]),
                  "forward_backward": max(_of_largest(a, b) for a, b in zip(grads, exact[1:], strict=True))}
        rows += [
            {
                "device": device.type, "pass": which, "p": str(p), "batch": shape[0], "n_in": shape[1],
                "n_out": shape[2], "format": name, "inputs": kind, "flagged": stats.share, "max_rel_error": error,
                "seconds": best[name, which], "ratio_to_direct": best["direct", which] / best[name, which],
            }
            for which, error in errors.items()
        ]
    return rows


def _exact(x: Tensor, w: Tensor, g: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """(y, dx, dw) in float64, in bounded memory."""
    x, w, g = x.double(), w.double(), g.double()
    y, code = reference.forward(x, w, p, False)
    return (y, *reference.backward(g, x, w, y, code, p))


def _relative(y: Tensor, want: Tensor) -> float:
    return float(((y - want).abs() / want).max())


def _of_largest(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def _best(
    ways: dict[str, Callable[[], Tensor]], x: Tensor, w: Tensor, g: Tensor, end: float
) -> dict[tuple[str, str], float]:
    """Shortest seconds of each way's forward and forward plus backward; in turns, so that a busy moment hits all."""
    best = {(name, which): math.inf for name in ways for which in ("forward", "forward_backward")}
    for repeat in range(MAX_REPEATS[x.device.type] + 1):
        for name, way in ways.items():
            _wait(x.device)
            start = time.perf_counter()
            y = way()
            _wait(x.device)
            middle = time.perf_counter()
            torch.autograd.grad(y, (x, w), g)
            _wait(x.device)
            if repeat > 0:  # the first turn compiles and warms up
                best[name, "forward"] = min(best[name, "forward"], middle - start)
                best[name, "forward_backward"] = min(best[name, "forward_backward"], time.perf_counter() - start)
        if repeat > 0 and time.perf_counter() >= end:
            break
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
