"""How every number and word is printed: one function per kind, and one escape per format. No locale, no `round`."""

from __future__ import annotations

import functools
import html as _html
import re
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

MINUS, DASH, ARROWS = "\u2212", "\u2013", {"up": "\u2191", "down": "\u2193"}
_SI = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
_FORMULA = re.compile(r"^[=+\-@\t\r]")  # what spreadsheets would execute
REMEMBERED = 1 << 16  # escaped words kept: methods, settings and marks repeat in thousands of cells
_NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def decimals(n: int) -> int:
    """Digits after the point that n examples carry: two from 5000 on, one from 500 on, none below."""
    return 2 if n >= 5000 else 1 if n >= 500 else 0


def percent(k: int | Fraction, n: int) -> str:
    """100 * k / n, rounded half to even from the exact fraction; k may be a mean over seeds."""
    return fixed(Fraction(100) * Fraction(k) / n, decimals(n))


def fixed(value: Fraction | Decimal | float, places: int) -> str:
    """A number with `places` digits after the point, half to even from its exact value, ASCII minus."""
    scaled = Fraction(value) * 10**places
    whole = round(scaled)  # Fraction rounds half to even, exactly
    text = f"{abs(whole):0{places + 1}d}"
    text = f"{text[:-places]}.{text[-places:]}" if places else text
    return f"-{text}" if whole < 0 else text


def points(value: Fraction | Decimal | float, places: int) -> str:
    """A difference in percentage points, always with its sign: `+0.34`, or with a proper minus."""
    text = fixed(value, places)
    if text.startswith("-"):
        return MINUS + text[1:]
    return text if not text.strip("0.") else f"+{text}"


def half_width(lo: float, hi: float, value: float, places: int) -> str:
    """An interval behind a value: its larger half width, or `lo..hi` within 2 points of 0 or 100."""
    if value < 2 or value > 98:
        return f"{fixed(lo, max(places, 1))}..{fixed(hi, max(places, 1))}"
    return f"\u00b1{fixed(max(hi - value, value - lo), max(places, 1))}"


def si(value: float | int | None, digits: int = 3) -> str:
    """Three significant digits with a prefix: `82.7 M`, `4.21 T`."""
    if value is None:
        return DASH
    for unit, prefix in _SI:
        if value >= unit * (1 - 0.5 * 10**-digits):
            return f"{significant(value / unit, digits)} {prefix}"
    return significant(value, digits) if value != int(value) else str(int(value))


def significant(value: float, digits: int) -> str:
    """`digits` significant digits without an exponent: 0.0123, 1.25, 130."""
    if value == 0:
        return "0"
    exact = Decimal(repr(float(value)))
    places = digits - 1 - exact.adjusted()
    rounded = exact.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_EVEN)
    if rounded.adjusted() > exact.adjusted():  # 9.996 -> 10.0, not 10.00
        places -= 1
        rounded = exact.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_EVEN)
    return f"{rounded:f}"


def seconds(value: float | None) -> str:
    """A duration as a person says it: `0.48 s`, `48 s`, `12 min`, `3 h 42 min`, `2 d 4 h`."""
    if value is None:
        return DASH
    if value < 10:
        return f"{significant(value, 2)} s"
    if value < 99.5:
        return f"{fixed(value, 0)} s"
    minutes = round(value / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3600)
    return f"{hours // 24} d {hours % 24} h"


def millis(value: float | None) -> str:
    """Milliseconds with three significant digits; microseconds below a tenth of one."""
    if value is None:
        return DASH
    return f"{significant(value, 3)} ms" if value >= 0.1 else f"{significant(1000 * value, 3)} \u00b5s"


def gib(value: int | None) -> str:
    """Bytes as GiB with one decimal; below 0.1 GiB as MiB."""
    if value is None:
        return DASH
    return f"{fixed(value / 2**30, 1)} GiB" if value >= 0.1 * 2**30 else f"{fixed(value / 2**20, 0)} MiB"


def shorten(text: str, most: int) -> str:
    """At most so many characters, the last one an ellipsis if something is missing."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"


def p_value(p: float) -> str:
    """`0.03`, `0.0003`, `<1e-4`."""
    if p < 1e-4:
        return "<1e-4"
    return significant(p, 1) if p < 0.1 else fixed(p, 2)


def p_words(p: float) -> str:
    """`p = 0.03`, `p < 1e-4`."""
    text = p_value(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def names(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def number(value: float | int) -> str:
    """A float for a csv or an axis: the shortest text that reads back as the same number."""
    return str(value) if isinstance(value, int) else repr(float(value))


# --- escaping, one per sink -------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Control characters (line breaks, terminal escapes, direction overrides) as a visible box; one line remains."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def html(text: str) -> str:
    """For element content and double-quoted attributes."""
    return _html.escape(printable(text), quote=True)


@functools.lru_cache(maxsize=REMEMBERED)
def md(text: str) -> str:
    """For a cell of a GitHub table: nothing in it is markup."""
    escaped = re.sub(r"([\\`*{}\[\]<>|~$]|&(?=[\w#]))", r"\\\1", printable(text))
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # inside a word an underscore is no markup
    return re.sub(r"^(#)", r"\\\1", escaped)


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", MINUS: "$-$", DASH: "--", "\u00b1": r"$\pm$", "\u00d7": r"$\times$",
    ARROWS["up"]: r"$\uparrow$", ARROWS["down"]: r"$\downarrow$", "\u2264": r"$\le$", "\u221e": r"$\infty$",
    "\u2260": r"$\ne$", "\u00b5": r"$\mu$", "\u0394": r"$\Delta$", "\u2026": r"\ldots{}",
    "\u2020": r"$^\dagger$", "\u2021": r"$^\ddagger$", "\u00a0": "~",
}  # fmt: skip


@functools.lru_cache(maxsize=REMEMBERED)
def tex(text: str) -> str:
    """For LaTeX text mode; characters that pdflatex does not know become a question mark."""
    out = []
    for char in printable(text):
        out.append(_TEX.get(char) or (char if ord(char) < 128 else "?"))
    return "".join(out)


def csv(value: object) -> str:
    """A csv cell before quoting: a word that a spreadsheet would run as a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (int, float)):
        return number(value)
    return _csv_text(str(value))


@functools.lru_cache(maxsize=REMEMBERED)
def _csv_text(value: str) -> str:
    text = printable(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text


def machine(device: str, threads: int) -> str:
    """`NAME, 1 thread`: what times may be compared on."""
    return f"{device}, {many(threads, 'thread')}"


def many(count: int, word: str) -> str:
    """`1 record`, `2 records`."""
    return f"{count} {word}{'' if count == 1 else 's'}"
