"""Radius search: sound where it stops, exact where the bound is, rounded down, in step with the verdict at eps."""

import runpy
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import Eps, margin
from bench.certify import GRID, REACH, bisect_radius, eps_float32_down, float32_down, grid_radii, reconcile

S = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_ins.py"))))


def search(truth, eps, correct=None, calls=None):
    """`grid_radii` on a bound that holds up to the exact radii `truth`."""
    truth = np.array(truth)
    correct = np.ones(len(truth), bool) if correct is None else np.array(correct)

    def holds(rows, radius):
        if calls is not None:
            calls.append(len(rows))
        return np.array([radius.fraction <= Fraction(t) for t in truth[rows].tolist()], bool)

    certified = correct & np.array([eps.fraction <= Fraction(t) for t in truth.tolist()], bool)
    return grid_radii(holds, correct, certified, eps)


@pytest.mark.parametrize("text", ["8/255", "0.3", "0.1", "1/255", "0.12345678901234567"])
def test_grid_radius_is_sound_and_within_one_grid_step(text):
    eps = Eps(text)
    truth = np.random.default_rng(0).random(300) * min(1.0, REACH * float(eps)) * 0.999
    found = search(truth, eps)
    assert (found <= truth).all()
    # the grid itself is moved by less than 1e-5 steps where its fractions are too long to be written
    assert (truth - found <= float(eps) / GRID * 1.01 + 1e-9).all()


def test_grid_radius_ends_at_its_reach():
    assert search([1.0], Eps("1/255"))[0] == pytest.approx(REACH / 255)


def test_grid_radius_at_eps_zero_is_searched_too():
    assert 0 < search([0.01], Eps("0"))[0] <= 0.01


def test_grid_radius_of_a_wrong_example_is_zero():
    assert search([0.2, 0.2], Eps("0.1"), correct=[False, True]).tolist()[0] == 0


def test_grid_search_shares_calls():
    """Ten rounds, not one search per example: 2000 examples must not cost 20000 calls."""
    calls = []
    search(np.random.default_rng(0).random(2000) * 0.4, Eps("0.1"), calls=calls)
    assert sum(calls) <= 2000 * 11
    assert len(calls) <= REACH * GRID


def test_bisection_finds_the_last_float():
    truth = torch.tensor([0.1, 0.0, 1.0, 2.0**-149, 1 / 3, 0.9999999], dtype=torch.float32)
    assert torch.equal(bisect_radius(lambda r: r <= truth, len(truth)), truth)


def test_bisection_of_what_never_holds_is_zero():
    assert bisect_radius(lambda r: torch.zeros(2, dtype=torch.bool), 2).tolist() == [0, 0]


def test_class_d_radius_of_a_canary_is_half_its_margin_to_the_ulp():
    """P6: the minimal distance is known exactly, and the interval certificate reaches it from below."""
    for seed in range(50):
        net, data = S.canary(seed)
        x = data.pixels(slice(0, 1))
        exact = margin(net(x), data.labels).item() / 2
        found = S.DistMethod().radius(net, x, data.labels).item()
        assert 0 <= exact - found <= 1.2e-7, f"seed {seed}"  # two ulps of a distance up to 1


@given(st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_rounding_down_never_rounds_up(value):
    low = float32_down(np.array([value]))[0]
    assert Fraction(float(low)) <= Fraction(value) < Fraction(float(np.nextafter(low, np.float32(2))))


@pytest.mark.parametrize("text", ["8/255", "2/255", "0.3", "0.1", "1/2", "0", "1/3"])
def test_eps_rounded_down_is_the_nearest_float_below(text):
    at = eps_float32_down(Eps(text))
    assert Fraction(float(at)) <= Eps(text).fraction < Fraction(float(np.nextafter(at, np.float32(2))))


TRUE, FALSE = np.array([True]), np.array([False])


@pytest.mark.parametrize("text", ["8/255", "1/2", "0.1"])
def test_certified_at_eps_has_at_least_eps_as_radius(text):
    eps = Eps(text)
    radius, off = reconcile(np.array([float(eps) * (1 - 1e-9)]), TRUE, TRUE, eps)
    assert radius[0] == eps_float32_down(eps)
    assert off == 0


@pytest.mark.parametrize("text", ["8/255", "1/2", "0.1"])
def test_uncertified_at_eps_has_less_than_eps_as_radius(text):
    eps = Eps(text)
    radius, off = reconcile(np.array([float(eps) * (1 + 1e-9)]), TRUE, FALSE, eps)
    assert Fraction(float(radius[0])) < eps.fraction
    assert off == 0


def test_a_real_disagreement_is_counted():
    assert reconcile(np.array([0.05]), TRUE, TRUE, Eps("0.1"))[1] == 1
    assert reconcile(np.array([0.2]), TRUE, FALSE, Eps("0.1"))[1] == 1


def test_a_wrong_example_keeps_no_radius():
    assert reconcile(np.array([0.2]), FALSE, FALSE, Eps("0.1"))[0][0] == 0


def test_radii_are_rounded_down():
    value = 0.123456789
    radius, _ = reconcile(np.array([value]), TRUE, TRUE, Eps("0.1"))
    assert radius.dtype == np.float32
    assert Fraction(float(radius[0])) <= Fraction(value)
