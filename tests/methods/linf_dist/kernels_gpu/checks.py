"""What the Triton kernels must do, as functions of a device: run by the tests, on a device or in the interpreter.

`python checks.py` under TRITON_INTERPRET=1 runs every check on the CPU and prints {name: "" or the failure} as JSON.
The interpreter takes milliseconds per feature and tile, so shapes are tiny: just past the edges of tiles and blocks.
"""

import json
import math
import sys
import traceback
import warnings

import torch
from torch import Tensor

from methods.linf_dist.kernels import matmul, matmul_formats, reference
from methods.linf_dist.kernels.gpu import (
    bounds,
    dispatch,
    finite,
    gradient,
    linf,
    lists,
    pairs,
    products,
    scatter,
    selftest,
    tiling,
)

Y_TOLERANCE = 3e-6  # relative: sums in float32, then the power 1 / p
GRAD_PER_P, GRAD_BASE = 3e-7, 1e-5  # of the largest entry: an error of u in |d| / y is multiplied by p - 1
LIST_GRAD_TOLERANCE = 1e-5  # candidate lists: powers relative to the exact maximum, at every p


def operands(shape: tuple[int, int, int], device: str, seed: int = 0, levels: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, I], w [O, I], gradient [B, O]; with `levels`, values on a grid of that many steps a unit (ties)."""
    random = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, shape[1], generator=random) for n in (shape[0], shape[2]))
    if levels:
        x, w = (x * levels).round() / levels, (w * levels).round() / levels
    return x.to(device), w.to(device), torch.randn(shape[0], shape[2], generator=random).to(device)


def hostile(shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """A zero distance, a NaN in x, an infinity in w, a huge row: every pair of some rows and outputs is special."""
    x, w, g = operands(shape, device, levels=4)
    x[0] = w[0]
    x[1, -1] = math.nan
    w[1, 0] = math.inf
    x[2] = 1e38
    return x, w, g


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and bool((a.nan_to_num().view(-1) == b.nan_to_num().view(-1)).all())


def assert_y(y: Tensor, x: Tensor, w: Tensor, p: float) -> None:
    want = reference.oracle_dist(x, w, p)
    assert torch.equal(y.isnan(), want.isnan()) and torch.equal(y.isinf(), want.isinf())
    inner = want.isfinite()
    assert ((y - want).abs() <= Y_TOLERANCE * want)[inner].all(), f"y at p = {p}: {(y - want).abs()[inner].max():.1e}"


def assert_grad(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert torch.equal(got.isnan(), want.isnan()), "NaN elsewhere than in the oracle"
    error, largest = (got - want).nan_to_num().abs().max(), want.nan_to_num().abs().max()
    assert error <= tolerance * largest, f"gradient off by {error / largest:.1e} of the largest"


def assert_finite_p(x: Tensor, w: Tensor, g: Tensor, p: float) -> None:
    y, code = dispatch.forward(x, w, p, False)
    assert_y(y, x, w, p)
    dx, dw = dispatch.backward(g, x, w, y, code, p, True, True)
    tolerance = LIST_GRAD_TOLERANCE if p >= lists.MIN_P else GRAD_BASE + GRAD_PER_P * p
    for got, want in zip((dx, dw), reference.oracle_grads(g, x, w, p), strict=True):
        assert_grad(got, want, tolerance)


# p = inf ------------------------------------------------------------------------------------------------------------


def check_linf_has_the_bits_of_the_reference(device: str) -> None:
    for shape in ((1, 1, 1), (3, 33, 10), (9, 5, 70)):
        x, w, _ = operands(shape, device, levels=4)
        x[0] = w[0]
        y, code = linf.forward(x, w, True)
        want = reference.forward(x, w, math.inf, True)
        assert same(y, want[0]) and torch.equal(code, want[1]), shape
        assert not y.signbit().any()


def check_linf_passes_on_nan_and_infinity(device: str) -> None:
    x, w, _ = hostile((4, 34, 5), device)
    want = reference.forward(x, w, math.inf, True)
    for run in (linf.forward, lists.linf_forward):
        y, code = run(x, w, True)
        assert same(y, want[0]) and torch.equal(code, want[1]), run.__module__


def check_ties_go_to_the_lowest_index(device: str) -> None:
    """Equal |d| with opposite signs, inside one block of 32 features and across blocks."""
    x = torch.zeros(1, 70, device=device)
    w = torch.zeros(2, 70, device=device)
    w[0, [3, 7, 40]] = torch.tensor([2.0, -2.0, 2.0], device=device)
    w[1, [35, 66]] = torch.tensor([-2.0, 2.0], device=device)
    for run in (linf.forward, lists.linf_forward):
        _, code = run(x, w, True)
        assert (code & reference.INDEX_BITS).tolist() == [[3, 35]], run.__module__
        assert (code < 0).tolist() == [[True, False]], run.__module__  # d = x - w


def check_bounds_have_the_bits_of_the_reference(device: str) -> None:
    for shape in ((3, 9, 10), (2, 5, 20)):
        x, w, _ = operands(shape, device, levels=4)
        reach = (x.roll(1, 1) / 2).abs()
        lower, upper = x - reach, x + reach
        lower[0], upper[0] = w[0], w[0]  # a point box at a centre: both bounds are +0
        lower[1, 0], upper[1, 0], w[1, 1] = -math.inf, math.inf, math.nan
        got, want = bounds.interval(lower, upper, w), reference.interval(lower, upper, w)
        assert same(got[0], want[0]) and same(got[1], want[1]), shape
        assert not got[0].signbit().any()


def check_linf_gradient_matches_the_reference(device: str) -> None:
    for shape in ((3, 7, 150), (2, 140, 3)):  # more pairs than a chunk, more features than a chunk
        x, w, g = operands(shape, device, levels=4)
        x[0] = w[0]
        y, code = reference.forward(x, w, math.inf, True)
        want = reference.backward(g, x, w, y, code, math.inf)
        got = scatter.backward(g, code, shape[1], True, True)
        for a, b in zip(got, want, strict=True):
            assert_grad(a, b, 1e-6)


def check_linf_gradient_of_a_nan_pair_is_nan(device: str) -> None:
    x, w, g = hostile((4, 5, 3), device)
    y, code = reference.forward(x, w, math.inf, True)
    for a, b in zip(scatter.backward(g, code, 5, True, True), reference.backward(g, x, w, y, code, math.inf),
                    strict=True):
        assert same(a.isnan().float(), b.isnan().float()) and a[0].isfinite().any() == b[0].isfinite().any()


# finite p -----------------------------------------------------------------------------------------------------------


def check_small_even_p(device: str) -> None:
    for p in (2.0, 8.0, 10.0, 12.0):
        assert_finite_p(*operands((5, 9, 10), device), p)


def check_larger_even_p(device: str) -> None:
    for p in (14.0, 20.0, 48.0, 62.0):
        assert_finite_p(*operands((5, 9, 10), device), p)


def check_real_p(device: str) -> None:
    for p in (1.0, 3.0, 8.5, 20.3, 63.9):
        assert_finite_p(*operands((5, 9, 10), device), p)


def check_wide_tiles(device: str) -> None:
    for p in (8.0, 20.3):
        assert_finite_p(*operands((3, 5, 70), device), p)


def check_one_gradient_alone_is_right(device: str) -> None:
    x, w, g = operands((5, 9, 10), device)
    for p in (8.0, 20.0, 20.3):
        y = finite.forward(x, w, p)
        want = reference.oracle_grads(g, x, w, p)
        dx, none = gradient.backward(g, x, w, y, p, True, False)
        assert_grad(dx, want[0], GRAD_BASE + GRAD_PER_P * p)
        assert none.shape == (0, 0)
        none, dw = gradient.backward(g, x, w, y, p, False, True)
        assert_grad(dw, want[1], GRAD_BASE + GRAD_PER_P * p)
        assert none.shape == (0, 0)


def check_every_scale(device: str) -> None:
    """Distances of 1e-6 and 1e6 leave the un-normalised window: the redo must not cost accuracy."""
    x, w, g = operands((4, 5, 3), device)
    for scale in (1e-30, 1e-6, 1e6, 1e30):
        for p in (8.0, 20.3):
            assert_finite_p(x * scale, w * scale, g, p)


def check_special_pairs_at_finite_p(device: str) -> None:
    x, w, g = hostile((4, 9, 3), device)
    for p in (8.0, 20.0, 20.3):
        assert_finite_p(x, w, g, p)


def check_special_pairs_leave_the_bits_of_others(device: str) -> None:
    """y of other pairs, dx of other rows and dw of other outputs: not a bit may move when one pair is redone."""
    x, w, g = operands((4, 9, 5), device)
    tiny_x, tiny_w = x.clone(), w.clone()
    tiny_x[2] = tiny_w[3] + 1e-9  # this pair only
    g[:, 3] = 0
    g[2, :] = 0  # so that no other gradient depends on the changed row and output
    w[3], x[2] = tiny_w[3], tiny_x[2]
    changed = x.clone()
    changed[2] = x[2] + 1.0
    y, y_changed = finite.forward(x, w, 8.0), finite.forward(changed, w, 8.0)
    others = torch.tensor([0, 1, 3], device=device)
    assert torch.equal(y[others], y_changed[others])
    dx, dw = gradient.backward(g, x, w, y, 8.0, True, True)
    dx_changed, dw_changed = gradient.backward(g, changed, w, y_changed, 8.0, True, True)
    assert torch.equal(dx[others], dx_changed[others])
    rest = torch.tensor([0, 1, 2, 4], device=device)
    assert torch.equal(dw[rest], dw_changed[rest])


def check_rows_do_not_depend_on_the_batch(device: str) -> None:
    x, w, _ = operands((9, 5, 4), device)
    for p in (8.0, 20.3, 100.0, math.inf):
        y = dispatch.forward(x, w, p, False)[0]
        assert torch.equal(y[3:5], dispatch.forward(x[3:5], w, p, False)[0]), p


def check_tiles_do_not_change_bits(device: str) -> None:
    x, w, _ = operands((3, 9, 20), device)
    for p in (8.0, 20.3):
        assert torch.equal(finite.forward(x, w, p)[:, :10], finite.forward(x, w[:10], p)), p


def check_the_exponent_is_read_on_the_device(device: str) -> None:
    """A CUDA graph replays a launch with its arguments: only the buffer can change p."""
    x, w, g = operands((3, 5, 4), device)
    for first, second in ((8.5, 9.25), (100.0, 131.5)):
        exponent = torch.tensor([second], device=device)
        y, code = dispatch.forward(x, w, first, False, exponent)
        assert_y(y, x, w, second)
        dx, dw = dispatch.backward(g, x, w, y, code, first, True, True, exponent)
        for got, want in zip((dx, dw), reference.oracle_grads(g, x, w, second), strict=True):
            assert_grad(got, want, GRAD_BASE + GRAD_PER_P * second)


def check_any_strides_and_expanded_gradients(device: str) -> None:
    x, w, _ = operands((10, 9, 5), device)
    x, w = x[::2, 1:], w.t().contiguous().t()[:, 1:]
    g = torch.ones((), device=device).expand(5, 5)
    for p in (8.0, 100.0):
        assert_finite_p(x, w, g, p)
    y, code = dispatch.forward(x, w, math.inf, True)
    want = reference.forward(x.contiguous(), w.contiguous(), math.inf, True)
    assert same(y, want[0]) and torch.equal(code, want[1])


def check_empty_batches(device: str) -> None:
    x, w = torch.zeros(0, 5, device=device), torch.ones(3, 5, device=device)
    for p in (8.0, 20.3, 100.0, math.inf):
        y, code = dispatch.forward(x, w, p, True)
        assert y.shape == (0, 3)
        dx, dw = dispatch.backward(y, x, w, y, code, p, True, True)
        assert dx.shape == (0, 5) and dw.shape == (3, 5) and not dw.any()


# candidate lists ----------------------------------------------------------------------------------------------------


def identity_layer(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """A layer with -10 on its diagonal, whose lists are short."""
    x, w, g = operands((4, 40, 3), device)
    w[torch.arange(3), torch.arange(3)] -= 10
    return x, w, g


def check_lists_are_right_where_they_are_short(device: str) -> None:
    x, w, g = identity_layer(device)
    for p in (64.0, 1000.0):
        assert lists.build(x, w, torch.tensor([p], device=device)).kept() < lists.SHARE
        assert_finite_p(x, w, g, p)


def check_lists_that_overflow_stand_for_all_features(device: str) -> None:
    x, w, g = operands((3, 40, 2), device)
    assert lists.build(x, w, torch.tensor([64.0], device=device)).counts.max() > 16
    assert_finite_p(x, w, g, 64.0)


def check_terms_just_below_the_threshold_are_dropped_rightly(device: str) -> None:
    """All but one feature just below tau times the maximum: what lists drop must stay below 2^-24 of the sum."""
    p, n_in = 100.0, 70
    tau = math.exp((-24 * math.log(2) - math.log(80)) / (p - 1))
    x = torch.zeros(2, n_in, device=device)
    w = torch.full((3, n_in), tau * 0.999, device=device)
    w[:, 5] = 1.0
    assert lists.build(x, w, torch.tensor([p], device=device)).counts.max() < 16
    assert_finite_p(x, w, torch.ones(2, 3, device=device), p)


def check_lists_and_dense_kernels_agree_bit_for_bit(device: str) -> None:
    x, w, _ = identity_layer(device)
    want = reference.forward(x, w, math.inf, True)
    usual = lists.LINF_SHARE
    try:
        for lists.LINF_SHARE in (0.0, 1.0):  # the device takes the dense kernel, the lists
            y, code = lists.linf_forward(x, w, True)
            assert same(y, want[0]) and torch.equal(code, want[1])
            assert same(lists.linf_forward(x, w, False)[0], want[0])
    finally:
        lists.LINF_SHARE = usual


def check_special_pairs_in_lists(device: str) -> None:
    x, w, g = hostile((4, 17, 3), device)
    for p in (100.0,):
        y, code = dispatch.forward(x, w, p, False)
        assert_y(y, x, w, p)
        got = dispatch.backward(g, x, w, y, code, p, True, True)
        for a, b in zip(got, reference.oracle_grads(g, x, w, p), strict=True):
            assert_grad(a, b, GRAD_BASE + GRAD_PER_P * p)  # redone by `robust`, which divides by the rounded y


def check_rows_in_parts_give_the_same(device: str) -> None:
    """More than one tile of rows, and more than one part of them."""
    x, w, g = operands((130, 3, 2), device)
    usual = lists.MAX_ENTRIES
    results = []
    try:
        for lists.MAX_ENTRIES in (usual, 1):
            y = lists.forward(x, w, 100.0)
            results.append((y, *lists.backward(g, x, w, y, 100.0, True, True)))
    finally:
        lists.MAX_ENTRIES = usual
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert_grad(results[0][2], results[1][2], 1e-6)


# matrix products ----------------------------------------------------------------------------------------------------


def check_fused_products_do_what_the_composed_ones_do(device: str) -> None:
    """Values and gradients: the operands are rounded at other places, so only up to the format's error."""
    x, w, g = operands((17, 19, 20), device)
    x[3, 2] = math.inf
    scale = x.new_ones(()) / 16
    a, b = matmul._finite(x) * scale, matmul._finite(w) * scale
    for p, name, error in ((8, "float32", 1e-6), (8, "tf32", 2e-3), (8, "bf16x3", 1e-4), (2, "bf16x3", 1e-4)):
        total, norms = products.values(x, w, scale, p, name)
        want, want_norms = matmul._power_sums(a, b, p, name)
        assert ((total - want).abs() <= error * norms**p).all(), (p, name)
        assert ((norms - want_norms).abs() <= 1e-5 * norms).all()
        d = products.gradient(x, w, g, scale, p, name)
        exact = torch.einsum("bo,boi->bi", g.double(), (a.double()[:, None] - b.double()[None]) ** (p - 1))
        assert_grad(d, exact, error)


