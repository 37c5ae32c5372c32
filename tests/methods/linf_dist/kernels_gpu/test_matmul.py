"""Even p by guarded matrix products, emulated on the CPU, against the float64 oracle in value and gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from methods.linf_dist.kernels import dist, matmul_formats
from methods.linf_dist.kernels import reference as ref
from methods.linf_dist.kernels.matmul import EXPONENTS, MatmulStats, dist_matmul, lp_dist_matmul
from methods.linf_dist.kernels.matmul_formats import FORMATS, default_kappa, product, round_tf32

# Largest relative error of a distance: as measured on trained layers. Relative l_2 error of a gradient: 1e-3, 1e-4
# and 4e-5 there; here a few pairs with one dominating weight, just above the guard, weigh more among few.
Y_TOLERANCE = {"float32": 3e-4, "tf32": 3e-3, "bf16x3": 6e-4}
GRAD_TOLERANCE = {"float32": 5e-5, "tf32": 2e-3, "bf16x3": 3e-4}
DIRECT_TOLERANCE = 3e-6  # of pairs computed directly
INPUTS = ["gaussian", "identity", "cancelling", "mixed"]


def operands(kind: str, n_rows: int = 48, n_in: int = 96, n_outs: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """x, w and an upstream gradient; mixed: one output in eight lies close to one large row of x."""
    g = torch.Generator().manual_seed(7)
    x, w = torch.randn(n_rows, n_in, generator=g), torch.randn(n_outs, n_in, generator=g)
    if kind == "identity":
        w[torch.arange(n_outs), torch.arange(n_outs)] = -10
    elif kind == "cancelling":
        common = 5 * torch.randn(n_in, generator=g)
        x, w = common + 0.2 * x, common + 0.2 * w
    elif kind == "mixed":
        near = slice(0, n_outs // 8)
        x[: n_outs // 8] *= 3
        w[near] = x[: n_outs // 8] + 0.2 * w[near]
    return x.requires_grad_(), w.requires_grad_(), torch.randn(n_rows, n_outs, generator=g)


def run(kind: str, p: int, format: str, **options: float) -> tuple[Tensor, Tensor, Tensor, MatmulStats]:
    """(y, dx, dw, stats)."""
    x, w, g = operands(kind)
    stats = MatmulStats()
    y = dist_matmul(x, w, p, format=format, stats=stats, **options)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    return y.detach(), dx, dw, stats


def errors(kind: str, p: int, y: Tensor, dx: Tensor, dw: Tensor) -> tuple[float, float]:
    """(largest relative error of y, larger relative l_2 error of dx and dw)."""
    x, w, g = operands(kind)
    want = ref.oracle_dist(x.detach(), w.detach(), p)
    exact = ref.oracle_grads(g, x.detach(), w.detach(), p)
    grads = max(((a - b).norm() / b.norm()).item() for a, b in zip((dx, dw), exact, strict=True))
    return ((y - want).abs() / want).max().item(), grads


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("p", [8, 10, 12])
@pytest.mark.parametrize("format", FORMATS)
def test_value_and_gradients_match_the_oracle(format: str, p: int, kind: str) -> None:
    y, dx, dw, _ = run(kind, p, format, capacity=1.0)
    y_error, grad_error = errors(kind, p, y, dx, dw)
    assert y_error <= Y_TOLERANCE[format] and grad_error <= GRAD_TOLERANCE[format], (y_error, grad_error)


@pytest.mark.parametrize("p", [2, 4, 6])
def test_smaller_even_exponents_match_the_oracle(p: int) -> None:
    y, dx, dw, _ = run("gaussian", p, "bf16x3", capacity=1.0)
    y_error, grad_error = errors("gaussian", p, y, dx, dw)
    assert y_error <= Y_TOLERANCE["bf16x3"] and grad_error <= GRAD_TOLERANCE["bf16x3"]


@pytest.mark.parametrize("format", FORMATS)
def test_without_its_guard_it_fails_on_a_few_close_pairs(format: str) -> None:
    """The guard is what the tests above rest on: kappa = 0 takes it out, and these inputs must then be wrong."""
    _, _, _, stats = run("mixed", 8, format, capacity=1.0)
    assert 0 < stats.share < 0.1
    y, dx, dw, _ = run("mixed", 8, format, capacity=1.0, kappa=0.0)
    y_error, grad_error = errors("mixed", 8, y, dx, dw)
    assert max(y_error / Y_TOLERANCE[format], grad_error / GRAD_TOLERANCE[format]) > 5, (y_error, grad_error)


@pytest.mark.parametrize("p", [8, 12])
def test_a_batch_whose_every_pair_is_flagged_is_as_exact_as_direct_arithmetic(p: int) -> None:
    y, dx, dw, stats = run("cancelling", p, "tf32", capacity=1.0)
    assert stats.share == 1.0 and stats.overflows == 0
    y_error, grad_error = errors("cancelling", p, y, dx, dw)
    assert y_error <= DIRECT_TOLERANCE and grad_error <= DIRECT_TOLERANCE * p


def test_more_flagged_pairs_than_the_capacity_send_the_layer_to_the_direct_kernels() -> None:
    y, dx, dw, stats = run("mixed", 8, "bf16x3", capacity=0.0)
    x, w, g = operands("mixed")
    direct = dist(x, w, 8.0)
    assert stats.overflows == stats.calls == 1
    assert torch.equal(y, direct)
    for a, b in zip((dx, dw), torch.autograd.grad(direct, (x, w), g), strict=True):
        assert torch.equal(a, b)


def test_stats_add_up_over_calls() -> None:
    x, w, _ = operands("mixed")
    stats, once = MatmulStats(), MatmulStats()
    assert stats.share == 0 and stats.overflows == 0
    for _ in range(3):
        dist_matmul(x, w, 8, format="bf16x3", stats=stats)
    dist_matmul(x, w, 8, format="bf16x3", stats=once)
    assert stats.calls == 3 and stats.share == once.share > 0


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_the_data_does_not_matter(scale: float) -> None:
    """Powers of 12 leave float32 at once; the operands are scaled by one power of two first."""
    x, w, _ = operands("identity")
    factor = 2.0 ** round(math.log2(scale))
    stats, scaled_stats = MatmulStats(), MatmulStats()
    y = dist_matmul(x, w, 12, format="bf16x3", stats=stats, capacity=1.0)
    scaled = dist_matmul(x * factor, w * factor, 12, format="bf16x3", stats=scaled_stats, capacity=1.0)
    assert stats.share == scaled_stats.share < 0.1
    assert ((scaled / factor - y).abs() <= 1e-5 * y).all()  # the flagged pairs' roots round elsewhere


def test_small_rows_beside_large_ones_are_computed_directly() -> None:
    """Sums of powers of a small pair underflow after the common scaling."""
    x, w, g = operands("gaussian")
    with torch.no_grad():
        x[0] *= 1e-6
        w[0] *= 1e-6
    y = dist_matmul(x, w, 8, format="bf16x3")
    dx, dw = torch.autograd.grad(y, (x, w), g)
    want = ref.oracle_dist(x.detach(), w.detach(), 8)
    assert ((y - want).abs() <= Y_TOLERANCE["bf16x3"] * want).all()
    for got, exact in zip((dx, dw), ref.oracle_grads(g, x.detach(), w.detach(), 8), strict=True):
        assert (got - exact).norm() <= GRAD_TOLERANCE["bf16x3"] * exact.norm()


@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_zero_distances_nan_and_infinity_come_out_as_from_the_direct_kernels(capacity: float) -> None:
    x, w, g = operands("gaussian", 6, 9, 5)
    with torch.no_grad():
        x[0] = w[0]
        x[1, 2], w[3, 4], x[2, 0] = math.nan, math.inf, -math.inf
        w[4] = 0
        x[4] = 0
    y = dist_matmul(x, w, 8, format="bf16x3", capacity=capacity)
    got = torch.autograd.grad(y, (x, w), g)
    want = ref.oracle_dist(x.detach(), w.detach(), 8)
    assert torch.equal(y.isnan(), want.isnan()) and torch.equal(y.isinf(), want.isinf())
    assert torch.equal(y == 0, want == 0) and y[0, 0] == 0
    inner = want.isfinite()
    assert ((y - want).abs() <= Y_TOLERANCE["bf16x3"] * want)[inner].all()
    for a, b in zip(got, ref.oracle_grads(g, x.detach(), w.detach(), 8), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert ((a - b).nan_to_num().norm() <= 1e-3 * b.nan_to_num().norm())


def test_one_gradient_alone_is_the_same() -> None:
    x, w, g = operands("mixed")
    both = torch.autograd.grad(dist_matmul(x, w, 8, format="tf32"), (x, w), g)
    assert torch.equal(torch.autograd.grad(dist_matmul(x, w.detach(), 8, format="tf32"), x, g)[0], both[0])
    assert torch.equal(torch.autograd.grad(dist_matmul(x.detach(), w, 8, format="tf32"), w, g)[0], both[1])


def test_strides_do_not_matter() -> None:
    x, w, _ = operands("identity")
    strided = dist_matmul(x.t().contiguous().t(), w[:, ::1], 8, format="bf16x3")
    assert torch.equal(strided, dist_matmul(x, w, 8, format="bf16x3"))


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 5, 0)])
def test_empty_operands_give_empty_distances(shape: tuple[int, int, int]) -> None:
    x, w = torch.zeros(shape[0], shape[1], requires_grad=True), torch.zeros(shape[2], shape[1], requires_grad=True)
    y = dist_matmul(x, w, 8, format="bf16x3")
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert y.shape == (shape[0], shape[2]) and not dx.any() and not dw.any()


def test_the_operation_obeys_the_rules_of_torch_library() -> None:
    x, w, _ = operands("mixed", 6, 12, 8)
    opcheck(lp_dist_matmul, (x, w, 8.0, "bf16x3", 0.35, 5))


# formats ------------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.floats(min_value=2.0**-100, max_value=2.0**100, width=32), st.booleans())
def test_tf32_is_the_nearest_number_with_ten_bits(value: float, negative: bool) -> None:
    value = -value if negative else value
    mantissa, exponent = math.frexp(value)  # mantissa in [1/2, 1): eleven bits are 2^-11 apart
    want = math.ldexp(round(mantissa * 2**11) / 2**11, exponent)  # Python rounds ties to even
    assert round_tf32(torch.tensor([value])).item() == want


def test_tf32_keeps_zeros_and_numbers_it_can_hold() -> None:
    kept = torch.tensor([0.0, -0.0, 1.0, -1.5, 1 + 2.0**-10, 2.0**-126])
    assert torch.equal(round_tf32(kept).view(torch.int32), kept.view(torch.int32))


@pytest.mark.parametrize(("format", "roundoff"), [("float32", 2.0**-21), ("tf32", 2.0**-10), ("bf16x3", 2.0**-14.5)])
def test_products_are_as_exact_as_their_format_and_not_more(format: str, roundoff: float) -> None:
    """Too exact would mean that the format was not used: its errors are what the guard has to bear."""
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(30, 50, generator=g), torch.randn(20, 50, generator=g)
    error = (product(a, b, format) - a.double() @ b.double().t()).abs() / (a.abs() @ b.abs().t())
    assert roundoff / 200 < error.max() <= roundoff


def test_the_guard_has_the_measured_thresholds() -> None:
    assert [default_kappa(8, f) for f in FORMATS] == [0.25, 0.5, 0.4]
    for f in FORMATS:
        thresholds = [default_kappa(p, f) for p in EXPONENTS]
        assert thresholds == sorted(thresholds) and thresholds[0] > 0 and thresholds[-1] < 1


def test_no_switch_is_turned() -> None:
    def switches() -> tuple[object, ...]:
        return (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32,
                torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
                torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype())

    before = switches()
    for format in FORMATS:
        run("gaussian", 8, format)
    assert switches() == before


def test_a_switch_that_would_lower_the_format_is_refused() -> None:
    """"medium" lets a CPU multiply float32 in bfloat16: the numbers would not be those of the format."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(RuntimeError, match="highest"):
            run("gaussian", 8, "tf32")
    finally:
        torch.set_float32_matmul_precision(before)


