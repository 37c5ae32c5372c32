"""A data set as decoded arrays, and the checks that tell whether it is the official one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .catalogue import Entry, Sums, all_entries
from .errors import UnexpectedError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Arrays:
    """Decoded images and labels of one data set.

    x_train, x_test: uint8 [N, H, W] or [N, H, W, 3]; y_train, y_test: uint8 [N]. `official` and `order` are filled by
    `identify`; `classes` differs from the catalogue's for a subset. `index_train`, `index_test` are positions in the
    official split (in scikit-learn's order for digits, which has no official split); None means 0..N-1.
    """

    x_train: Bytes
    y_train: Bytes
    x_test: Bytes
    y_test: Bytes
    classes: int
    index_train: NDArray[np.int64] | None = None
    index_test: NDArray[np.int64] | None = None
    official: bool = False
    order: str = "official"
    checksum: str = ""


def sha256(array: NDArray[Any]) -> str:
    """sha256 (hex) of the C-contiguous bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def pair_digest(images: Bytes, labels: Bytes) -> str:
    """Order-free checksum of (image, label) pairs: sha256 over their sorted sha256 digests."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    pairs = np.concatenate([flat, labels.reshape(-1, 1)], axis=1)
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(row.data).digest() for row in pairs))).hexdigest()


def check_split(entry: Entry, images: NDArray[Any], labels: NDArray[Any], split: str, n: int) -> tuple[Bytes, Bytes]:
    """Shapes, dtypes, counts and label range of one split; returns images [n, *image_shape] and labels [n], uint8.

    Raises:
        UnexpectedError: inside `errors.reading`, which adds the file and the mend.
    """
    shape = (n, *entry.image_shape)
    if images.shape == (*shape, 1):
        images = images[..., 0]
    if images.dtype != np.uint8 or images.shape != shape:
        raise UnexpectedError(f"its {split} images are {images.dtype} {images.shape}, expected uint8 {shape}")
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (n,):
        raise UnexpectedError(f"its {split} labels are {labels.dtype} {labels.shape}, expected integers {(n,)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= entry.classes:
        raise UnexpectedError(f"its {split} labels run from {low} to {high}, expected 0 to {entry.classes - 1}")
    return np.ascontiguousarray(images), labels.astype(np.uint8)


def identify(entry: Entry, arrays: Arrays) -> Arrays:
    """The arrays with their checksum, and for sets with official checksums marked official and with their order.

    The checksum is sha256 over the sha256 (hex) of x_train, y_train, x_test, y_test, in this order.

    Raises:
        UnexpectedError: a set with official checksums holds other images or labels; names the array that differs.
    """
    sums = [sha256(a) for a in (arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test)]
    arrays = replace(arrays, checksum=hashlib.sha256("".join(sums).encode()).hexdigest())
    if entry.train is None or entry.test is None:
        return arrays
    train_order = _order(entry, "training", arrays.x_train, arrays.y_train, sums[:2], entry.train)
    test_order = _order(entry, "test", arrays.x_test, arrays.y_test, sums[2:], entry.test)
    same = train_order == test_order == "official"
    return replace(arrays, official=True, order="official" if same else "other")


def _order(entry: Entry, split: str, images: Bytes, labels: Bytes, got: list[str], want: Sums) -> str:
    """ "official" or "other"; `got` are the sha256 of images and labels as they lie."""
    got_images, got_labels = got
    if (got_images, got_labels) == (want.images, want.labels):
        return "official"
    if pair_digest(images, labels) == want.digest:
        return "other"
    for other in all_entries():
        known = other.test if split == "test" else other.train
        if known is not None and known.images == got_images and other.name != entry.name:
            raise UnexpectedError(f"its {split} images are those of {other.title}, expected {entry.title}")
    if got_images == want.images:
        raise UnexpectedError(
            f"its {split} images are official, its {split} labels are not "
            f"(sha256 {got_labels[:12]}, expected {want.labels[:12]})"
        )
    raise UnexpectedError(
        f"its {split} images are not {entry.title}'s, in any order (sha256 {got_images[:12]}, "
        f"expected {want.images[:12]})"
    )
