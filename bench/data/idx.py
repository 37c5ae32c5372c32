"""MNIST's own files: four idx files, plain or gzipped, in one folder."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from .arrays import Arrays, Bytes, check_split
from .catalogue import Entry
from .errors import UnexpectedError, reading

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UINT8 = 0x08  # the only element type of these files


def holds_idx(folder: Path) -> bool:
    """Whether any of the four files lies in `folder`, plain or gzipped (a broken link counts: it is named later)."""
    return any(os.path.lexists(folder / (name + end)) for name in IDX_FILES for end in ("", ".gz"))


def read_idx(data: Entry, folder: Path, mend: str) -> Arrays:
    """All four files.

    Raises:
        DataError: a file is missing, damaged, or holds another number or size of images.
    """
    (h, w), n_train, n_test = data.image_shape, data.n_train, data.n_test
    shapes = ((n_train, h, w), (n_train,), (n_test, h, w), (n_test,))
    x_train, y_train, x_test, y_test = (
        _read_file(data, folder, name, shape, mend) for name, shape in zip(IDX_FILES, shapes, strict=True)
    )
    with reading(data.name, folder, mend):
        train = check_split(data, x_train, y_train, "training", n_train)
        test = check_split(data, x_test, y_test, "test", n_test)
    return Arrays(*train, *test, data.classes)


def _read_file(data: Entry, folder: Path, name: str, shape: tuple[int, ...], mend: str) -> Bytes:
    """One file whose header must promise exactly `shape`; nothing is allocated before that is checked."""
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if os.path.lexists(plain) else packed
    with reading(data.name, path, mend):
        if not os.path.lexists(path):
            raise UnexpectedError(f"does not exist, nor does {plain.name}; the four idx files belong together")
        with _opened(path) as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != bytes([0, 0, _UINT8]):
                raise UnexpectedError(
                    f"begins with {head.hex() or 'nothing'}, expected 000008: not an idx file of bytes"
                )
            if head[3] != len(shape):
                raise UnexpectedError(f"has {head[3]} dimensions, expected {len(shape)}")
            sides = tuple(int.from_bytes(file.read(4), "big") for _ in shape)
            if sides != shape:
                raise UnexpectedError(f"holds {_times(sides)} values, expected {_times(shape)}")
            size = math.prod(shape)
            content = file.read(
                size + 1
            )  # one more: too long is as wrong as too short, and gzip checks its sum at the end
            if len(content) != size:
                problem = f"ends after {len(content)} of" if len(content) < size else "goes on after"
                raise UnexpectedError(f"{problem} {size} bytes of content")
    return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield raw


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
