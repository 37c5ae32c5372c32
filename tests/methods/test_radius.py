"""Certified radii: what is found is certified, and nothing noticeably larger is."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.threat import box_float32
from methods import crown
from methods.nets import ReluNet
from methods.radius import LONGEST, SMALLEST, refine

GUESS = 0.05
ONE = torch.ones(1, dtype=torch.float64)
CURVES: dict[str, Callable[[Tensor, float], Tensor]] = {  # bound at a radius [1], zero at the second argument
    "straight": lambda r, root: root - r,
    "steeper and steeper": lambda r, root: math.exp(30 * root) - torch.exp(30 * r),
    "flatter and flatter": lambda r, root: torch.exp(-20 * r) - math.exp(-20 * root),
    "a cliff at its root": lambda r, root: (root - r).sign() * (root - r).abs() ** 0.3,
}


@pytest.mark.parametrize("ratio", [1e-3, 0.05, 0.5, 0.999, 1.0, 1.001, 1.5, 1.95, 3, 10, 19])
@pytest.mark.parametrize("curve", CURVES)
def test_the_root_is_found_however_far_the_guess_is_off(curve: str, ratio: float) -> None:
    calls: list[float] = []

    def certify(rows: Tensor, radius: Tensor) -> Tensor:
        calls.append(float(radius))
        return CURVES[curve](radius.double(), GUESS * ratio)

    found = float(refine(certify, torch.tensor([GUESS]), ONE))
    assert certify(torch.zeros(1), torch.tensor([found])) > 0
    assert found == pytest.approx(GUESS * ratio, rel=3e-6)
    assert len(calls) <= (12 if curve == "straight" else LONGEST)


@pytest.mark.parametrize("ratio", [0.5, 1.5, 3])
def test_a_bound_that_jumps_is_closed_in_by_the_middle(ratio: float) -> None:
    """Secants creep where the values at the ends say nothing about the root."""
    root = GUESS * ratio
    found = refine(lambda rows, r: torch.where(r.double() <= root, 1.0, -1e-4).double(), torch.tensor([GUESS]), ONE)
    assert root * (1 - 3e-6) < float(found) <= root


@pytest.mark.parametrize("guess", [0.0, 1e-30, 1e-6, 1.0, math.inf])
def test_any_guess_will_do(guess: float) -> None:
    found = refine(lambda rows, radius: 0.3 - radius.double(), torch.tensor([guess]), ONE)
    assert float(found) == pytest.approx(0.3, rel=3e-6)


def test_a_bound_of_minus_infinity_is_a_failure_like_any_other() -> None:
    """Nets near overflow give it; it must not be taken for an end that was not probed yet."""
    root = 0.1
    found = refine(
        lambda rows, r: torch.where(r.double() <= root, root - r.double(), -torch.inf), torch.tensor([GUESS]), ONE
    )
    assert float(found) == pytest.approx(root, rel=3e-6)


def test_what_holds_everywhere_is_one_and_what_holds_nowhere_is_nothing() -> None:
    def everywhere(rows: Tensor, radius: Tensor) -> Tensor:
        return torch.ones(len(radius), dtype=torch.float64)

    assert float(refine(everywhere, torch.tensor([GUESS]), ONE)) == 1.0
    assert float(refine(lambda rows, radius: -everywhere(rows, radius), torch.tensor([GUESS]), ONE)) == 0.0
    assert float(refine(everywhere, torch.tensor([GUESS]), 0 * ONE)) == 0.0  # a tie has no radius
    for guess in (GUESS, SMALLEST):
        assert float(refine(lambda rows, r: SMALLEST / 4 - r.double(), torch.tensor([guess]), ONE)) == 0.0


def test_examples_of_a_batch_do_not_disturb_each_other_and_finished_ones_are_not_asked_again() -> None:
    roots = torch.tensor([1e-4, 0.03, 0.05, 0.4, 0.9], dtype=torch.float64)
    guess, asked = torch.full((5,), GUESS), []

    def certify(rows: Tensor, radius: Tensor) -> Tensor:
        asked.append(len(rows))
        return roots[rows] ** 2 - radius.double() ** 2

    found = refine(certify, guess, torch.ones(5, dtype=torch.float64))
    assert asked[0] == 5 > asked[-1] and asked == sorted(asked, reverse=True)
    assert torch.allclose(found.double(), roots, rtol=3e-6, atol=0)
    assert bool((roots**2 - found.double() ** 2 > 0).all())


def test_linear_bounds_certify_their_radius_and_nothing_larger(
    arch: str, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """They reach several times further than intervals, from which the search starts."""
    net, (x, _) = small_net(arch), images(arch, 6)
    y = net(x).detach().argmax(1)
    radius = crown.certified_radius(net, x, y)

    def bound(scale: float) -> Tensor:
        return crown._margins(net, *box_float32(x, (radius * scale).float()), y)[1]

    far = radius > 10 * SMALLEST  # a random residual net has hardly any
    assert bool((bound(1.0)[radius > 0] > 0).all() and (radius < 1).all())
    assert bool(far.any()) is (arch != "wide_resnet")
    assert float((bound(1 + 1e-4)[far] > 0).double().sum()) <= 0.2 * float(far.sum())  # it is not exactly monotone
