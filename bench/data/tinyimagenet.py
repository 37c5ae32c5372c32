"""TinyImageNet: the official folder or zip, whole or any subset of its classes.

A class is a line of wnids.txt, its label the number of that line; so a shorter wnids.txt makes a subset, and the other
classes' files need not exist. The official validation images are the test split (the official test images have no
labels). Zip members are read in memory by their exact names; nothing is written to disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image

from .arrays import Arrays, Bytes, check_split
from .catalogue import Entry
from .errors import UnexpectedError, reading

OFFICIAL_FOLDER, OFFICIAL_ZIP = "tiny-imagenet-200", "tiny-imagenet-200.zip"
_ZIP_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # of the official zip, 248,100,043 bytes, as many loaders quote it
_TRAIN_PER_CLASS, _TEST_PER_CLASS = 500, 50
_MAX_TEXT, _MAX_JPEG = 4 * 2**20, 256 * 2**10  # bytes; the JPEGs have about 2 kB
_MAX_MEMBERS = 250_000  # the official zip has about 120,600
_THREADS = 8  # Pillow decodes outside the interpreter lock


@lru_cache(maxsize=1)
def official_classes() -> dict[str, str | None]:
    """The 200 wnids in the official order, each with the digest of its JPEG files where one is known.

    The digest is sha256 over the sha256 of the 500 training files (by number) and the 50 validation files (by number).
    """
    text = resources.files("bench.data").joinpath("tinyimagenet.json").read_text(encoding="ascii")
    classes: dict[str, str | None] = json.loads(text)["classes"]
    return classes


def holds_tinyimagenet(folder: Path) -> bool:
    """Whether `folder` has the official layout's list of classes."""
    return os.path.lexists(folder / "wnids.txt")


