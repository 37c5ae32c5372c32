"""The public operations against the float64 oracle, in value and gradient, whatever code runs them."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

from methods.linf_dist.kernels import coarse_even_p, dist, interval, kernel_info, ops
from methods.linf_dist.kernels import reference as ref

P = [1, 2, 3, 6, 8, 8.5, 9.7, 10, 12, 14, 16, 20.3, 48, 51, 100, 333.3, 512, 1000, math.inf]
SHAPES = [(1, 1, 1), (3, 5, 2), (1, 64, 1), (7, 63, 33), (16, 100, 10), (17, 1, 9), (33, 129, 45), (130, 70, 16)]

# y: sums of up to 4,097 float32 terms, then a power 1/p; the promise to the layers is 2e-5.
Y_TOLERANCE = 3e-6
# Gradient, relative to the largest: an error of u in d / y is multiplied by p - 1, and u is up to about five
# roundings of 6e-8 (d, y, 1/y, the product, the chain of squarings).
GRAD_PER_P, GRAD_BASE = 3e-7, 1e-5


def grad_tolerance(p: float) -> float:
    return GRAD_BASE + (0.0 if math.isinf(p) else GRAD_PER_P * p)


def pair(shape: tuple[int, int, int], seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, I], w [O, I] and an upstream gradient [B, O]."""
    n, i, o = shape
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, i, generator=g) * scale, torch.randn(o, i, generator=g) * scale,
            torch.randn(n, o, generator=g))


def value_and_grads(x: Tensor, w: Tensor, g: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor]:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = dist(x, w, p)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    return y.detach(), dx, dw


def assert_matches_oracle(x: Tensor, w: Tensor, g: Tensor, p: float) -> None:
    y, dx, dw = value_and_grads(x, w, g, p)
    want = ref.oracle_dist(x, w, p)
    assert ((y - want).abs() <= Y_TOLERANCE * want).all(), f"y off by {((y - want).abs() / want).max():.2e}"
    for name, got, exact in zip(("dx", "dw"), (dx, dw), ref.oracle_grads(g, x, w, p), strict=True):
        error = (got - exact).abs().max() / exact.abs().max().clamp(min=1e-30)
        assert error <= grad_tolerance(p), f"{name} off by {error:.2e} of the largest"


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_match_the_oracle(shape: tuple[int, int, int], p: float) -> None:
    """Any disagreement with the closed form in float64 is a wrong kernel."""
    assert_matches_oracle(*pair(shape, seed=sum(shape)), p)


@pytest.mark.parametrize("p", [8, 20.3, 100, 1000, math.inf])
def test_every_size_up_to_63(p: float) -> None:
    """Tails of every vector width: a lane too many or too few shows at one of these sizes."""
    for size in range(1, 64):
        assert_matches_oracle(*pair((size % 19 + 1, size, size % 17 + 1), seed=size), p)


@pytest.mark.parametrize("p", [8, 8.5, 12, 20.3, 100, 1000, math.inf])
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 1.0, 10.0])
def test_scales_from_1e_minus_6_to_10(scale: float, p: float) -> None:
    """Un-normalised powers overflow or vanish here."""
    assert_matches_oracle(*pair((9, 130, 20), seed=3, scale=scale), p)


@pytest.mark.parametrize("p", [8, 8.5, 12, 14, 20.3, 100, 1000, math.inf])
def test_scales_mixed_within_one_layer(p: float) -> None:
    """Rows of one layer that differ by 1e7: one scale for the whole layer is not enough."""
    x, w, g = pair((24, 96, 40), seed=4)
    rows = torch.logspace(-6, 1, 24)[:, None]
    x, w = x * rows, w * torch.logspace(-6, 1, 40)[:, None]
    y, dx, dw = value_and_grads(x, w, g, p)
    want = ref.oracle_dist(x, w, p)
    assert ((y - want).abs() <= Y_TOLERANCE * want).all()
    for got, exact in zip((dx, dw), ref.oracle_grads(g, x, w, p), strict=True):
        assert (got - exact).abs().max() <= grad_tolerance(p) * exact.abs().max()


