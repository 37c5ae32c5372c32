"""The compiled library itself: every instruction set, list and dense, threads, floating-point mode, memory."""

import ctypes
import math
import multiprocessing
import resource

import pytest
import torch
from torch import Tensor

from methods.linf_dist.kernels import build, dist, interval
from methods.linf_dist.kernels import reference as ref

AUTO, NEVER, ALWAYS = range(3)  # when candidate lists are used
P = [2, 3, 8, 8.5, 9.7, 10, 12, 13, 14, 16, 20.3, 26, 48, 51, 66, 68, 100, 333.3, 512, 1000, math.inf]

# As in test_kernels_api.py: y has the rounding of a sum and a root, the gradient that of a (p - 1)th power.
Y_TOLERANCE = 3e-6
GRAD_PER_P, GRAD_BASE = 3e-7, 1e-5

# What a process may grow by over the calls of the leak test: less than one leaked buffer per call would take.
LEAK_MIB = 30


def grad_tolerance(p: float) -> float:
    return GRAD_BASE + (0.0 if math.isinf(p) else GRAD_PER_P * p)


VARIANTS = {
    "default": None,
    "avx512": ("-march=native", "-fopenmp"),
    "avx2": ("-mavx2", "-mfma", "-fopenmp"),
    "baseline": ("-fopenmp",),
    "serial": ("-march=native",),
}


def library(variant: str) -> build.Native:
    """The library of one variant; skips where it cannot be built or run."""
    if not build.compilers():
        pytest.skip("no C++ compiler")
    flags = VARIANTS[variant]
    needs = {"avx512": "avx512dq", "avx2": "avx2"}.get(variant, "")
    if needs not in build.cpu_features():
        pytest.skip(f"the processor has no {needs}")
    try:
        if flags is None:
            return build.build_any()
        return build.build(build.compilers()[0], (*build.BASE_FLAGS, *flags), quiet=True)
    except build.KernelsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def native() -> build.Native:
    return library("default")


def forward(lib: ctypes.CDLL, x: Tensor, w: Tensor, p: float, mode: int = AUTO,
            threads: int = 1) -> tuple[Tensor, Tensor]:
    y, code = torch.empty(len(x), len(w)), torch.empty(len(x), len(w), dtype=torch.int32)
    where = code.data_ptr() if p == math.inf else None
    assert lib.cb_dist(x.data_ptr(), w.data_ptr(), y.data_ptr(), where, *x.shape, len(w), p, mode, threads) == 0
    return y, code


def backward(lib: ctypes.CDLL, g: Tensor, x: Tensor, w: Tensor, saved: tuple[Tensor, Tensor], p: float,
             mode: int = AUTO, threads: int = 1) -> tuple[Tensor, Tensor]:
    dx, dw = torch.full_like(x, math.nan), torch.full_like(w, math.nan)  # whatever is not written shows
    y, code = saved
    size = (*x.shape, len(w))
    if p == math.inf:
        assert lib.cb_inf_backward(g.data_ptr(), code.data_ptr(), dx.data_ptr(), dw.data_ptr(), *size, threads) == 0
    else:
        assert lib.cb_dist_backward(g.data_ptr(), x.data_ptr(), w.data_ptr(), y.data_ptr(), dx.data_ptr(),
                                    dw.data_ptr(), *size, p, mode, threads) == 0
    return dx, dw


