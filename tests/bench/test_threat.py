"""P8: every end of every box is the right float32, by exact rational arithmetic."""

from __future__ import annotations

import hashlib
import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench import threat
from bench.eps import Eps

RADII = ["0", "1/255", "2/255", "8/255", "16/255", "0.1", "0.2", "0.3", "0.4", "1/999999", "1", "3137/100000"]
ULP_DOWN, ULP_UP = -math.inf, math.inf


def rounded(value: Fraction, direction: float) -> float:
    """The float32 next to an exact value in a direction, by search among neighbours: the oracle."""
    near = torch.tensor(float(value), dtype=torch.float32)
    while (Fraction(float(near)) > value) if direction < 0 else (Fraction(float(near)) < value):
        near = torch.nextafter(near, torch.tensor(direction))
    while True:
        back = torch.nextafter(near, torch.tensor(-direction))
        if (Fraction(float(back)) > value) if direction < 0 else (Fraction(float(back)) < value):
            return float(near)
        near = back


def exact(x: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in x.double().tolist()]


def clip(value: Fraction) -> Fraction:
    return min(Fraction(1), max(Fraction(0), value))


@pytest.mark.parametrize("levels", [2, 16, 17, 256])
def test_levels_table_holds_the_nearest_float32_of_every_level(levels: int) -> None:
    table = threat.levels_table(levels)
    assert table.dtype == torch.float32 and len(table) == levels
    for k, value in enumerate(exact(table)):
        wanted = Fraction(k, levels - 1)
        others = [Fraction(rounded(wanted, ULP_DOWN)), Fraction(rounded(wanted, ULP_UP))]
        assert abs(value - wanted) == min(abs(other - wanted) for other in others)


def test_table_of_256_levels_is_the_one_of_the_records() -> None:
    digest = hashlib.sha256(threat.levels_table(256).numpy().tobytes()).hexdigest()
    assert digest == "010413efe9fc4438fee48de66c4d09f377b28af6a9fe2522201e8c1dbb831fc8"


def test_table_differs_from_a_multiplication_by_the_reciprocal() -> None:
    """Why there is a table: this is what x / 255 becomes on some devices."""
    reciprocal = torch.arange(256, dtype=torch.float32) * torch.tensor(1 / 255)
    assert int((reciprocal != threat.levels_table(256)).sum()) == 126


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("levels", [17, 256])
def test_outer_box_ends_are_the_outward_rounded_ends_of_the_widened_ball(radius: str, levels: int) -> None:
    """Not tighter, which would be unsound; not looser, which would waste certificates."""
    eps = Eps(radius)
    x = threat.levels_table(levels)
    lower, upper = threat.box(x, eps)
    widened = Fraction(eps.float32_up)
    for value, low, high in zip(exact(x), lower.tolist(), upper.tolist(), strict=True):
        assert low == rounded(clip(value - widened), ULP_DOWN)
        assert high == rounded(clip(value + widened), ULP_UP)
        assert Fraction(low) <= clip(value - eps.fraction) and clip(value + eps.fraction) <= Fraction(high)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("levels", [17, 256])
def test_inner_box_ends_are_the_outermost_floats_inside_the_ball(radius: str, levels: int) -> None:
    eps = Eps(radius)
    x = threat.levels_table(levels)
    lower, upper = threat.inner_box(x, eps, levels)
    for value, low, high in zip(exact(x), lower.tolist(), upper.tolist(), strict=True):
        assert low == rounded(clip(value - eps.fraction), ULP_UP)
        assert high == rounded(clip(value + eps.fraction), ULP_DOWN)


@pytest.mark.parametrize("radius", RADII)
def test_naive_float32_attack_point_lies_in_the_outer_box(radius: str) -> None:
    """Foreign attacks compute clamp(x +- eps) in float32; a certificate must cover that too."""
    eps = Eps(radius)
    x = threat.levels_table(256)
    lower, upper = threat.box(x, eps)
    for shift in (float(eps), eps.float32_up):
        assert bool((lower <= (x - shift).clamp(0, 1)).all() and ((x + shift).clamp(0, 1) <= upper).all())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_box_ends_are_right_for_a_thousand_random_radii() -> None:
    draw = random.Random(8)
    for _ in range(1000):
        below = draw.randint(1, 999_999)
        radius = f"{draw.randint(0, below)}/{below}"
        test_outer_box_ends_are_the_outward_rounded_ends_of_the_widened_ball(radius, 256)
        test_inner_box_ends_are_the_outermost_floats_inside_the_ball(radius, 256)


FLOAT32 = st.floats(0, 1, width=32)


