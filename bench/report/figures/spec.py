"""What a figure shows, as plain data, before anything is drawn; and what the figures of a block have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ...record import RecordError
from .. import fmt, styles
from ..blocks import Block
from ..pool import PRESET_MARK, Pool, Setting

GAP = 10.0  # points of certified accuracy: less is never a reason to leave a method out of a picture
LONGEST = 30  # characters of a title in a figure


@dataclass(frozen=True)
class Spec:
    """One figure before it is drawn. `data` is JSON; with `kind` it decides every pixel."""

    name: str
    kind: str
    title: str
    alt: str
    data: Mapping[str, Any]
    csv_columns: Sequence[str]
    csv_rows: Sequence[Mapping[str, Any]]
    records: tuple[str, ...]
    setting: Setting | None = None

    @property
    def input_hash(self) -> str:
        """Equal for figures that look the same, given the drawing code."""
        text = json.dumps([self.name, self.kind, self.title, self.alt, self.data], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def sound(block: Block | None) -> list[Pool]:
    """The rows a figure may show: no broken guard; one per method, the unchanged recipe before a changed one."""
    best: dict[str, Pool] = {}
    for pool in block.pools if block else ():
        if not pool.broken and pool.method not in best:
            best[pool.method] = pool
    for pool in block.pools if block else ():
        if not pool.broken and not pool.overrides and best[pool.method].overrides:
            best[pool.method] = pool
    return sorted(best.values(), key=lambda p: styles.order(p.method))


def looks_of(pools: Sequence[Pool]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash by method, as JSON."""
    found = styles.styles(p.method for p in pools)
    return {m: look(s) for m, s in found.items()}


def look(s: styles.Style) -> dict[str, Any]:
    """Colour, marker, dash and fill of one style, as JSON."""
    return {"color": s.light, "marker": s.marker, "dash": s.dash, "hollow": s.hollow, "slot": s.tint}


def label(pool: Pool, *, alone: bool = False) -> str:
    """The legend's words. Preset and subset stand in the line every figure of a block carries; a label that stands
    `alone` among other blocks names them itself."""
    more = [pool.overrides] if pool.overrides else []
    if alone:
        more += [pool.first.preset] if PRESET_MARK[pool.first.preset] else []
        more += ["subset"] if pool.first.is_subset else []
    name = fmt.shorten(fmt.printable(pool.first.title), LONGEST)
    return name + (f" ({', '.join(more)})" if more else "")


def under(block: Block, *, lowest_seed: bool = False) -> str:
    """The line every figure of a block carries: what was measured, on how many images; of which seed, if of one."""
    n = f"n = {block.n}" + (" (subset)" if block.is_subset else "")
    first = {p.first.seed for p in block.pools}
    which = f"seed {min(first)}" if len(first) == 1 else "first seed of each"
    seed = f"; {which}" if lowest_seed and any(p.k > 1 for p in block.pools) else ""
    return f"{block.setting.title}; preset {block.preset}; {n}{seed}"


def certify(titles: Sequence[str]) -> str:
    """`A certifies`, `A and B certify`: an exact tie has no single winner."""
    return f"{fmt.names(titles)} {'certifies' if len(titles) == 1 else 'certify'}"


def percent(value: Fraction | float) -> float:
    """A share in percent, with as many digits as a figure can show."""
    return round(float(value), 4)


def ids(pools: Sequence[Pool]) -> tuple[str, ...]:
    """The records behind these rows."""
    return tuple(r.id for p in pools for r in p.records)


def radii_of(pool: Pool) -> Any:
    """The radii of the first seed [N], or None where the record has none."""
    try:
        return pool.first.arrays("radius")["radius"]
    except RecordError:
        return None


def lowest_shown(certified: Sequence[float]) -> float:
    """What lies below is told in words: drawn to scale, methods that certify next to nothing would squash the others.

    The cut is the first gap, from the top, of GAP points or more and of three quarters of all that lies above it.
    """
    high_to_low = sorted(certified, reverse=True)
    for at in range(1, len(high_to_low) - 1):
        gap = high_to_low[at] - high_to_low[at + 1]
        if gap >= max(GAP, 0.75 * (high_to_low[0] - high_to_low[at])):
            return high_to_low[at]
    return high_to_low[-1]
