"""Speed and correctness of the distance kernels, as ratios measured in one run: the command `bench kernels`.

Seconds depend on the machine and on who else uses it; ratios much less. So every row is timed next to `torch.cdist` and
the plain torch reference (both on a slice of the batch, per coordinate triple: in full they would take minutes) and, on
a CPU with compiled kernels, next to a probe that only subtracts and takes maxima in registers: its speed divided by the
vector instructions that dense arithmetic needs is the floor, which only candidate lists can pass.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.linf_dist.kernels import build, ops, reference

MIN_SHARE = 0.2  # seconds for one case, however late it is
REPEATS = 5  # best of, interleaved with what it is compared to
# Rows of the first run, from which the time of the full one is foretold: a tile of the compiled kernels, else a few.
TILE_ROWS, FEW_ROWS = 128, 4
SLICE_TRIPLES = 2**22  # of the slow comparisons; about 0.05 s each
# Rows and centres whose results are compared with the float64 oracle, each against everything it meets; one where that
# is more than CHECK_TRIPLES.
CHECKED, CHECK_TRIPLES = 3, 2**22
PROBE_ROUNDS = 2**15  # 0.07 G triples, about 2 ms on one core
PROBE_TRIPLES = 2048  # coordinates of one round: those of cb_probe
PROBE_OPS = 2  # vector instructions of the probe per triple
# The same of dense arithmetic, per pass and exponent (fractional p: two polynomials): what the probe's speed allows.
DENSE_OPS = {
    ("forward", 8): 4, ("forward", math.inf): 2, ("bounds", math.inf): 6, ("forward_backward", 8): 11,
    ("forward_backward", 20): 19, ("forward_backward", 20.3): 29, ("forward_backward", math.inf): 2,
}  # fmt: skip
IDENTITY = -10.0  # what identity initialisation adds to one weight of every hidden neuron (arXiv 2110.06850's code)


@dataclass(frozen=True)
class Case:
    """One thing to time; `inputs`: "gaussian" (hard for lists) or "identity" (like hidden layers of trained nets)."""

    what: str  # forward, forward_backward or bounds
    p: float
    batch: int
    n_in: int
    n_out: int
    inputs: str = "gaussian"


def cases() -> list[Case]:
    """In order of interest: what no longer fits into the time is left out from the end."""
    square, wide, small, hidden = (512, 1024, 1024), (512, 5120, 5120), (128, 784, 1024), (128, 1024, 512)
    inf = math.inf
    chosen = [Case("forward_backward", p, *square) for p in (8, 20, 20.3, 100, 1000, inf)]
    chosen += [Case("forward", p, *square) for p in (8, 1000, inf)]
    chosen += [Case("bounds", inf, *square)]
    chosen += [Case("forward_backward", p, *square, "identity") for p in (50, 100, 1000, inf)]
    chosen += [Case("forward", inf, *square, "identity"), Case("bounds", inf, *square, "identity")]
    chosen += [Case("forward_backward", p, *small) for p in (8, 20.3, 100, inf)]
    chosen += [Case("forward_backward", p, *hidden, "identity") for p in (50, 1000, inf)]
    chosen += [Case("forward_backward", p, *wide) for p in (inf, 1000, 8, 100)]
    return chosen


def inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, I], w [O, I], upstream gradient [B, O]; the same numbers in every run."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(case.batch, case.n_in, generator=g)
    w = torch.randn(case.n_out, case.n_in, generator=g)
    if case.inputs == "identity":
        diagonal = torch.arange(min(case.n_in, case.n_out))
        w[diagonal, diagonal] += IDENTITY
    return x.to(device), w.to(device), torch.randn(case.batch, case.n_out, generator=g).to(device)


Work = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def _with_grads(distance: Callable[[Tensor, Tensor, float], Tensor], p: float) -> Work:
    def work(x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        y = distance(x, w, p)
        return (y.detach(), *torch.autograd.grad(y, (x, w), g))

    return work


def _reference_with_grads(p: float) -> Work:
    def work(x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        y, code = reference.forward(x, w, p, True)
        return (y, *reference.backward(g, x, w, y, code, p))

    return work


RADIUS = 0.1  # half the width of the boxes


def works(case: Case) -> tuple[Work, Work, Work | None]:
    """(ours, reference, torch.cdist) as functions of x, w, g; cdist has no bounds."""
    p = case.p
    if case.what == "forward":
        return (lambda x, w, g: (ops.dist(x, w, p),), lambda x, w, g: reference.forward(x, w, p, False)[:1],
                lambda x, w, g: (torch.cdist(x, w, p=p),))
    if case.what == "bounds":
        return (lambda x, w, g: ops.interval(x - RADIUS, x + RADIUS, w),
                lambda x, w, g: reference.interval(x - RADIUS, x + RADIUS, w), None)
    return (_with_grads(ops.dist, p), _reference_with_grads(p),
            _with_grads(lambda x, w, q: torch.cdist(x, w, p=q), p))


def _seconds(work: Work, x: Tensor, w: Tensor, g: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(x, w, g)
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def max_rel_error(case: Case, x: Tensor, w: Tensor, g: Tensor) -> float:
    """Largest error of a few rows of our full-size results, against the oracle.

    y and bounds relative to each value; gradients relative to the largest entry of the whole gradient, since an entry
    that is a sum of both signs may cancel.
    """
    got = works(case)[0](x, w, g)
    count = CHECKED if w.numel() <= CHECK_TRIPLES else 1
    rows = torch.linspace(0, len(x) - 1, count, device=x.device).long()
    outs = torch.linspace(0, len(w) - 1, CHECKED, device=x.device).long()
    some = x[rows]
    if case.what == "bounds":
        exact = reference.oracle_interval((some - RADIUS).double(), (some + RADIUS).double(), w.double())
        return max(_relative(a[rows], b) for a, b in zip(got, exact, strict=True))
    worst = 0.0
    for b, row in enumerate(some):  # one row at a time: [1, O, I] float64
        worst = max(worst, _relative(got[0][rows[b]], reference.oracle_dist(row[None], w, case.p)[0]))
    if case.what == "forward_backward":
        for b, row in enumerate(some):
            exact_dx = reference.oracle_grads(g[rows[b]][None], row[None], w, case.p)[0][0]
            worst = max(worst, _to_largest(got[1], rows[b], exact_dx))
        for o in outs:
            exact_dw = reference.oracle_grads(g[:, o][:, None], x, w[o][None], case.p)[1][0]
            worst = max(worst, _to_largest(got[2], o, exact_dw))
    return worst


def _relative(got: Tensor, exact: Tensor) -> float:
    return float(((got - exact).abs() / exact.abs().clamp(min=1e-30)).max())


def _to_largest(gradient: Tensor, row: Tensor, exact: Tensor) -> float:
    return float((gradient[row] - exact).abs().max() / gradient.abs().max().clamp(min=1e-30))


def probe() -> float | None:
    """Billions of (subtract, maximum) pairs per second in registers on torch's threads; None if nothing is built."""
    native = build.choose()[0]
    if native is None:
        return None
    threads = build.threads()
    native.lib.cb_probe(PROBE_ROUNDS // 8, threads)
    start = time.perf_counter()
    native.lib.cb_probe(PROBE_ROUNDS, threads)
    return PROBE_ROUNDS * PROBE_TRIPLES * threads / (time.perf_counter() - start) / 1e9


def measure(case: Case, device: str, limit: float) -> dict[str, object]:
    """One row. The batch is cut where the full one would take more than `limit` seconds (and the row says so)."""
    x, w, g = inputs(case, device)
    ours, plain, cdist = works(case)
    few = min(TILE_ROWS if device != "cpu" or build.choose()[0] else FEW_ROWS, case.batch)
    ours(x[:few], w, g[:few])  # builds, allocates
    per_row = _seconds(ours, x[:few], w, g[:few]) / few
    batch = max(few, min(case.batch, int(limit / REPEATS / per_row)))
    x, g = x[:batch].contiguous(), g[:batch].contiguous()
    error = max_rel_error(case, x, w, g)
    part = max(1, min(batch, SLICE_TRIPLES // (case.n_in * case.n_out)))
    best = {"ours": math.inf, "reference": math.inf, "cdist": math.inf}
    floor = 0.0
    deadline = time.perf_counter() + limit
    for repeat in range(REPEATS):
        if repeat > 1 and time.perf_counter() > deadline:
            break
        # twice: the others' large buffers have just gone back to the system, and the first call gets fresh pages
        best["ours"] = min(best["ours"], _seconds(ours, x, w, g) / batch, _seconds(ours, x, w, g) / batch)
        best["reference"] = min(best["reference"], _seconds(plain, x[:part], w, g[:part]) / part)
        if cdist is not None:
            best["cdist"] = min(best["cdist"], _seconds(cdist, x[:part], w, g[:part]) / part)
        if device == "cpu":
            floor = max(floor, probe() or 0.0)
    gops = case.n_in * case.n_out / best["ours"] / 1e9
    needed = DENSE_OPS.get((case.what, case.p))
    return {
        "device": device, "pass": case.what, "p": f"{case.p:g}", "batch": batch, "n_in": case.n_in,
        "n_out": case.n_out, "inputs": case.inputs, "seconds": best["ours"] * batch, "gops": gops,
        "ratio_to_cdist": best["cdist"] / best["ours"] if cdist is not None else None,
        "ratio_to_reference": best["reference"] / best["ours"], "max_rel_error": error,
        "floor_fraction": gops / (floor * PROBE_OPS / needed) if floor and needed else None,
    }


def run(*, seconds: float = 100, device: str = "cpu") -> list[dict[str, object]]:
    """Time and check the operations on `device` for about `seconds`.

    Returns one dict per case: device, pass ("forward", "forward_backward" or "bounds"), p, batch, n_in, n_out, inputs
    ("gaussian" or "identity"), seconds (of one call, best of a few), gops (coordinate triples per second / 1e9),
    ratio_to_cdist (None for bounds), ratio_to_reference, max_rel_error (see `max_rel_error`) and floor_fraction (speed
    as a share of what dense arithmetic could reach, from the probe; None where that depends on the data). Cases that no
    longer fit into the time are left out.
    """
    rows: list[dict[str, object]] = []
    todo = cases()
    end = time.perf_counter() + seconds
    for k, case in enumerate(todo):
        left = end - time.perf_counter()
        if left <= 0 and rows:
            break
        # half of an equal share is ours; checking and comparing take the rest
        rows.append(measure(case, device, max(MIN_SHARE, left / (len(todo) - k) / 2)))
    return rows
