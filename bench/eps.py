"""Eps: an exact radius in pixel units of [0, 1].

A radius stays a fraction until it meets a tensor; only `bench.threat` turns it into floats, rounded outward
(certificates) or inward (attacks).
"""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from functools import total_ordering

_FORM = re.compile(r"[0-9]{1,6}/[0-9]{1,6}|[0-9]{1,3}(\.[0-9]{1,17})?")
_LEVELS = 255  # published radii are multiples of 1/255 or short decimals


@total_ordering
class Eps:
    """An exact radius, written `0.3` or `8/255`.

    Args:
        text: a fraction `a/b` or a decimal, in pixel units of [0, 1]; or another `Eps`.

    Raises:
        ValueError: not a number, negative, above 1, or a decimal that is a rounded k/255 (0.03137 for 8/255). A radius
            that is really meant so is written as a fraction (3137/100000).
    """

    __slots__ = ("_text", "_value")
    _text: str
    _value: Fraction

    def __init__(self, text: str | Eps) -> None:
        if isinstance(text, Eps):
            self._text, self._value = text._text, text._value
            return
        if not isinstance(text, str):
            raise ValueError(f'eps = {text!r} must be a string such as "0.3" or "8/255", so that it is exact')
        written = text.strip()
        if not _FORM.fullmatch(written):
            raise ValueError(f"eps = {text!r} is not a radius: write a decimal or a fraction in [0, 1], 0.3 or 8/255")
        if "/" in written and int(written.split("/")[1]) == 0:
            raise ValueError(f"eps = {text!r} divides by zero; write a fraction such as 8/255")
        value = Fraction(written)
        if value > 1:
            meant = f"; did you mean {written}/255?" if value.denominator == 1 and value < _LEVELS else ""
            raise ValueError(f"eps = {text!r} lies outside [0, 1]; eps is in pixel units of [0, 1]{meant}")
        meant_fraction = _rounded_from(written, value)
        if meant_fraction:
            raise ValueError(
                f"eps = {text!r} is a rounded radius; did you mean {meant_fraction}? "
                f"(for exactly {written} write {value.numerator}/{value.denominator})"
            )
        self._text, self._value = written, value

    @property
    def fraction(self) -> Fraction:
        """The exact value."""
        return self._value

    @property
    def float32_up(self) -> float:
        """The smallest float32 that is at least the exact value (trust.md 1.2: eps_hi)."""
        single = struct.unpack("f", struct.pack("f", float(self._value)))[0]
        if Fraction(single) >= self._value:
            return float(single)
        bits = struct.unpack("I", struct.pack("f", single))[0]
        return float(struct.unpack("f", struct.pack("I", bits + 1))[0])

    def __float__(self) -> float:
        return float(self._value)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f'Eps("{self._text}")'

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Eps) else NotImplemented

    def __lt__(self, other: Eps) -> bool:
        return self._value < other._value if isinstance(other, Eps) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)


def _rounded_from(written: str, value: Fraction) -> str | None:
    """The k/255 that a decimal of three or more places is a rounding or a truncation of, if there is one.

    Three places are only suspicious below 0.1, where they are coarser than what anybody would type on purpose;
    0.3, 0.25 or 0.125 pass, 0.031, 0.0078 and 0.03137 do not.
    """
    if "." not in written:
        return None
    places = len(written.split(".")[1].rstrip("0"))
    if places < 3 or (places == 3 and value >= Fraction(1, 10)):
        return None
    unit = Fraction(1, 10**places)
    near = round(value * _LEVELS)
    for k in (near, near + 1):
        exact = Fraction(k, _LEVELS)
        if 0 < k <= _LEVELS and exact != value and abs(exact - value) < unit:
            return f"{k}/{_LEVELS}"
    return None
