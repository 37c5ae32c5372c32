"""The figures of a report, one file each: `describe` says what is shown as plain data, `draw` puts it on paper.

Describing needs records and numpy; drawing needs matplotlib and the description alone, so that worker processes can
draw, and a figure whose description has not changed is not drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..blocks import Block
from ..pool import Setting
from ..rows import Inputs, lead
from . import cost, curve, fate, gap, pareto, radii, seeds, train
from .spec import Spec

_OF_A_SETTING: tuple[Callable[[Inputs, Setting, Block | None], Spec | None], ...] = (
    curve.describe, pareto.describe, cost.describe, fate.describe, radii.describe, train.describe,
)  # fmt: skip
_OF_ALL: tuple[Callable[[Inputs], Spec | None], ...] = (gap.describe, seeds.describe)

DRAW: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "curve": curve.draw, "pareto": pareto.draw, "cost": cost.draw, "fate": fate.draw, "radii": radii.draw,
    "train": train.draw, "gap": gap.draw, "seeds": seeds.draw,
}  # fmt: skip


def build(inputs: Inputs) -> list[Spec]:
    """Every figure that has something to show, in the order of the page."""
    found: list[Spec | None] = []
    for setting in inputs.settings():
        block = lead(inputs, setting)
        found += [describe(inputs, setting, block) for describe in _OF_A_SETTING]
    found += [describe(inputs) for describe in _OF_ALL]
    return [spec for spec in found if spec is not None]
