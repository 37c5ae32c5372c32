"""A radius is exact, and what is written by mistake is refused with what was meant."""

from __future__ import annotations

import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.eps import Eps

FRACTIONS = st.integers(1, 999_999).flatmap(lambda below: st.builds(Fraction, st.integers(0, below), st.just(below)))


def written(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.3", Fraction(3, 10)),
        ("8/255", Fraction(8, 255)),
        ("1", Fraction(1)),
        ("0", Fraction(0)),
        (" 2/255 ", Fraction(2, 255)),
        ("0.001", Fraction(1, 1000)),
        ("3137/100000", Fraction(3137, 100_000)),
        ("0.125", Fraction(1, 8)),
    ],
)
def test_text_is_read_exactly(text: str, value: Fraction) -> None:
    assert Eps(text).fraction == value


@given(FRACTIONS)
def test_every_fraction_up_to_1_survives_being_written(value: Fraction) -> None:
    assert Eps(written(value)).fraction == value


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0.03137", "8/255"), ("0.0314", "8/255"), ("0.031", "8/255"), ("0.00784", "2/255"), ("0.0078", "2/255"),
     ("0.0627", "16/255"), ("0.003921", "1/255"), ("8", "8/255"), ("2", "2/255")],
)  # fmt: skip
def test_rounded_or_unscaled_radius_is_refused_with_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}\\?"):
        Eps(text)


@pytest.mark.parametrize("places", [3, 4, 5, 6])
def test_every_rounding_of_a_level_is_recognised(places: int) -> None:
    """Three places are suspicious below 0.1 only: 0.125 is what somebody chose, 0.031 is 8/255."""
    for k in range(1, 128 if places > 3 else 25):
        text = f"{k / 255:.{places}f}"
        if not text.endswith("0") and Fraction(text) != Fraction(k, 255):
            with pytest.raises(ValueError, match=f"did you mean {k}/255"):
                Eps(text)


@pytest.mark.parametrize("text", ["0.1", "0.2", "0.3", "0.4", "0.25", "0.05", "0.01", "0.5", "0.15", "0.125"])
def test_radius_that_people_choose_is_not_taken_for_a_rounding(text: str) -> None:
    assert Eps(text).fraction == Fraction(text)


@pytest.mark.parametrize(
    "text",
    ["", "-0.1", "-1", "+0.1", ".3", "3.", "1e-3", "nan", "inf", "8 / 255", "8/255/1", "1/0", "0x1p-3", "0,3",
     "8/2550000", "\u0663/255", "0.3\n\n0.4", "256/255", "1.1", "one"],
)  # fmt: skip
def test_what_is_no_radius_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="eps = "):
        Eps(text)


@pytest.mark.parametrize("value", [0.3, 1, None, Fraction(8, 255), b"0.3"])
def test_anything_but_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a string"):
        Eps(value)  # type: ignore[arg-type]


@given(FRACTIONS)
def test_float32_up_is_the_smallest_float32_not_below(value: Fraction) -> None:
    up = Eps(written(value)).float32_up
    assert struct.unpack("f", struct.pack("f", up))[0] == up, "not a float32"
    assert Fraction(up) >= value
    if up > 0:
        below = struct.unpack("f", struct.pack("I", struct.unpack("I", struct.pack("f", up))[0] - 1))[0]
        assert Fraction(below) < value


@given(FRACTIONS, FRACTIONS)
def test_order_and_equality_are_those_of_the_values(a: Fraction, b: Fraction) -> None:
    x, y = Eps(written(a)), Eps(written(b))
    assert (x < y, x == y, x >= y) == (a < b, a == b, a >= b)
    assert x != y or hash(x) == hash(y)


def test_radius_is_equal_however_it_is_written_and_prints_as_it_was() -> None:
    assert Eps("0.1") == Eps("1/10") and {Eps("0.1"), Eps("10/100")} == {Eps("1/10")}
    assert str(Eps("8/255")) == "8/255" and repr(Eps(Eps("0.10"))) == 'Eps("0.10")'


def test_radius_equals_no_number() -> None:
    assert Eps("0.5") != 0.5
    with pytest.raises(TypeError):
        _ = Eps("0.5") < 0.7  # type: ignore[operator]


def test_float_is_the_nearest_double() -> None:
    assert float(Eps("8/255")) == 8 / 255
