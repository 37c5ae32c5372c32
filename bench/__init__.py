"""What a plugin author imports: the contract of a method, nothing else.

Names resolve lazily, so `import bench` costs milliseconds and pulls in torch only when one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .contract import Bound, DataSpec, Losses, Method, Recipe, Step, bounded, margin
    from .eps import Eps
    from .registry import register

_HOME = {
    "Bound": "contract",
    "DataSpec": "contract",
    "Eps": "eps",
    "Losses": "contract",
    "Method": "contract",
    "Recipe": "contract",
    "Step": "contract",
    "bounded": "contract",
    "margin": "contract",
    "register": "registry",
}

__all__ = [
    "Bound",
    "DataSpec",
    "Eps",
    "Losses",
    "Method",
    "Recipe",
    "Step",
    "bounded",
    "margin",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bench.{_HOME[name]}"), name)
