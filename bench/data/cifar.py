"""CIFAR-10's own files: python batches in a folder or in cifar-10-python.tar.gz. Nothing is unpickled into code.

The official batches are pickles. `_BatchUnpickler` knows three names only and gives stand-ins for them that store what
they are given; the opcodes are checked before, because the C unpickler lets a file of a few bytes ask for gigabytes.
"""

from __future__ import annotations

import gzip
import io
import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Arrays, Bytes, check_split
from .catalogue import Entry
from .errors import UnexpectedError, reading

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_MAX_BATCH_BYTES = 64 * 2**20  # official: 31,035,704
_MAX_TAR_BYTES = 256 * 2**20  # official, unpacked: 186 MB
_MAX_MEMBERS = 64
_MAX_OPCODES = 1_000_000  # official: about 50,000
_OPCODES = frozenset(  # what pickle protocols 2 to 4 need for a dictionary of lists, bytes and one numpy array
    """
    PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET
    EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2
    BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES
    GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()  # noqa: SIM905
)


def read_cifar_folder(data: Entry, folder: Path, mend: str) -> Arrays:
    """The six batch files of a folder.

    Raises:
        DataError: a file is missing, damaged, hostile, or holds something else.
    """
    batches = []
    for name in BATCHES:
        with reading(data.name, folder / name, mend):
            with open(folder / name, "rb") as file:
                content = file.read(_MAX_BATCH_BYTES + 1)
            batches.append(_decode(content, data.n_test))
    with reading(data.name, folder, mend):
        return _assembled(data, batches)


def read_cifar_archive(data: Entry, path: Path, mend: str) -> Arrays:
    """The six batches out of the tar.gz; nothing is written to disk, so no member's name can do harm.

    Raises:
        DataError: as `read_cifar_folder`.
    """
    with reading(data.name, path, mend):
        found: dict[str, bytes] = {}
        with open(path, "rb") as raw, gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            capped = io.BufferedReader(_Capped(unpacked))
            with tarfile.open(fileobj=capped, mode="r|") as archive:
                for count, member in enumerate(archive, start=1):
                    if count > _MAX_MEMBERS:
                        raise UnexpectedError(f"has more than {_MAX_MEMBERS} members, expected {FOLDER}/ with 8 files")
                    name = member.name.removeprefix("./").removeprefix(f"{FOLDER}/")
                    if name in BATCHES:
                        found[name] = _member(archive, member, name, found)
            while capped.read(2**20):  # to the end: gzip compares its checksum there
                pass
        missing = [name for name in BATCHES if name not in found]
        if missing:
            raise UnexpectedError(f"has no {FOLDER}/{missing[0]}")
        batches = []
        for name in BATCHES:
            try:
                batches.append(_decode(found.pop(name), data.n_test))
            except UnexpectedError as error:
                raise UnexpectedError(f"its member {name} {error}") from error
        return _assembled(data, batches)


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, found: dict[str, bytes]) -> bytes:
    if name in found:
        raise UnexpectedError(f"has two members {name}")
    if not member.isreg() or member.size > _MAX_BATCH_BYTES:
        raise UnexpectedError(f"its member {name} is no ordinary file of at most {_MAX_BATCH_BYTES >> 20} MB")
    file = archive.extractfile(member)
    assert file is not None, "a regular member has content"
    return file.read()


class _Capped(io.RawIOBase):
    """The unpacked stream, which ends in an error where an honest archive would long have ended."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left = stream, _MAX_TAR_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(min(len(buffer), 2**20))
        self._left -= len(content)
        if self._left < 0:
            raise UnexpectedError(f"unpacks to more than {_MAX_TAR_BYTES >> 20} MB, expected 186 MB")
        buffer[: len(content)] = content
        return len(content)


def _assembled(data: Entry, batches: list[tuple[Bytes, list[int]]]) -> Arrays:
    """Five training batches and the test batch as one set, channels last."""
    images = np.concatenate([x for x, _ in batches[:5]])
    labels = np.array([label for _, y in batches[:5] for label in y], dtype=np.int64)
    train = check_split(data, images, labels, "training", data.n_train)
    test = check_split(data, batches[5][0], np.array(batches[5][1], dtype=np.int64), "test", data.n_test)
    return Arrays(*train, *test, data.classes)


def _decode(content: bytes, n: int) -> tuple[Bytes, list[int]]:
    """One batch of n = 10,000: images uint8 [n, 32, 32, 3] and its labels.

    Raises:
        UnexpectedError: it is no such batch.
    """
    if len(content) > _MAX_BATCH_BYTES:
        raise UnexpectedError(f"is larger than {_MAX_BATCH_BYTES >> 20} MB, expected 31 MB")
    _check_opcodes(content)
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(batch, dict):
        raise UnexpectedError(f"holds a {type(batch).__name__}, expected a dictionary with data and labels")
    fields = {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    labels = fields.get("labels")
    if not isinstance(labels, list) or len(labels) != n or not all(type(label) is int for label in labels):
        raise UnexpectedError(f"has no list of {n} whole numbers named labels")
    return _pixels(fields.get("data"), n), labels


def _pixels(stored: Any, n: int) -> Bytes:
    """The stand-in of the pixel array as uint8 [n, 32, 32, 3] (stored channel by channel)."""
    state = stored.state if isinstance(stored, _ArrayStandIn) else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise UnexpectedError("has no pixel array named data")
    _, shape, dtype, fortran, raw = state
    kind = dtype.args[0] if isinstance(dtype, _DtypeStandIn) and dtype.args else None
    size = n * 3072
    if shape != (n, 3072) or kind not in ("u1", b"u1") or fortran or type(raw) is not bytes or len(raw) != size:
        raise UnexpectedError(f"its pixels are not {n} x 3072 bytes")
    channels_first = np.frombuffer(raw, dtype=np.uint8).reshape(n, 3, 32, 32)
    return np.ascontiguousarray(channels_first.transpose(0, 2, 3, 1))


def _check_opcodes(content: bytes) -> None:
    """Refuse a pickle with any opcode that a batch does not need, before one of them runs."""
    for count, (opcode, argument, position) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES:
            raise UnexpectedError(f"has the pickle opcode {opcode.name} at byte {position}, which no batch needs")
        if count > _MAX_OPCODES or (opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_OPCODES):
            raise UnexpectedError("asks for more memory than any batch needs")


class _ArrayStandIn:
    """Holds the state that a pickled numpy array would restore."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DtypeStandIn:
    """Holds the arguments of a pickled dtype."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        """Byte order and flags; a byte has none."""


def _array_stand_in(*_: Any) -> _ArrayStandIn:
    return _ArrayStandIn()


class _BatchUnpickler(pickle.Unpickler):
    """Knows the three names an official batch uses, and runs nothing of numpy for them."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _array_stand_in
        if (module, name) == ("numpy", "ndarray"):
            return _ArrayStandIn
        if (module, name) == ("numpy", "dtype"):
            return _DtypeStandIn
        raise UnexpectedError(f"asks for {module[:40]}.{name[:40]}, which no batch needs; the file may be hostile")
