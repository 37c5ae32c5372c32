"""Where data sets lie: the search order, the layouts, and what to say when nothing is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .arrays import Arrays
from .catalogue import Entry
from .cifar import ARCHIVE, BATCHES, FOLDER, read_cifar_archive, read_cifar_folder
from .errors import DataError, shown
from .idx import holds_idx, read_idx
from .npz import read_npz
from .tinyimagenet import OFFICIAL_FOLDER, OFFICIAL_ZIP, holds_tinyimagenet, read_tinyimagenet

Reader = Callable[[Entry, Path, str], Arrays]
_TORCHVISION_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


@dataclass(frozen=True)
class Found:
    """A layout that exists: its file or folder, the function that reads it, and what mends it if it is broken."""

    path: Path
    read: Reader
    mend: str


def cache_folder() -> Path | None:
    """`data` in $BENCH_HOME or ~/.cache/certbench; None where neither is known (no home)."""
    home = os.environ.get("BENCH_HOME")
    if home:
        return Path(home).expanduser() / "data"
    try:
        return Path.home() / ".cache" / "certbench" / "data"
    except RuntimeError:
        return None


def find(data: Entry, data_root: Path | None, *, offline: bool) -> Found:
    """The first layout of `data` in --data-root, $BENCH_DATA, the cache folder; then a download into the cache.

    The first one found is the one that is read: a broken file is an error, never a reason to look further.

    Raises:
        DataError: nothing found and nothing downloaded; names every folder that was searched and what belongs there.
    """
    searched: list[Path] = []
    for root in _roots(data_root):
        if found := _found(data, root):
            return found
        searched.append(root)
    cache = cache_folder()
    downloadable = data.name != "tinyimagenet"
    if downloadable and not offline and cache is not None:
        from .fetch import download

        try:
            download(data, cache)
        except DataError as error:
            raise DataError(f"{error}; {_by_hand(data, searched)}") from error
        if found := _found(data, cache):
            return found
        raise AssertionError(f"{data.name} was downloaded into {shown(cache)}, where no layout of it is found")
    without = " (or run once without --offline to download it)" if downloadable and offline else ""
    raise DataError(f"{data.name}: found in none of {_listed(searched)}; {_by_hand(data, searched)}{without}")


def _roots(data_root: Path | None) -> Iterator[Path]:
    if data_root is not None:
        root = Path(data_root).expanduser()
        if not root.is_dir():
            raise DataError(f"--data-root {shown(root)}: is no folder; name the folder that holds the data sets")
        yield root
    if os.environ.get("BENCH_DATA"):
        yield Path(os.environ["BENCH_DATA"]).expanduser()
    if cache := cache_folder():
        yield cache


def _found(data: Entry, root: Path) -> Found | None:
    """The first layout of `data` below `root` that exists."""
    again = (
        "delete it, and the next run downloads it," if data.name != "tinyimagenet" and root == cache_folder() else ""
    )
    mend = f"{again or 'replace it by the official one'} or name another folder with --data-root"
    layouts = {"tinyimagenet": _tinyimagenet, "cifar10": _cifar}.get(data.name, _mnist)
    path, read = next(layouts(data, root), (None, None))
    return None if path is None or read is None else Found(path, read, mend)


def _mnist(data: Entry, root: Path) -> Iterator[tuple[Path, Reader]]:
    """Keras' npz; torchvision's folder MNIST/raw; the four files in `root` itself or in a folder of the set's name."""
    yield from _npz(data, root)
    theirs = _TORCHVISION_FOLDERS.get(data.name, data.name)
    for folder in (root / theirs / "raw", root / theirs, root / data.name, root / "raw", root):
        if holds_idx(folder):
            yield folder, read_idx


def _cifar(data: Entry, root: Path) -> Iterator[tuple[Path, Reader]]:
    """Keras' npz; the folder of python batches, or `root` being that folder; the tar.gz."""
    yield from _npz(data, root)
    for folder in (root / FOLDER, root):
        if any(os.path.lexists(folder / name) for name in BATCHES):
            yield folder, read_cifar_folder
    if os.path.lexists(root / ARCHIVE):
        yield root / ARCHIVE, read_cifar_archive


def _npz(data: Entry, root: Path) -> Iterator[tuple[Path, Reader]]:
    if os.path.lexists(root / f"{data.name}.npz"):
        yield root / f"{data.name}.npz", read_npz


def _tinyimagenet(data: Entry, root: Path) -> Iterator[tuple[Path, Reader]]:
    """The official folder, or `root` being it; the official zip; one folder tiny-imagenet-<anything> with a subset."""
    for folder in (root / OFFICIAL_FOLDER, root):
        if holds_tinyimagenet(folder):
            yield folder, read_tinyimagenet
    if os.path.lexists(root / OFFICIAL_ZIP):
        yield root / OFFICIAL_ZIP, read_tinyimagenet
    subsets = sorted(folder for folder in root.glob("tiny-imagenet-*") if holds_tinyimagenet(folder))
    if len(subsets) > 1:
        both = ", ".join(folder.name for folder in subsets[:4])
        raise DataError(
            f"{data.name}: {shown(root)} holds several subsets ({both}); choose one: --data-root {shown(subsets[0])}"
        )
    for folder in subsets:
        yield folder, read_tinyimagenet


def _by_hand(data: Entry, searched: list[Path]) -> str:
    there = f"into {shown(searched[0])}" if searched else "into a folder"
    return f"{data.by_hand.format(there=there)}, or name the folder that has it with --data-root"


def _listed(searched: list[Path]) -> str:
    if not searched:
        return "0 folders (no --data-root, no $BENCH_DATA, no home)"
    return ", ".join(f"{shown(root)}{'' if root.is_dir() else ' (no such folder)'}" for root in searched)
