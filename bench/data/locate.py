"""Where data sets lie: the search order, the layouts, and what to say when nothing is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .arrays import Arrays
from .catalogue import Entry
from .errors import DataError
from .npz import read_npz

Reader = Callable[[Entry, Path], Arrays]


@dataclass(frozen=True)
class Found:
    """A layout that exists: the file or folder, and the function that reads it."""

    path: Path
    read: Reader
    mend: str


def find(data: Entry, data_root: Path | None, *, offline: bool) -> Found:
    """The first layout of `data` in --data-root, $BENCH_DATA, the cache folder; then a download."""
    for root in roots(data_root):
        for path, read in layouts(data, root):
            if os.path.lexists(path):
                return Found(path, read, "replace it")
    raise DataError(f"{data.name}: not found")


def roots(data_root: Path | None) -> Iterator[Path]:
    if data_root is not None:
        yield Path(data_root)
    if os.environ.get("BENCH_DATA"):
        yield Path(os.environ["BENCH_DATA"])
    home = os.environ.get("BENCH_HOME")
    yield (Path(home) if home else Path.home() / ".cache" / "certbench") / "data"


def layouts(data: Entry, root: Path) -> Iterator[tuple[Path, Reader]]:
    yield root / f"{data.name}.npz", read_npz
