"""Plain text for a terminal: aligned columns, spans of time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)(?:m|min))?(?:(\d+(?:\.\d+)?)s)?")


def columns(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """An aligned table: numbers to the right, floats with two decimals (two digits below 0.1), `-` for nothing."""
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells), 0) for i, name in enumerate(names)]
    right = [
        bool(cells) and all(re.fullmatch(r"-|[-+]?[\d,]+(\.\d+)?", line[i]) for line in cells)
        for i in range(len(names))
    ]

    def one(line: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([one(names), *map(one, cells)])


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return str(value)


def parse_span(text: str) -> float:
    """Seconds of `90s`, `25m`, `1h30m`.

    Raises:
        ValueError: anything else; a bare number has no unit.
    """
    found = _SPAN.fullmatch(text.strip().lower())
    parts = [float(p or 0) for p in found.groups()] if found else []
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2] if parts else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is no span of time; write 90s, 25m or 1h30m")
    return seconds
