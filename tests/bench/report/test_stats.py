"""Intervals and tests against numbers computed elsewhere."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report import stats


@pytest.mark.parametrize(
    ("k", "n", "lo", "hi"),
    [(4006, 10000, 39.10, 41.02), (9320, 10000, 92.69, 93.68), (9795, 10000, 97.65, 98.21), (401, 1000, 37.11, 43.17),
     (40, 100, 30.94, 49.80), (0, 10000, 0.00, 0.04), (10000, 10000, 99.96, 100.00)],
)  # fmt: skip
def test_wilson_gives_the_known_intervals(k, n, lo, hi):
    assert [round(v, 2) for v in stats.wilson(k, n)] == [lo, hi]


@pytest.mark.parametrize(("k", "n"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_refuses_what_is_no_proportion(k, n):
    with pytest.raises(ValueError, match="no proportion"):
        stats.wilson(k, n)


@pytest.mark.parametrize(
    ("b", "c"), [(6, 0), (9, 1), (15, 5), (33, 17), (61, 39), (115, 85), (273, 227), (532, 468)]
)  # the smallest splits that are significant at 0.05
def test_mcnemar_turns_significant_where_it_must(b, c):
    assert stats.mcnemar(b, c) < 0.05
    assert stats.mcnemar(b - 1, c + 1) >= 0.05


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_tail(b, c):
    n = b + c
    tail = 2 * sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n if n else 1.0
    assert stats.mcnemar(b, c) == pytest.approx(min(1.0, tail), rel=1e-12)
    assert stats.mcnemar(b, c) == stats.mcnemar(c, b)


def test_mcnemar_of_many_pairs_does_not_overflow():
    assert 0 < stats.mcnemar(5200, 4800) < 1e-3


def test_holm_multiplies_step_by_step():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_two_seeds_have_no_standard_deviation():
    assert stats.spread([1.0, 2.0]).sd is None
    assert stats.spread([1.0, 2.0, 3.0]).sd == pytest.approx(1.0)
