"""Small comparisons with `reference` and the float64 oracle on a device, before its results are trusted."""

import math

import torch
from torch import Tensor

from methods.linf_dist.kernels import reference
from methods.linf_dist.kernels.gpu import bounds, finite, gradient, linf, lists, pairs, products, scatter

P = (8.0, 20.0, 20.3, 100.0)  # one of each family
Y_TOLERANCE, GRAD_TOLERANCE = 1e-5, 5e-4  # relative; of the largest entry


def failure(device: torch.device, shapes: tuple[tuple[int, int, int], ...] = ((130, 200, 70), (9, 40, 10))) -> str:
    """"" if every family agrees on `shapes` (B, I, O), else what did not. Waits for the device."""
    for shape in shapes:
        x, w, g = _operands(*shape, device)
        for name, passed in _checks(x, w, g):
            if not passed:
                return f"the self-test of {name} failed at shape {shape}"
    return ""


def _operands(n_rows: int, n_in: int, n_outs: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Quantised inputs (ties), one zero distance, one NaN, one infinity; from a generator of their own."""
    random = torch.Generator().manual_seed(1)
    x, w = (torch.randn(n, n_in, generator=random).mul_(64).round_().div_(64) for n in (n_rows, n_outs))
    w[torch.arange(n_outs), torch.arange(n_outs) % n_in] -= 4
    x[0] = w[0]
    x[1, 3], w[1, 5] = math.nan, math.inf
    return x.to(device), w.to(device), torch.randn(n_rows, n_outs, generator=random).to(device)


def _checks(x: Tensor, w: Tensor, g: Tensor):  # type: ignore[no-untyped-def]
    y, code = reference.forward(x, w, math.inf, True)
    for name, run in (("p = inf", linf.forward), ("candidate lists", lists.linf_forward)):
        got, got_code = run(x, w, True)
        yield name, _same(got, y) and torch.equal(got_code, code)
    want = reference.backward(g, x, w, y, code, math.inf)
    yield "the gradient at p = inf", all(
        _close(a, b) for a, b in zip(scatter.backward(g, code, x.shape[1], True, True), want, strict=True)
    )
    reach = (x - x.roll(1, 0)).abs()
    lower, upper = x - reach, x + reach
    yield "interval bounds", all(
        _same(a, b) for a, b in zip(bounds.interval(lower, upper, w), reference.interval(lower, upper, w), strict=True)
    )
    x, w = x.nan_to_num(0.0, 0.0, 0.0), w.nan_to_num(0.0, 0.0, 0.0)
    for name, roundoff in (("float32", 2.0**-18), ("tf32", 2.0**-7), ("bf16x3", 2.0**-12)):
        total, norms = products.values(x, w, x.new_ones(()) / 16, 8, name)
        error = (total - (reference.oracle_dist(x, w, 8.0) / 16) ** 8).abs()
        yield f"products in {name}", bool((error <= roundoff * norms**8).all())
    y = torch.full((x.shape[0], w.shape[0]), -1.0, device=x.device)
    pairs.values(x, w, y, torch.ones_like(y, dtype=torch.bool), 8)
    oracle = reference.oracle_dist(x, w, 8.0)
    yield "listed pairs", bool(((y - oracle).abs() <= Y_TOLERANCE * oracle).all())
    for p in P:
        run_forward, run_backward = (
            (lists.forward, lists.backward) if p >= lists.MIN_P else (finite.forward, gradient.backward)
        )
        y = run_forward(x, w, p)
        oracle = reference.oracle_dist(x, w, p)
        yield f"p = {p:g}", bool(((y - oracle).abs() <= Y_TOLERANCE * oracle).all())
        exact = reference.oracle_grads(g, x, w, p)
        both = run_backward(g, x, w, y, p, True, True)
        single = run_backward(g, x, w, y, p, True, False)[0], run_backward(g, x, w, y, p, False, True)[1]
        yield f"the gradient at p = {p:g}", all(
            _close(a, b) for a, b in zip((*both, *single), (*exact, *exact), strict=True)
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _close(a: Tensor, b: Tensor) -> bool:
    if not torch.equal(a.isnan(), b.isnan()):
        return False
    a, b = a.nan_to_num(), b.nan_to_num()
    return bool((a - b).abs().max() <= GRAD_TOLERANCE * b.abs().max())
