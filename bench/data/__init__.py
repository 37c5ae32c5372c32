"""Data sets as uint8 tensors on the compute device: `load(name)` finds, reads, checks and splits one.

Nothing here knows a method, a training loop or a record. Names resolve lazily, so `from bench.data import names` costs
no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .catalogue import names
from .errors import DataError, UnknownDatasetError

if TYPE_CHECKING:
    from .batches import augment, batch_order, center_crop
    from .dataset import Dataset, Split
    from .loading import load, spec

_HOME = {
    "Dataset": "dataset",
    "Split": "dataset",
    "augment": "batches",
    "batch_order": "batches",
    "center_crop": "batches",
    "load": "loading",
    "spec": "loading",
}

__all__ = [
    "DataError",
    "Dataset",
    "Split",
    "UnknownDatasetError",
    "augment",
    "batch_order",
    "center_crop",
    "load",
    "names",
    "spec",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bench.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bench.data.{_HOME[name]}"), name)