# refusals -----------------------------------------------------------------------------------------------------------


def test_it_refuses_to_run_where_gradients_are_off() -> None:
    """A certificate is computed without gradients: it must never meet a product."""
    x, w, _ = operands("gaussian")
    with torch.no_grad(), pytest.raises(RuntimeError, match="training"):
        dist_matmul(x, w, 8, format="bf16x3")


@pytest.mark.parametrize("p", [1, 3, 8.5, 14, math.inf])
def test_it_refuses_other_exponents(p: float) -> None:
    x, w, _ = operands("gaussian")
    with pytest.raises(ValueError, match="must be one of"):
        dist_matmul(x, w, p, format="bf16x3")
    assert p not in EXPONENTS


@pytest.mark.parametrize("options", [{"format": "bf16"}, {"format": "tf32", "kappa": 1.5},
                                     {"format": "tf32", "kappa": -0.1}, {"format": "tf32", "capacity": 2.0}])
def test_it_refuses_options_out_of_range(options: dict[str, object]) -> None:
    x, w, _ = operands("gaussian")
    with pytest.raises(ValueError, match=r"format|kappa|capacity"):
        dist_matmul(x, w, 8, **options)  # type: ignore[arg-type]


def test_it_refuses_float64() -> None:
    x, w, _ = operands("gaussian")
    with pytest.raises(ValueError, match="float32"):
        dist_matmul(x.double(), w.double(), 8, format="float32")


def test_every_format_has_a_guard() -> None:
    assert set(matmul_formats.KAPPA) == set(FORMATS)