@pytest.mark.parametrize("p", P)
def test_zero_distance_has_zero_value_and_gradient(p: float) -> None:
    """0 / 0 in the normalisation, or the index of a maximum that does not exist."""
    x, w, g = pair((6, 40, 5), seed=5)
    w[2] = x[3]
    y, dx, dw = value_and_grads(x, w, g, p)
    assert y[3, 2] == 0
    assert_matches_oracle(x, w, g, p)
    alone = torch.zeros_like(g)
    alone[3, 2] = 1.0
    _, dx, dw = value_and_grads(x, w, alone, p)
    assert (dx == 0).all() and (dw == 0).all()
    y, dx, dw = value_and_grads(x[:1].expand(6, 40), x[:1].expand(5, 40), g, p)
    assert (y == 0).all() and (dx == 0).all() and (dw == 0).all()


def test_ties_at_inf_go_to_the_lowest_index() -> None:
    """A split or repeated tie changes the l1 norm of the subgradient."""
    for first, second in [(0, 1), (3, 60), (5, 64), (63, 64), (70, 199), (198, 199)]:
        for sign in (1.0, -1.0):
            x, w = torch.rand(5, 200), torch.zeros(4, 200)
            x[:, first], x[:, second] = 2.0 * sign, -2.0 * sign
            _, dx, dw = value_and_grads(x, w, torch.ones(5, 4), math.inf)
            want = torch.zeros(5, 200)
            want[:, first] = 4.0 * sign
            assert torch.equal(dx, want) and torch.equal(dw[:, first], torch.full((4,), -5.0 * sign))


def test_quantised_inputs_with_many_ties() -> None:
    """Images are k / 255: ties everywhere, between features of every block."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 5, (40, 300), generator=g) / 4.0
    w = torch.randint(-4, 5, (24, 300), generator=g) / 4.0
    assert_matches_oracle(x, w, torch.randn(40, 24, generator=g), math.inf)


@pytest.mark.parametrize("p", [1, 2, 8, 8.5, 13, 20.3, 100, 1000, math.inf])
def test_nan_and_inf_stay_in_their_pairs(p: float) -> None:
    """A maximum instruction drops NaN: a poisoned weight would come out as a confident distance."""
    x, w, g = pair((20, 70, 18), seed=6)
    x[1, 5], x[2, 69], x[3, 0], x[4, 7] = math.nan, math.inf, -math.inf, math.inf
    w[2, 69], w[6, 1], w[7, 33] = math.inf, math.nan, -math.inf
    y, dx, dw = value_and_grads(x, w, g, p)
    want = ref.oracle_dist(x, w, p)
    assert torch.equal(y.isnan(), want.isnan()) and torch.equal(y.isinf(), want.isinf())
    fine = want.isfinite()
    assert ((y - want).abs()[fine] <= Y_TOLERANCE * want[fine]).all()
    x[1, 5], w[6, 1] = 0.0, 0.0  # every x row meets every w row: poison one side at a time, or all gradients are NaN
    w[2, 69], x[4, 7] = 1.0, 1.0
    poisoned = x.clone(), w.clone()
    poisoned[0][1, 5], poisoned[1][6, 1] = math.nan, math.nan
    for a, b in [(poisoned[0], w), (x, poisoned[1])]:
        _, dx, dw = value_and_grads(a, b, g, p)
        for got, exact in zip((dx, dw), ref.oracle_grads(g, a, b, p), strict=True):
            broken = exact.isnan()
            assert torch.equal(got.isnan(), broken)
            if not broken.all():
                assert ((got - exact).abs()[~broken] <= grad_tolerance(p) * exact[~broken].abs().max()).all()


@pytest.mark.parametrize("p", [8, 20.3, 1000, math.inf])
def test_strides_and_expanded_gradients(p: float) -> None:
    """Kernels read raw pointers: a view or the stride-0 gradient of `sum` must be made contiguous first."""
    x, w, _ = pair((12, 50, 30), seed=7)
    base_x, base_w = torch.randn(50, 24), torch.randn(60, 50)
    base_x[:, ::2], base_w[::2] = x.T, w
    strided = (base_x[:, ::2].T.requires_grad_(), base_w[::2].requires_grad_())
    plain = (x.clone().requires_grad_(), w.clone().requires_grad_())
    got, want = dist(*strided, p), dist(*plain, p)
    assert torch.equal(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), strided), torch.autograd.grad(want.sum(), plain), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("p", [8, 8.5, 20.3, 1000, math.inf])
def test_one_gradient_equals_the_same_of_both(p: float) -> None:
    """The first layer needs only dw, an attack only dx."""
    x, w, g = pair((21, 90, 37), seed=8)
    _, dx, dw = value_and_grads(x, w, g, p)
    leaf = x.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(dist(leaf, w, p), leaf, g)[0], dx)
    leaf = w.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(dist(x, leaf, p), leaf, g)[0], dw)


def test_empty_batch_and_bad_arguments() -> None:
    """An empty batch is a batch; a wrong one is named."""
    assert dist(torch.zeros(0, 3), torch.zeros(4, 3), 8).shape == (0, 4)
    assert dist(torch.zeros(2, 3), torch.zeros(0, 3), math.inf).shape == (2, 0)
    for x, w, p in [(torch.zeros(2, 3), torch.zeros(2, 4), 8), (torch.zeros(2, 0), torch.zeros(2, 0), 8),
                    (torch.zeros(3), torch.zeros(2, 3), 8), (torch.zeros(2, 3), torch.zeros(2, 3), 0.5),
                    (torch.zeros(2, 3).half(), torch.zeros(2, 3).half(), 8),
                    (torch.zeros(2, 3), torch.zeros(2, 3), math.nan),
                    (torch.zeros(2, 3), torch.zeros(2, 3).double(), 8)]:
        with pytest.raises(ValueError):
            dist(x, w, p)


@pytest.mark.parametrize("p", [2, 8, 8.5, 20, math.inf])
def test_gradcheck_in_float64(p: float) -> None:
    """Closed-form gradient against finite differences."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 5, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: dist(a, b, p), (x, w))