def check_forming_powers_rounds_like_the_emulation(device: str) -> None:
    x = operands((5, 20, 1), device)[0]
    one = x.new_ones(())
    high = products.powers(x, one, 3, "tf32").high
    assert torch.equal(high[0], matmul_formats.round_tf32(x))
    assert torch.equal(high[2], matmul_formats.round_tf32(x * x * x))
    split = products.powers(x, one, 3, "bf16x3")
    for got, want in zip((split.high[1], split.low[1]), matmul_formats.halves(x * x), strict=True):
        assert torch.equal(got.float(), want.float())


def check_listed_pairs_only_are_computed(device: str) -> None:
    for p in (2, 8, 12):
        x, w, g = operands((4, 70, 5), device)
        mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(p)).to(device) < 0.4
        y = torch.full((4, 5), -7.0, device=device)
        pairs.values(x, w, y, mask, p)
        assert (y[~mask] == -7).all()
        assert_y(torch.where(mask, y, reference.oracle_dist(x, w, p).float()), x, w, p)
        y = torch.where(mask, y, 1.0)
        dx, dw = torch.ones_like(x), torch.ones_like(w)
        pairs.add_gradients(g, x, w, y, mask, p, dx, dw)
        want = reference.oracle_grads(torch.where(mask, g, 0), x, w, p)
        assert_grad(dx - 1, want[0], 2e-5)
        assert_grad(dw - 1, want[1], 2e-5)