@given(st.lists(FLOAT32, min_size=1, max_size=20), st.floats(2.0**-126, 1, width=32))
@settings(max_examples=300)
def test_box_is_right_off_the_grid_and_for_tiny_radii(values: list[float], radius: float) -> None:
    """A bisection over radii reaches where float64 sums are inexact; one too short there is a wrong certificate."""
    x = torch.tensor(values, dtype=torch.float32)[:, None]
    lower, upper = threat.box_float32(x, torch.full((len(values),), radius))
    for value, low, high in zip(values, lower[:, 0].tolist(), upper[:, 0].tolist(), strict=True):
        assert low == rounded(clip(Fraction(value) - Fraction(radius)), ULP_DOWN)
        assert high == rounded(clip(Fraction(value) + Fraction(radius)), ULP_UP)


def test_radius_per_example_is_the_radius_of_its_example() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    lower, upper = threat.box_float32(x, torch.tensor([0.25, 0.125]))
    assert lower[:, 0, 0, 0].tolist() == [0.25, 0.375] and upper[:, 0, 0, 0].tolist() == [0.75, 0.625]
    assert bool((lower == lower[:, :1, :1, :1]).all())


def images(seed: int, levels: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return threat.levels_table(levels)[torch.randint(levels, (3, 2, 4, 4), generator=generator)]


@pytest.mark.parametrize("draw", [threat.corner, threat.sample])
@pytest.mark.parametrize("radius", ["1/255", "8/255", "0.3", "1"])
def test_drawn_points_lie_inside_the_exact_ball(draw, radius: str) -> None:  # type: ignore[no-untyped-def]
    x, eps = images(0), Eps(radius)
    for seed in range(5):
        z = draw(x, eps, seed)
        assert z.shape == x.shape and z.dtype == torch.float32
        for a, b in zip(exact(x.flatten()), exact(z.flatten()), strict=True):
            assert abs(a - b) <= eps.fraction and 0 <= b <= 1


def test_corner_takes_both_ends_and_nothing_else() -> None:
    x, eps = images(1), Eps("8/255")
    lower, upper = threat.inner_box(x, eps)
    z = threat.corner(x, eps, 0)
    assert bool(((z == lower) | (z == upper)).all())
    assert 0.3 < float((z == upper).float().mean()) < 0.7


def test_sample_fills_the_ball() -> None:
    x = torch.full((1, 1, 64, 64), 128 / 255)
    z = (threat.sample(x, Eps("0.1"), 0) - x) / 0.1
    assert abs(float(z.mean())) < 0.05 and abs(float(z.square().mean()) - 1 / 3) < 0.02


@pytest.mark.parametrize("draw", [threat.corner, threat.sample])
def test_drawn_points_depend_on_the_seed_only(draw) -> None:  # type: ignore[no-untyped-def]
    x, eps = images(2), Eps("0.1")
    first = draw(x, eps, 7)
    torch.manual_seed(99)
    assert torch.equal(first, draw(x, eps, 7)) and not torch.equal(first, draw(x, eps, 8))


def test_default_dtype_of_somebody_else_changes_no_box() -> None:
    x, eps = images(3), Eps("7/255")  # a radius no other test has put into the cache
    torch.set_default_dtype(torch.float64)
    try:
        found = [*threat.box(x, eps), *threat.inner_box(x, eps), threat.corner(x, eps, 0), threat.sample(x, eps, 0)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert [t.dtype for t in found] == [torch.float32] * 6
    threat._inner_table.cache_clear()
    again = [*threat.box(x, eps), *threat.inner_box(x, eps), threat.corner(x, eps, 0), threat.sample(x, eps, 0)]
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_image_off_the_grid_has_no_inner_box() -> None:
    with pytest.raises(ValueError, match="not on the grid of 256 pixel levels"):
        threat.inner_box(torch.full((1, 1, 2, 2), 0.3), Eps("0.1"))
    with pytest.raises(ValueError, match="not on the grid of 17"):
        threat.inner_box(torch.full((1, 1, 2, 2), 1 / 255), Eps("0.1"), 17)


GOOD = torch.zeros(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (GOOD.double(), "x must be a float32 tensor, not torch.float64"),
        (GOOD.to(torch.uint8), "x must be a float32 tensor, not torch.uint8"),
        ([[0.0]], "x must be a float32 tensor, not list"),
        (GOOD[0], r"x has shape \(1, 3, 3\); images \[B, C, H, W\] are needed"),
        (GOOD - 1e-6, r"x has values outside \[0, 1\]"),
        (GOOD + 1.0001, r"x has values outside \[0, 1\]"),
        (GOOD * math.nan, r"x has values outside \[0, 1\] or NaN"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        threat.check_images(x)


def test_batches_of_images_are_accepted_the_empty_one_too() -> None:
    threat.check_images(images(0))
    threat.check_images(GOOD[:0])