BOX_SHAPES = [(1, 1, 1), (5, 63, 3), (17, 100, 33), (129, 200, 40)]


def box(shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    x, w, _ = pair(shape, seed)
    g = torch.Generator().manual_seed(seed + 1)
    return x - torch.rand(x.shape, generator=g) * 0.3, x + torch.rand(x.shape, generator=g) * 0.3, w


@pytest.mark.parametrize("shape", BOX_SHAPES, ids=str)
def test_interval_has_the_bits_of_the_formula(shape: tuple[int, int, int]) -> None:
    """A bound that differs in one bit from the deployed arithmetic is not a certificate of class D."""
    lower, upper, w = box(shape, seed=11)
    w[0] = lower[0]
    for got, want in zip(interval(lower, upper, w), ref.oracle_interval(lower, upper, w), strict=True):
        assert torch.equal(got.view(torch.int32), want.view(torch.int32))


def test_interval_ends_are_the_smallest_and_largest_distance_of_the_box() -> None:
    """Brute force over every whole point of small boxes, w inside many of them: neither too wide nor too narrow."""
    g, strictly_inside = torch.Generator().manual_seed(5), 0
    for _ in range(100):
        lower = torch.randint(-3, 3, (1, 2), generator=g)
        upper = lower + torch.randint(0, 6, (1, 2), generator=g)
        w = torch.randint(-3, 6, (4, 2), generator=g)
        spans = zip(lower[0].tolist(), upper[0].tolist(), strict=True)
        points = torch.cartesian_prod(*(torch.arange(a, b + 1) for a, b in spans))
        distances = (points[:, None] - w).abs().amax(2)  # w is whole, so the nearest point is
        least, most = distances.amin(0, keepdim=True).float(), distances.amax(0, keepdim=True).float()
        strictly_inside += int(((w > lower) & (w < upper)).all(1).sum())
        for find in (ref.oracle_interval, interval):
            lo, hi = find(lower.float(), upper.float(), w.float())
            assert torch.equal(lo, least) and torch.equal(hi, most)
    assert strictly_inside > 10  # where the distance to the box is 0 and a bound below it would be too wide


def test_interval_contains_the_distance_and_closes_on_it() -> None:
    """Soundness: no point of the box lies outside; a box of one point gives the distance itself."""
    lower, upper, w = box((40, 77, 30), seed=12)
    lo, hi = interval(lower, upper, w)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = (lower + (upper - lower) * torch.rand(lower.shape, generator=g)).clamp(lower, upper)
        y = dist(x, w, math.inf)
        assert (lo <= y).all() and (y <= hi).all()
    point_lo, point_hi = interval(lower, lower, w)
    assert torch.equal(point_lo, dist(lower, w, math.inf)) and torch.equal(point_hi, point_lo)
    wide_lo, wide_hi = interval(lower - 0.1, upper + 0.1, w)
    assert (wide_lo <= lo).all() and (wide_hi >= hi).all()


def test_interval_refuses_an_inverted_box_and_propagates_nan() -> None:
    """Neither a repaired box nor a swallowed NaN may become a certificate."""
    lower, upper, w = box((10, 60, 20), seed=13)
    bad = lower.clone()
    bad[3, 4] = upper[3, 4] + 1e-6
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        interval(bad, upper, w)
    lower[2, 7], upper[5, 0], w[4, 59] = math.nan, math.nan, math.nan
    lower[6, 1], upper[7, 2] = -math.inf, math.inf
    for got, want in zip(interval(lower, upper, w), ref.oracle_interval(lower, upper, w), strict=True):
        assert torch.equal(got.isnan(), want.isnan())
        assert torch.equal(got.nan_to_num(nan=0.0), want.nan_to_num(nan=0.0))


@pytest.mark.parametrize("p", [8.0, 20.3, math.inf])
def test_opcheck(p: float) -> None:
    """Schemas, fake kernels and autograd registration agree with what the ops do."""
    x, w, g = pair((4, 12, 3), seed=14)
    y, code = ops.lp_dist(x, w, p, True)
    needs = (x.clone().requires_grad_(), w.clone().requires_grad_())
    opcheck(torch.ops.certbench.lp_dist.default, (*needs, p, True))
    opcheck(torch.ops.certbench.lp_dist_backward.default, (g, x, w, y, code, p, True, False))
    opcheck(torch.ops.certbench.linf_interval.default, (x, x + 1, w))


class Layer(nn.Module):
    """A distance layer, as nets use it."""

    def __init__(self, n_in: int, n_out: int, p: float) -> None:
        super().__init__()
        self.weight, self.p = nn.Parameter(torch.randn(n_out, n_in)), p

    def forward(self, x: Tensor) -> Tensor:
        return dist(x, self.weight, self.p)


@pytest.mark.parametrize("p", [8.0, 100.0, math.inf])
def test_compiled_layer_equals_eager(p: float) -> None:
    """`fullgraph=True` fails if anything in the layer cannot be traced. (aot_eager: no compiler needed.)"""
    layer = Layer(12, 5, p)
    x = torch.randn(6, 12, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    want, got = layer(x), compiled(x)
    assert torch.equal(got, want)
    grads = [torch.autograd.grad(y.sum(), (x, layer.weight)) for y in (got, want)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_coarse_even_p() -> None:
    """The grid is even, monotone, within a factor 1.25 of p, the ends kept."""
    grid = [coarse_even_p(8 * 1.01**k) for k in range(486)]
    assert sorted(set(grid)) == [8, 10, 12, 14, 18, 26, 34, 50, 66, 98, 130, 194, 258, 386, 514, 770, 1026]
    assert grid == sorted(grid)
    assert coarse_even_p(1000) == 1026 and coarse_even_p(math.inf) == math.inf and coarse_even_p(2) == 2
    with pytest.raises(ValueError):
        coarse_even_p(0.5)


def test_kernel_info_names_the_code_that_runs() -> None:
    """A record without it cannot be compared bit for bit."""
    info = kernel_info()
    assert info["backend"] in ("native", "reference")
    assert {"reason", "source_sha256", "flags", "compiler", "isa", "threads"} <= info.keys()


@pytest.mark.parametrize("p", [8.0, math.inf])
def test_the_op_equals_the_eager_function(p: float) -> None:
    """Plain tensors skip the dispatcher; compiled and traced ones do not. Both must be the same layer."""
    x, w, g = pair((9, 40, 7), seed=15)
    y, dx, dw = value_and_grads(x, w, g, p)
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    again, _ = ops.lp_dist(*leaves, p, True)
    assert torch.equal(again, y)
    for a, b in zip(torch.autograd.grad(again, leaves, g), (dx, dw), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused() -> None:
    """A silent zero would look like a flat loss."""
    x = torch.randn(3, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(dist(x, torch.randn(2, 4), 8).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiat"):
        dx.sum().backward()