def check_guarded_products_with_listed_pairs(device: str) -> None:
    """The whole operation on the GPU's path: some pairs flagged; then, with hostile inputs, every pair."""
    usual = matmul.gpu.available
    for special in (False, True):
        x, w, g = operands((5, 9, 6), device)
        x[1], w[2] = w[1] + 0.1, x[2] + 5
        x[2] += 5
        if special:
            x[3, 0], w[5, 1] = math.nan, math.inf
        stats = matmul.MatmulStats()
        try:
            matmul.gpu.available = lambda a: True
            x, w = x.requires_grad_(), w.requires_grad_()
            y = matmul.dist_matmul(x, w, 8, format="bf16x3", stats=stats)
            got = torch.autograd.grad(y, (x, w), g)
        finally:
            matmul.gpu.available = usual
        assert (stats.share == 1) if special else (0.05 < stats.share < 1)
        assert stats.overflows == int(special)
        want = reference.oracle_dist(x, w, 8.0)
        assert torch.equal(y.isnan(), want.isnan()) and torch.equal(y.isinf(), want.isinf())
        assert ((y - want).abs() <= 6e-4 * want)[want.isfinite()].all()
        for a, b in zip(got, reference.oracle_grads(g, x, w, 8.0), strict=True):
            assert_grad(a, b, 2e-3)


def check_repeated_calls_give_the_same_bits(device: str) -> None:
    x, w, g = operands((3, 5, 4), device)
    for p in (8.0, 100.0, math.inf):
        runs = []
        for _ in range(2):
            y, code = dispatch.forward(x, w, p, True)
            runs.append((y, *dispatch.backward(g, x, w, y, code, p, True, True)))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), p


def check_the_self_test_passes(device: str) -> None:
    assert selftest.failure(torch.device(device), ((4, 9, 5),)) == ""


def check_the_self_test_finds_a_wrong_kernel(device: str) -> None:
    right = tiling.pack
    try:
        linf.tiling.pack = lambda *a, **k: right(*a, **k).roll(1, -1)  # rows of a tile exchanged
        assert "p = inf" in selftest.failure(torch.device(device), ((4, 9, 5),))
    finally:
        linf.tiling.pack = right


CHECKS = {name: f for name, f in sorted(globals().items()) if name.startswith("check_")}


def main() -> None:
    """Run every check named on the command line, or all, in the interpreter."""
    warnings.simplefilter("ignore")  # numpy on log2(0), which the kernels mean
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(CHECKS)
    results = {}
    for name in wanted:
        try:
            CHECKS[name]("cpu")
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
