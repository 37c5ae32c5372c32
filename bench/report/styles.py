"""Titles, colours, markers and dashes of methods, titles of data sets: from styles.toml, plugins by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import toml

FILE = Path(__file__).with_name("styles.toml")
PLUGIN_SLOTS = (10, 11, 12, 13)
_HOLLOW_AFTER = {"o": "o", "D": "D", "^": "^", "v": "v", "s": "s", ">": ">", "P": "P", "X": "X", "*": "*", "+": "x"}
_DASHES = ("solid", "dashed", "dashdot", "dotted")
DATASETS = {  # in the order tables use
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "tinyimagenet": "TinyImageNet",
    "digits": "Digits 8\u00d78",
    "synthetic": "Synthetic",
}


@dataclass(frozen=True)
class Style:
    """How one method looks in every figure. `hollow`: the marker is drawn unfilled."""

    slot: int
    tint: int  # the slot of its colours
    light: str
    dark: str
    marker: str
    dash: str
    hollow: bool
    known: bool  # False: a plugin without a line in styles.toml


@cache
def _table() -> dict[str, Any]:
    return toml.read(FILE)


def known_methods() -> list[str]:
    """Every method id with a slot of its own, in order of slot and variant."""
    entries = _table()["method"]
    return sorted((m for m in entries if "slot" in entries[m]), key=lambda m: (_at(m), m))


def _at(method: str) -> tuple[int, int]:
    entry = _table()["method"][method]
    return entry["slot"], entry.get("variant", 0)


def style(method: str, taken: Iterable[Style] = ()) -> Style:
    """The style of a method; a plugin takes the next hollow marker while its own is `taken` in the same figure."""
    entry = _table()["method"].get(method, {})
    known = "slot" in entry
    if known:
        slot, variant = _at(method)
    else:
        slot, variant = PLUGIN_SLOTS[hashlib.sha256(method.encode()).digest()[0] % 4], 1
    look, tint = _table()["slot"][slot], entry.get("tint", slot)
    colors = _table()["slot"][tint]
    dash = _DASHES[(_DASHES.index(look["dash"]) + (variant if known else 0)) % 4]
    hollow = bool(variant) and "marker" not in entry
    marker = _HOLLOW_AFTER[look["marker"]] if hollow else entry.get("marker", look["marker"])
    found = Style(slot, tint, colors["light"], colors["dark"], marker, dash, hollow, known)
    if not known:
        used = {(s.marker, s.hollow) for s in taken}
        order = [found.marker, *(_table()["slot"][s]["marker"] for s in PLUGIN_SLOTS), "v", ">", "<", "p", "h"]
        free = next((m for m in order if (m, True) not in used), found.marker)
        found = Style(slot, slot, look["light"], look["dark"], free, dash, True, False)
    return found


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """A style for each method of one figure; no two share marker and filling."""
    found: dict[str, Style] = {}
    for method in sorted(methods, key=lambda m: ("slot" not in _table()["method"].get(m, {}), m)):
        found[method] = style(method, found.values())
    return found


def title(method: str) -> str:
    """As tables print a method that is only published; a record brings its own title."""
    return str(_table()["method"].get(method, {}).get("title", method))


def is_distance_net(method: str) -> bool:
    """A net of l_inf-distance neurons, what this suite exists for."""
    return _table()["method"].get(method, {}).get("family") == "distance"


def trains_in_a_ball(method: str) -> bool:
    """Whether its training uses the radius of the schedule."""
    return bool(_table()["method"].get(method, {}).get("ball", True))


def own_paper(method: str) -> str | None:
    """Citekey of the paper that proposed the method."""
    return _table()["method"].get(method, {}).get("paper")


def order(method: str) -> tuple[int, int, str]:
    """Sort key: the methods of this suite in the order of their slots, plugins after them, then by name."""
    entry = _table()["method"].get(method, {})
    return (*_at(method), method) if "slot" in entry else (99, 0, method)


def dataset_title(name: str) -> str:
    """As tables print a data set."""
    return DATASETS.get(name, name)


def dataset_order(name: str) -> tuple[int, str]:
    """Sort key of a data set."""
    names = list(DATASETS)
    return (names.index(name) if name in names else len(names), name)
