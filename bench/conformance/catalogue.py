"""Number -> check; titles are in `outcome`, which needs no torch."""

from __future__ import annotations

from collections.abc import Callable

from . import building, hygiene, soundness, training
from .subject import Subject

CHECKS: dict[int, Callable[[Subject], str]] = {
    1: building.builds,
    2: training.gradients,
    3: training.descends,
    4: training.repeats,
    5: soundness.sound,
    6: soundness.radius_agrees,
    7: hygiene.no_side_effects,
    8: building.counts,
    9: building.recipes,
    10: building.round_trip,
    11: hygiene.refuses,
}
