"""How a row is named and counted in sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..eps import Eps
from . import fmt
from .pool import Pool


def percent(pool: Pool, kind: str) -> str:
    """`96.60 %`."""
    return f"{fmt.fixed(pool.percent(kind), fmt.decimals(pool.n))} %"


def name(pool: Pool) -> str:
    """`l_inf-dist net (boosted)`: a comma inside a name would be lost in a list."""
    first, _, rest = pool.first.title.partition(", ")
    words = [rest] * bool(rest) + [pool.overrides] * bool(pool.overrides)
    return f"{first} ({'; '.join(words)})" if words else first


def names(pools: Sequence[Pool]) -> str:
    """`A, B and C`."""
    return fmt.names([name(p) for p in pools])


def is_tuned(pool: Pool) -> bool:
    """By the source of the recipe, which says so where held-out images chose it, and at which eps if at another."""
    source = str(pool.first.data["recipe"].get("source", ""))
    at = re.search(r"\beps (\d+(?:/\d+|\.\d+)?)", source)
    elsewhere = at is not None and Eps(at[1]) != pool.first.eps
    chosen = "validation" in source or "held-out" in source
    return chosen and "not tuned" not in source and not elsewhere