class _Files(Protocol):
    """The official tree, wherever it lies; names are relative with slashes."""

    def read(self, name: str, most: int) -> bytes: ...

    def where(self, name: str) -> Path: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def where(self, name: str) -> Path:
        return self._root / name

    def read(self, name: str, most: int) -> bytes:
        with open(self._root / name, "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UnexpectedError(f"is larger than {most} bytes")
        return content


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        infos = archive.infolist()
        if len(infos) > _MAX_MEMBERS:
            raise UnexpectedError(f"has {len(infos)} members, expected about 120,600")
        self._path, self._archive, self._lock = path, archive, threading.Lock()
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            parts = PurePosixPath(info.filename).parts
            if ".." in parts or info.filename.startswith("/") or "\\" in info.filename or ":" in info.filename:
                raise UnexpectedError(
                    f"has a member {info.filename[:60]!r}, which points outside; the file may be hostile"
                )
            if info.filename in self._infos:
                raise UnexpectedError(f"has two members {info.filename[:60]!r}")
            self._infos[info.filename] = info
        roots = [name[: -len("wnids.txt")] for name in self._infos if re.fullmatch(r"([^/]+/)?wnids\.txt", name)]
        if len(roots) != 1:
            raise UnexpectedError(f"has {len(roots)} files wnids.txt, expected {OFFICIAL_FOLDER}/wnids.txt")
        self._prefix = roots[0]

    def where(self, name: str) -> Path:
        return self._path / f"{self._prefix}{name}"

    def read(self, name: str, most: int) -> bytes:
        info = self._infos.get(self._prefix + name)
        if info is None:
            raise UnexpectedError("is missing")
        if info.file_size > most:
            raise UnexpectedError(f"claims {info.file_size} bytes, expected at most {most}")
        with self._lock:
            return self._archive.read(info)  # never more than file_size; the CRC is checked


def read_tinyimagenet(data: Entry, path: Path, mend: str) -> Arrays:
    """The folder or zip at `path`: every listed class whole, 500 training and 50 validation images of 64 x 64.

    Raises:
        DataError: a file is missing, damaged or altered, or a class unknown; names the file.
    """
    with _opened(data, path, mend) as files:
        wnids = _classes(data, files, mend)
        train = [
            (f"train/{w}/images/{w}_{k}.JPEG", c, _TRAIN_PER_CLASS * c_official + k)
            for c, (w, c_official) in enumerate(wnids.items())
            for k in range(_TRAIN_PER_CLASS)
        ]
        test = _annotations(data, files, wnids, mend)
        x_train, sums_train = _images(data, files, [name for name, _, _ in train], mend)
        x_test, sums_test = _images(data, files, [name for name, _, _ in test], mend)
        known = _check_digests(data, files, wnids, (train, sums_train), (test, sums_test), mend)
    official = known or (path.suffix == ".zip" and _md5(path) == _ZIP_MD5)
    index_train, index_test = (np.array([n for _, _, n in rows], dtype=np.int64) for rows in (train, test))
    in_order = bool((np.diff(index_train) > 0).all() and (np.diff(index_test) > 0).all())
    y_train, y_test = (np.array([c for _, c, _ in rows], dtype=np.uint8) for rows in (train, test))
    with reading(data.name, path, mend):
        return Arrays(
            *check_split(data, x_train, y_train, "training", len(train)),
            *check_split(data, x_test, y_test, "test", len(test)),
            classes=len(wnids),
            index_train=index_train,
            index_test=index_test,
            official=official,
            order="official" if in_order else "other",
        )


@contextmanager
def _opened(data: Entry, path: Path, mend: str) -> Iterator[_Files]:
    with reading(data.name, path, mend):
        if path.suffix != ".zip":
            yield _Folder(path)
            return
        with zipfile.ZipFile(path) as archive:
            yield _Zip(path, archive)


def _classes(data: Entry, files: _Files, mend: str) -> dict[str, int]:
    """wnid -> its number in the official list, in the order of wnids.txt."""
    with reading(data.name, files.where("wnids.txt"), mend):
        lines = files.read("wnids.txt", _MAX_TEXT).decode("ascii").split()
        official = {wnid: number for number, wnid in enumerate(official_classes())}
        for number, wnid in enumerate(lines):
            if wnid not in official:
                raise UnexpectedError(f"line {number + 1} ({wnid[:20]!r}) is none of the 200 classes")
        if len(set(lines)) != len(lines) or len(lines) < 2:
            raise UnexpectedError(
                f"lists {len(lines)} classes, {len(set(lines))} different ones; at least 2 are needed"
            )
    return {wnid: official[wnid] for wnid in lines}


def _annotations(data: Entry, files: _Files, wnids: dict[str, int], mend: str) -> list[tuple[str, int, int]]:
    """(file, label, official position) of every validation image of the listed classes, in the file's order."""
    where = "val/val_annotations.txt"
    label = {wnid: c for c, wnid in enumerate(wnids)}
    with reading(data.name, files.where(where), mend):
        rows = []
        for number, line in enumerate(files.read(where, _MAX_TEXT).decode("ascii").splitlines(), start=1):
            name, _, rest = line.partition("\t")
            wnid = rest.partition("\t")[0]
            match = re.fullmatch(r"val_(\d{1,4})\.JPEG", name)
            if match is None:
                raise UnexpectedError(f"line {number} begins with {name[:40]!r}, expected val_<number>.JPEG")
            if wnid in label:
                rows.append((f"val/images/{name}", label[wnid], int(match[1])))
        counts = np.bincount([c for _, c, _ in rows], minlength=len(wnids))
        for wnid, c in label.items():
            if counts[c] != _TEST_PER_CLASS:
                raise UnexpectedError(f"lists {counts[c]} images of {wnid}, expected {_TEST_PER_CLASS}")
        if len({position for _, _, position in rows}) != len(rows):
            raise UnexpectedError("lists an image twice")
    return rows


def _images(data: Entry, files: _Files, names: list[str], mend: str) -> tuple[Bytes, list[bytes]]:
    """Decoded images uint8 [N, 64, 64, 3] and the sha256 of each file."""
    images: Bytes = np.empty((len(names), *data.image_shape), dtype=np.uint8)

    def decode(position: int) -> bytes:
        with reading(data.name, files.where(names[position]), mend):
            content = files.read(names[position], _MAX_JPEG)
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                if image.size != (data.width, data.height):  # known from the header, before anything is decoded
                    raise UnexpectedError(
                        f"is {image.size[0]} x {image.size[1]}, expected {data.width} x {data.height}"
                    )
                images[position] = np.asarray(image.convert("RGB"))  # about 1.4 % are grey
        return hashlib.sha256(content).digest()

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            return images, list(pool.map(decode, range(len(names))))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # the first bad file ends it, not the last good one
            raise


def _check_digests(
    data: Entry,
    files: _Files,
    wnids: dict[str, int],
    train: tuple[list[tuple[str, int, int]], list[bytes]],
    test: tuple[list[tuple[str, int, int]], list[bytes]],
    mend: str,
) -> bool:
    """Compare every class's JPEG files with its known digest; True if all classes have one."""
    parts: list[list[tuple[int, bytes]]] = [[] for _ in wnids]
    for offset, (rows, sums) in ((0, train), (10**9, test)):
        for (_, label, position), digest in zip(rows, sums, strict=True):
            parts[label].append((offset + position, digest))
    for (wnid, want), content in zip(((w, official_classes()[w]) for w in wnids), parts, strict=True):
        got = hashlib.sha256(b"".join(digest for _, digest in sorted(content))).hexdigest()
        if want is not None and got != want:
            with reading(data.name, files.where(f"train/{wnid}"), mend):
                raise UnexpectedError(
                    f"the JPEG files of {wnid} (train or val) were altered (sha256 {got[:12]}, expected {want[:12]})"
                )
    return all(official_classes()[wnid] is not None for wnid in wnids)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
