"""A loaded data set: uint8 images on the device, split into training, validation and the once-only test split."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..contract import DataSpec
from ..threat import levels_table
from .arrays import Arrays, Bytes
from .catalogue import Entry
from .errors import DataError
from .splits import index_hash, stratified


class Split:
    """Images of one split on the device.

    images: uint8 [N, C, H, W], pixel levels 0..levels-1. labels: int64 [N]. index: int64 [N], position in the official
    split (digits: in scikit-learn's order). levels: number of grey levels, 256 or 17.
    """

    def __init__(self, images: Tensor, labels: Tensor, index: Tensor, levels: int) -> None:
        self.images, self.labels, self.index, self.levels = images, labels, index, levels
        self._table = levels_table(levels).to(images.device)

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: Tensor | slice) -> Tensor:
        """float32 [B, C, H, W] in [0, 1]: level k becomes k / (levels - 1), correctly rounded, on every device."""
        return to_pixels(self.images[rows], self._table)

    def subset(self, rows: Tensor) -> Split:
        """The examples at `rows` (int64), in this order."""
        return Split(self.images[rows], self.labels[rows], self.index[rows], self.levels)


def to_pixels(images: Tensor, table: Tensor) -> Tensor:
    """uint8 levels of any shape -> float32 pixels, through the table of `threat.levels_table` on the same device."""
    return table.index_select(0, images.reshape(-1).int()).view(images.shape)


class Dataset:
    """One data set, loaded and checked. `spec` is what networks are built for: a subset has fewer classes."""

    def __init__(self, entry: Entry, arrays: Arrays, device: torch.device) -> None:
        self.spec = DataSpec(
            name=entry.name,
            channels=entry.channels,
            height=entry.height,
            width=entry.width,
            classes=arrays.classes,
            mean=entry.mean,
            std=entry.std,
            levels=entry.levels,
        )
        n_train, n_test = len(arrays.x_train), len(arrays.x_test)
        n_val = entry.n_val if n_train == entry.n_train else n_train // 10
        self._device = device
        self._kept, self._held = stratified(arrays.y_train, n_val)
        index_train = _positions(arrays.index_train, n_train)
        index_test = _positions(arrays.index_test, n_test)
        self.train_all = self._split(arrays.x_train, arrays.y_train, index_train)
        self._test: tuple[Bytes, Bytes, NDArray[np.int64]] | None = (arrays.x_test, arrays.y_test, index_test)
        self.info: dict[str, Any] = {
            "name": entry.name,
            "checksum": arrays.checksum,
            "official": arrays.official,
            "order": arrays.order,
            "subset": None if arrays.classes == entry.classes else {"classes": arrays.classes, "of": entry.classes},
            "n_train": n_train,
            "n_val": n_val,
            "n_test": n_test,
            "val_index_sha256": index_hash(index_train[self._held]),
            "test_index_sha256": index_hash(index_test),
        }

    @cached_property
    def train(self) -> Split:
        """The training images without the validation ones: what tuning trains on."""
        return self.train_all.subset(torch.from_numpy(self._kept).to(self._device))

    @cached_property
    def val(self) -> Split:
        """The held-out validation images: stratified, the same for every run."""
        return self.train_all.subset(torch.from_numpy(self._held).to(self._device))

    def test(self) -> Split:
        """The test split; it opens once.

        Raises:
            DataError: it was opened before. Tuning on it would spoil the number; use `val`.
        """
        if self._test is None:
            raise DataError(
                f"{self.spec.name}: the test split was opened before; it opens once per run, at the end: keep the "
                "first result, and tune on the validation split (Dataset.val)"
            )
        split = self._split(*self._test)
        self._test = None
        return split

    def _split(self, images: Bytes, labels: Bytes, index: NDArray[np.int64]) -> Split:
        shape = (len(images), self.spec.height, self.spec.width, self.spec.channels)
        pixels = torch.from_numpy(images).view(shape).to(self._device).permute(0, 3, 1, 2).contiguous()
        return Split(
            pixels,
            torch.from_numpy(labels).long().to(self._device),
            torch.from_numpy(index).to(self._device),
            self.spec.levels,
        )


def _positions(index: NDArray[np.int64] | None, n: int) -> NDArray[np.int64]:
    return np.arange(n, dtype=np.int64) if index is None else index
