"""Keras-style `<name>.npz`: x_train, y_train, x_test, y_test. Headers are checked before any array is read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .arrays import Arrays, check_split
from .catalogue import Entry
from .errors import UnexpectedError, reading

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MAX_MEMBERS = 64
_MAX_BYTES = 2**28  # of one decoded array; the largest honest one, CIFAR-10's training images, has 154 MB
_CHUNK = 2**20
_MAX_HEADER = 10_000  # characters of a .npy header


def read_npz(data: Entry, path: Path, mend: str) -> Arrays:
    """All four arrays, checked for shape, dtype and label range.

    Raises:
        DataError: the file is damaged, hostile, or holds something else.
    """
    with reading(data.name, path, mend):
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _MAX_MEMBERS:
                raise UnexpectedError(f"holds {len(archive.infolist())} arrays, expected {', '.join(_KEYS)}")
            x_train, y_train, x_test, y_test = (_read_member(archive, key) for key in _KEYS)
        train = check_split(data, x_train, y_train, "training", data.n_train)
        test = check_split(data, x_test, y_test, "test", data.n_test)
        return Arrays(*train, *test, data.classes)


def _read_member(archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    """One .npy member; refuses objects, and sizes that its own zip entry does not bear out."""
    found = [info for info in archive.infolist() if info.filename == f"{key}.npy"]
    if len(found) != 1:
        have = ", ".join(info.filename[:40] for info in archive.infolist()[:8]) or "nothing"
        raise UnexpectedError(f"holds {len(found)} arrays {key}, expected one (it holds {have})")
    (info,) = found
    if info.file_size > _MAX_BYTES:
        raise UnexpectedError(f"its {key} claims {info.file_size} bytes, more than any accepted array")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if header is None:
            raise UnexpectedError(f"its {key} has npy format {version}, expected (1, 0) or (2, 0)")
        shape, fortran, dtype = header(member, max_header_size=_MAX_HEADER)
        if dtype.hasobject or dtype.kind not in "iu" or fortran:
            raise UnexpectedError(f"its {key} holds {dtype}{' in Fortran order' * fortran}, expected plain integers")
        count = 1
        for side in shape:  # Python integers: a claimed shape of 1e12 overflows nothing and buys no memory
            count *= int(side)
        stored = info.file_size - member.tell()
        if count * dtype.itemsize != stored:
            raise UnexpectedError(f"its {key} claims {dtype} {shape}, but {stored} bytes are stored")
        array: NDArray[Any] = np.empty(count, dtype=dtype)
        _fill(member, array.view(np.uint8).data, key)  # zipfile checks the CRC at the end
    return array.reshape(shape)


def _fill(member: IO[bytes], target: memoryview, key: str) -> None:
    """Read exactly len(target) bytes, in chunks, so that no second copy of a large array exists."""
    done = 0
    while done < len(target):
        chunk = member.read(min(_CHUNK, len(target) - done))
        if not chunk:
            raise UnexpectedError(f"its {key} ends after {done} of {len(target)} bytes")
        target[done : done + len(chunk)] = chunk
        done += len(chunk)
    if member.read(1):
        raise UnexpectedError(f"its {key} is longer than it says")
