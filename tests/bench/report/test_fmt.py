"""Numbers and escapes: one function per kind, exact, the same everywhere."""

from __future__ import annotations

import csv
import html
import io
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report import fmt


@pytest.mark.parametrize(
    ("k", "n", "text"),
    [(4006, 10000, "40.06"), (1, 3, "33"), (401, 1000, "40.1"), (1, 8000, "0.01"), (3, 8000, "0.04"), (0, 10, "0"),
     (10000, 10000, "100.00"), (5, 1000, "0.5"), (125, 10000, "1.25"), (1, 2000, "0.0"), (3, 2000, "0.2")],
)  # fmt: skip
def test_percent_follows_n_and_rounds_half_to_even(k, n, text):
    assert fmt.percent(k, n) == text


@given(st.integers(0, 20000), st.integers(1, 20000), st.integers(0, 4))
def test_fixed_is_within_half_a_digit_of_the_exact_value(k, n, places):
    value = Fraction(100 * k, n)
    assert abs(Fraction(fmt.fixed(value, places)) - value) <= Fraction(1, 2 * 10**places)


def test_a_mean_over_seeds_is_rounded_once():
    assert fmt.percent(Fraction(14, 3), 10000) == "0.05"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.34, "+0.34"), (-0.34, "\u22120.34"), (0.0, "0.00"), (-0.001, "0.00"), (12.345, "+12.35"), (-3, "\u22123.00")],
)
def test_points_always_carry_their_sign(value, text):
    assert fmt.points(value, 2).replace("\u22120.00", "0.00") == text


def test_a_difference_that_rounds_to_zero_has_no_sign():
    assert fmt.points(Fraction(-1, 1000), 2) == "0.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [(82_700_000, "82.7 M"), (4_210_000_000_000, "4.21 T"), (410_000, "410 k"), (999, "999"), (0, "0"),
     (999_999_999, "1.00 G"), (18_300_000, "18.3 M")],
)  # fmt: skip
def test_si_keeps_three_digits(value, text):
    assert fmt.si(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.48, "0.48 s"), (48, "48 s"), (99.7, "2 min"), (720, "12 min"), (13320, "3 h 42 min"), (3600, "1 h 00 min"),
     (200_000, "2 d 8 h"), (None, "\u2013")],
)  # fmt: skip
def test_durations_read_like_speech(value, text):
    assert fmt.seconds(value) == text


def test_significant_does_not_gain_a_digit_by_rounding():
    assert [fmt.significant(v, 3) for v in (9.996, 0.0123456, 130.4, 1.25)] == ["10.0", "0.0123", "130", "1.25"]


def test_an_interval_near_a_border_is_printed_by_its_ends():
    assert fmt.half_width(97.65, 98.21, 97.95, 2) == "\u00b10.30"
    assert fmt.half_width(99.0, 99.6, 99.3, 2) == "99.00..99.60"


NASTY = [
    "=1+1",
    "+cmd",
    "-x",
    "@a",
    "\tx",
    "a,b",
    'say "x"',
    "two\nlines",
    "<b>",
    "|",
    "`x`",
    "\\input{x}",
    "50 %",
    "\x1b[31m",
]


@pytest.mark.parametrize("text", NASTY)
def test_csv_runs_in_no_spreadsheet(text):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([fmt.csv(text)])
    (cell,) = next(csv.reader(io.StringIO(out.getvalue())))
    assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r")
    assert "\n" not in cell
    assert "\x1b" not in cell


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+2", "-3e-4", 12])
def test_csv_leaves_numbers_alone(value):
    assert float(fmt.csv(value)) == float(value)


@given(st.text(max_size=40))
def test_html_escapes_everything(text):
    escaped = fmt.html(text)
    assert not set(escaped) & set("<>\"'")
    assert html.unescape(escaped) == fmt.printable(text)


@given(st.text(alphabet="ab_*`|<>[]$&\\#~ {}", max_size=30))
def test_markdown_cells_cannot_leave_their_cell(text):
    escaped = fmt.md(text)
    bare = escaped.replace("\\\\", "").replace("\\|", "").replace("\\`", "").replace("\\<", "")
    assert "|" not in bare
    assert "<" not in bare
    assert "`" not in bare


def test_markdown_leaves_underscores_inside_words():
    assert fmt.md("l_inf-dist net") == "l_inf-dist net"
    assert fmt.md("_x_") == r"\_x\_"


@given(st.text(max_size=40))
def test_tex_has_balanced_braces_and_no_active_character(text):
    escaped = fmt.tex(text)
    bare = escaped.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert escaped.isascii()
    for char in "&%#_":
        assert char not in bare.replace(f"\\{char}", "")
