"""Keras-style `<name>.npz`: x_train, y_train, x_test, y_test. Headers are checked before any array is read."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Arrays, check_split
from .catalogue import Entry
from .errors import UnexpectedError, reading

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MAX_MEMBERS = 64
_MAX_BYTES = 2**28  # of one decoded array; the largest honest one, CIFAR-10's training images, has 154 MB
_CHUNK = 2**20
_MAX_HEADER = 1_000  # characters of a .npy header; numpy pads it to 118 for these arrays
_HEADER = re.compile(
    r"\{'descr': '([^']{1,30})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,20}L?, ?)*(?:\d{1,20}L?)?)\),? ?\} *\n?"
)


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
        dtype, shape = _header(member, key)
        count = math.prod(shape)  # Python integers: a claimed shape of 1e12 overflows nothing and buys no memory
        stored = info.file_size - member.tell()
        if count * dtype.itemsize != stored:
            raise UnexpectedError(f"its {key} claims {dtype} {shape}, but {stored} bytes are stored")
        array: NDArray[Any] = np.empty(count, dtype=dtype)
        _fill(member, array.view(np.uint8).data, key)  # zipfile checks the CRC at the end
    return array.reshape(shape)


def _header(member: IO[bytes], key: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """dtype and shape; read by a pattern, because numpy's own reader evaluates a Python expression here."""
    head = member.read(8)
    width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4, b"\x93NUMPY\x03\x00": 4}.get(head)
    if width is None:
        raise UnexpectedError(f"its {key} begins with {head.hex() or 'nothing'}, expected a .npy array")
    length = int.from_bytes(member.read(width), "little")
    text = member.read(min(length, _MAX_HEADER)).decode("latin1")
    match = _HEADER.fullmatch(text)
    if match is None:
        raise UnexpectedError(f"its {key} has the header {text.strip()[:80]!r}, expected that of an array of integers")
    kind, fortran, sides = match.groups()
    if not re.fullmatch(r"\|[iu]1|[<>][iu][248]", kind) or fortran == "True":
        raise UnexpectedError(f"its {key} holds {kind}{' in Fortran order' * (fortran == 'True')}, expected integers")
    return np.dtype(kind), tuple(int(side) for side in re.findall(r"\d+", sides))


def _fill(member: IO[bytes], target: memoryview, key: str) -> None:
    """Read exactly len(target) bytes, in chunks, so that no second copy of a large array exists."""
    done = 0
    while done < len(target):
        chunk = member.read(min(_CHUNK, len(target) - done))
        if not chunk:
            raise UnexpectedError(f"its {key} ends after {done} of {len(target)} bytes")
        target[done : done + len(chunk)] = chunk
        done += len(chunk)
