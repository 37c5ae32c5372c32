"""`load(name)`: find the files, read them, check them, put them on the device."""

from __future__ import annotations

from pathlib import Path

import torch

from ..contract import DataSpec
from .arrays import identify
from .catalogue import entry
from .dataset import Dataset
from .embedded import read_embedded
from .errors import reading
from .locate import find


def spec(name: str) -> DataSpec:
    """Shape and statistics of a whole data set, from the catalogue; no file is touched.

    Raises:
        UnknownDatasetError: no such data set.
    """
    data = entry(name)
    return DataSpec(
        name=data.name,
        channels=data.channels,
        height=data.height,
        width=data.width,
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        levels=data.levels,
    )


def load(
    name: str, *, data_root: Path | None = None, offline: bool = False, device: torch.device | str = "cpu"
) -> Dataset:
    """Load a data set, checked against its official checksums, onto `device`.

    Args:
        name: one of `names()`.
        data_root: looked at first; then $BENCH_DATA, the cache folder, and a download.
        offline: never download.

    Raises:
        UnknownDatasetError: no such data set.
        DataError: not found, damaged, or not the official images; one line that names the file and the mend.
    """
    data = entry(name)
    if data.embedded:
        arrays = identify(data, read_embedded(name))
    else:
        found = find(data, data_root, offline=offline)
        arrays = found.read(data, found.path, found.mend)
        with reading(data.name, found.path, found.mend):
            arrays = identify(data, arrays)
    return Dataset(data, arrays, torch.device(device))
