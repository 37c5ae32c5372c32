"""Colour, marker and dash belong to a method, can be told apart, and never move."""

from __future__ import annotations

import itertools

import pytest

from bench.report import styles

SLOTS = styles._table()["slot"]
GROUND = {"light": "#FFFFFF", "dark": "#14171B"}


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("slot", range(16))
def test_every_colour_stands_out_from_its_ground(slot, theme):
    assert contrast(SLOTS[slot][theme], GROUND[theme]) >= 3.0


def test_no_two_methods_share_marker_and_dash():
    looks = [(m, styles.style(m)) for m in styles.known_methods()]
    for (a, x), (b, y) in itertools.combinations(looks, 2):
        assert (x.marker, x.hollow, x.dash) != (y.marker, y.hollow, y.dash), f"{a} and {b}"


@pytest.mark.parametrize(
    ("method", "slot", "color", "marker"),
    [("linf_dist", 0, "#1F3FBF", "o"), ("linf_dist_v2", 1, "#9A3200", "D"), ("ibp", 2, "#7896C3", "^"),
     ("crown_ibp", 3, "#0F7F60", "v"), ("groupsort", 4, "#B97F20", "s"), ("sortnet", 5, "#4A0048", "P"),
     ("sabr", 6, "#F01F87", "X"), ("linf_dist_mlp", 7, "#8F45F0", ">"), ("pgd", 8, "#4A4A4A", "*"),
     ("standard", 9, "#000000", "+"), ("ibp_shi", 2, "#34506F", "<"), ("crown_ibp_fusion", 3, "#45A56A", "h")],
)  # fmt: skip
def test_slots_are_never_reassigned(method, slot, color, marker):
    found = styles.style(method)
    assert (found.slot, found.light, found.marker, found.known) == (slot, color, marker, True)


@pytest.mark.parametrize(("name", "marker", "hollow"), [("crown_ibp_shi", "v", True), ("crown_ibp_fusion", "h", False)])
def test_a_variant_keeps_the_family_colour_or_has_a_tint_and_marker_of_its_own(name, marker, hollow):
    """Published points are hollow too, so a method that is trained here must not look like its relative's."""
    base, variant = styles.style("crown_ibp"), styles.style(name)
    assert (variant.light == base.light) is hollow
    assert (variant.marker, variant.hollow) == (marker, hollow)
    assert variant.dash != base.dash


def test_plugins_of_one_figure_get_different_markers():
    found = styles.styles([f"plugin_{i}" for i in range(8)])
    assert len({(s.marker, s.hollow) for s in found.values()}) == 8


def test_a_plugin_looks_the_same_whenever_it_is_alone():
    assert styles.style("my_plugin") == styles.styles(["ibp", "my_plugin"])["my_plugin"]


def test_titles_are_those_of_the_methods():
    """A method must have one name, whether it was measured or is only published."""
    from bench import registry

    for entry in registry.load_all():
        if entry.method is not None and entry.origin == "built-in" and entry.name in styles._table()["method"]:
            assert styles.title(entry.name) == entry.method.title, entry.name
            assert styles.own_paper(entry.name) == entry.method.paper, entry.name