def layer(kind: str, shape: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, w, g: gaussian, or with a dominant feature per output as after identity initialisation."""
    n, i, o = shape
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(n, i, generator=g), torch.randn(o, i, generator=g)
    if kind == "identity":
        w[range(min(i, o)), range(min(i, o))] -= 10
    return x, w, torch.randn(n, o, generator=g)


def check_against_oracle(lib: ctypes.CDLL, kind: str, shape: tuple[int, int, int], exponents: list[float]) -> None:
    x, w, g = layer(kind, shape, seed=sum(shape))
    w[0] = x[0]  # one pair at distance zero
    for p in exponents:
        want, grads = ref.oracle_dist(x, w, p), ref.oracle_grads(g, x, w, p)
        for mode in (AUTO, NEVER, ALWAYS):
            saved = forward(lib, x, w, p, mode)
            error = ((saved[0] - want).abs() / want.clamp(min=1e-30)).max()
            assert error <= Y_TOLERANCE, f"p {p} mode {mode}: y off by {error:.1e}"
            if p == math.inf:
                assert torch.equal(saved[0], (x[:, None] - w).abs().amax(-1))
                assert torch.equal(saved[1], ref.forward(x, w, p, True)[1])
            for got, exact in zip(backward(lib, g, x, w, saved, p, mode), grads, strict=True):
                error = (got - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
                assert error <= grad_tolerance(p), f"p {p} mode {mode}: gradient off by {error:.1e}"


SMALL_SHAPES = [(1, 1, 1), (5, 16, 3), (17, 64, 33), (37, 133, 18), (130, 90, 17)]


@pytest.mark.parametrize("kind", ["gaussian", "identity"])
@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
def test_lists_and_dense_match_the_oracle(native: build.Native, shape: tuple[int, int, int], kind: str) -> None:
    """A feature dropped wrongly from a list, or a tail handled wrongly without one."""
    check_against_oracle(native.lib, kind, shape, P)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["avx512", "avx2", "baseline", "serial"])
@pytest.mark.parametrize("kind", ["gaussian", "identity"])
@pytest.mark.parametrize("shape", [*SMALL_SHAPES, (300, 65, 17), (64, 784, 40), (9, 4097, 5)], ids=str)
def test_every_instruction_set(variant: str, shape: tuple[int, int, int], kind: str) -> None:
    """One source, 16, 8 and 4 lanes, with and without OpenMP."""
    lib = library(variant)
    assert lib.isa == {"serial": lib.isa}.get(variant, variant)
    check_against_oracle(lib.lib, kind, shape, P)
    x, w, _ = layer(kind, shape)
    lower, upper = x - 0.1 * torch.rand_like(x), x + 0.1 * torch.rand_like(x)
    want = ref.oracle_interval(lower, upper, w)
    for mode in (AUTO, NEVER, ALWAYS):
        got = torch.empty(2, len(x), len(w))
        assert lib.lib.cb_interval(lower.data_ptr(), upper.data_ptr(), w.data_ptr(), got[0].data_ptr(),
                                   got[1].data_ptr(), *x.shape, len(w), mode, 2) == 0
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("p", [8, 14, 20.3, 100, math.inf])
@pytest.mark.parametrize("kind", ["gaussian", "identity"])
def test_thread_count_changes_no_bit(native: build.Native, kind: str, p: float) -> None:
    """A sum split by threads would: every output and every gradient entry belongs to one task."""
    x, w, g = layer(kind, (150, 300, 70), seed=1)
    for mode in (AUTO, NEVER, ALWAYS):
        saved = forward(native.lib, x, w, p, mode)
        grads = backward(native.lib, g, x, w, saved, p, mode)
        for threads in (2, 3):
            again = forward(native.lib, x, w, p, mode, threads)
            assert torch.equal(again[0], saved[0])
            for a, b in zip(backward(native.lib, g, x, w, again, p, mode, threads), grads, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["gaussian", "identity"])
def test_inf_has_the_same_bits_in_every_batch(native: build.Native, kind: str) -> None:
    """Lists depend on which rows share a tile; at p = inf nothing may show of that."""
    x, w, _ = layer(kind, (140, 257, 37), seed=2)
    y, code = forward(native.lib, x, w, math.inf)
    lower, upper = x - 0.05, x + 0.05
    bounds = interval(lower, upper, w)
    order = torch.randperm(140, generator=torch.Generator().manual_seed(0))
    shuffled = forward(native.lib, x[order].contiguous(), w, math.inf)
    assert torch.equal(shuffled[0], y[order]) and torch.equal(shuffled[1], code[order])
    for size in (1, 7, 16, 17, 65, 129):
        part = x[:size].contiguous()
        got = forward(native.lib, part, w, math.inf)
        assert torch.equal(got[0], y[:size]) and torch.equal(got[1], code[:size])
        for a, b in zip(interval(lower[:size], upper[:size], w), bounds, strict=True):
            assert torch.equal(a, b[:size])


def test_inf_and_bounds_have_the_bits_of_torch_on_hard_numbers(native: build.Native) -> None:
    """Subnormal, huge, equal and signed-zero differences: where flush-to-zero or a fused step would show."""
    g = torch.Generator().manual_seed(3)
    for scale in (1e-44, 1e-40, 1e-38, 1e-20, 1e30, 3e38):
        x = (torch.rand(20, 90, generator=g) * 2 - 1) * scale
        w = (torch.rand(18, 90, generator=g) * 2 - 1) * scale
        w[3], x[4] = 0.0, -0.0
        assert torch.equal(forward(native.lib, x, w, math.inf)[0], (x[:, None] - w).abs().amax(-1))
        upper = x + x.abs() / 4
        for got, want in zip(interval(x, upper, w), ref.oracle_interval(x, upper, w), strict=True):
            assert torch.equal(got.view(torch.int32), want.view(torch.int32))


def test_many_terms_just_below_the_threshold(native: build.Native) -> None:
    """Adversarial for lists: every feature but one sits where a single one is negligible, and there are thousands."""
    n_in = 4000
    for p in (14.0, 50.0, 100.0, 1000.0):
        tau = math.exp((math.log(2**-24) - math.log(n_in)) / p)
        for share in (0.98, 0.999, 1.001, 1.05):
            x, w = torch.zeros(3, n_in), torch.full((2, n_in), -share * tau)
            w[:, 1234] = 1.0
            want = ref.oracle_dist(x, w, p)
            for mode in (AUTO, ALWAYS):
                assert ((forward(native.lib, x, w, p, mode)[0] - want).abs() <= Y_TOLERANCE * want).all()


@pytest.mark.parametrize("p", [8.0, 20.3, 100.0, 1000.0])
def test_nan_gradient_and_huge_gradient(native: build.Native, p: float) -> None:
    """Non-finite upstream gradients come out as in the reference, in every entry they touch."""
    x, w, g = layer("gaussian", (9, 80, 6), seed=4)
    for bad in (math.nan, math.inf):
        g[2, 3] = bad
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = dist(*leaves, p)
        got = torch.autograd.grad(y, leaves, g)
        want = ref.backward(g, x, w, y.detach(), torch.empty(0), p)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a.isnan(), b.isnan())


def _subnormal_is_kept() -> bool:
    return bool((torch.tensor([1e-40]) * 0.5 != 0).item())


def test_floating_point_mode_is_restored(native: build.Native) -> None:
    """The kernels flush subnormal numbers to zero inside; the caller's arithmetic must not."""
    x, w, g = layer("gaussian", (40, 100, 30), seed=5)
    assert _subnormal_is_kept()
    for p in (8.0, 20.3, 1000.0, math.inf):
        saved = forward(native.lib, x, w, p, AUTO, 2)
        backward(native.lib, g, x, w, saved, p, AUTO, 2)
        assert _subnormal_is_kept()
        # torch's own workers share the library's OpenMP threads
        assert bool((torch.full((200_000,), 1e-40) * 0.5 != 0).all())
    if torch.set_flush_denormal(True):
        try:
            forward(native.lib, x, w, 8.0)
            assert not _subnormal_is_kept()
        finally:
            torch.set_flush_denormal(False)


def test_no_leak_over_ten_thousand_calls(native: build.Native) -> None:
    """A buffer lost per call would end a training run after hours."""
    x, w, g = layer("gaussian", (4, 40, 5), seed=6)

    def calls(count: int) -> None:
        for _ in range(count):
            saved = forward(native.lib, x, w, 20.0)
            backward(native.lib, g, x, w, saved, 20.0)

    calls(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls(5000)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < LEAK_MIB, f"grew by {grown:.0f} MiB"


def _child(queue: "multiprocessing.Queue[float]") -> None:
    x, w, _ = layer("gaussian", (128, 200, 64), seed=7)
    queue.put(float(dist(x, w, math.inf).sum()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # python warns of fork in a process with threads
def test_forked_child_works(native: build.Native) -> None:
    """OpenMP's threads do not survive a fork: a child that waits for them never returns."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    x, w, _ = layer("gaussian", (128, 200, 64), seed=7)
    want = float(dist(x, w, math.inf).sum())
    forward(native.lib, x, w, 8.0, AUTO, 2)  # the parent's pool exists
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[float] = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60) == want
    finally:
        child.kill()
        child.join()


def test_unsupported_exponent_goes_to_the_reference(native: build.Native) -> None:
    """Small real exponents have no short polynomial: the library says so instead of answering badly."""
    x, w, _ = layer("gaussian", (9, 500, 6), seed=8)
    for p in (1.0, 1.5, 2.2, 3.3, 5.1):
        want = ref.oracle_dist(x, w, p)
        assert ((dist(x, w, p) - want).abs() <= Y_TOLERANCE * want).all()
    y = torch.empty(9, 6)
    assert native.lib.cb_dist(x.data_ptr(), w.data_ptr(), y.data_ptr(), None, 9, 500, 6, 1.5, AUTO, 1) \
        == build.RETURN_UNSUPPORTED


def test_value_is_continuous_in_p(native: build.Native) -> None:
    """At 12 / 14 (lists), 66 (normalisation) and whole numbers (polynomial) one code path hands over to another."""
    x, w, _ = layer("identity", (20, 200, 16), seed=9)
    for p in (8.0, 9.0, 12.0, 13.0, 14.0, 20.0, 66.0, 67.0, 100.0):
        below, at, above = (forward(native.lib, x, w, p * (1 + delta))[0] for delta in (-1e-6, 0, 1e-6))
        assert ((below - at).abs() <= 2 * Y_TOLERANCE * at).all() and ((above - at).abs() <= 2 * Y_TOLERANCE * at).all()
