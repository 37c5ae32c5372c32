"""Splits on the device: levels to pixels, validation apart from training, the test split only once."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from bench.data import DataError, Split, load
from bench.threat import levels_table


@pytest.mark.parametrize("levels", [256, 17])
def test_every_level_becomes_the_correctly_rounded_float32(levels):
    """x / 255 on a GPU is a multiplication by the reciprocal and differs at 126 levels."""
    images = torch.arange(levels, dtype=torch.uint8).reshape(1, 1, 1, levels)
    split = Split(images, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), levels)
    exact = [np.float32(float(Fraction(k, levels - 1))) for k in range(levels)]
    assert split.pixels(slice(None)).flatten().tolist() == exact


@pytest.mark.gpu
def test_pixels_on_a_gpu_are_bit_equal_to_those_on_a_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    here, there = load("synthetic").train_all, load("synthetic", device="cuda").train_all
    assert torch.equal(here.pixels(slice(0, 99)), there.pixels(slice(0, 99)).cpu())


@pytest.mark.parametrize("rows", [slice(3, 8), torch.tensor([7, 3, 3]), torch.tensor([], dtype=torch.int64)])
def test_pixels_of_rows_are_those_images(rows):
    split = load("digits").train_all
    got = split.pixels(rows)
    assert got.dtype == torch.float32 and got.shape[1:] == (1, 8, 8)
    assert torch.equal(got, levels_table(17)[split.images[rows].long()])


def test_images_stay_bytes_on_the_device():
    split = load("digits").train_all
    assert split.images.dtype == torch.uint8 and split.labels.dtype == split.index.dtype == torch.int64
    assert split.images.is_contiguous() and len(split) == len(split.images)


def test_train_and_val_are_disjoint_and_make_up_train_all():
    data = load("digits")
    train, val = data.train.index.tolist(), data.val.index.tolist()
    assert sorted(train + val) == sorted(data.train_all.index.tolist()) and not set(train) & set(val)


def test_val_is_the_same_for_every_load():
    assert torch.equal(load("digits").val.index, load("digits").val.index)


def test_the_test_split_opens_once():
    """Tuning on the test split is the one thing a record could not show afterwards."""
    data = load("digits")
    assert len(data.test()) == 360
    with pytest.raises(DataError, match=r"test split was opened before.*Dataset\.val"):
        data.test()


def test_info_is_json_and_has_what_a_record_needs():
    info = json.loads(json.dumps(load("digits").info))
    assert set(info) == {
        "name",
        "checksum",
        "official",
        "order",
        "subset",
        "n_train",
        "n_val",
        "n_test",
        "val_index_sha256",
        "test_index_sha256",
    }
    assert (info["n_train"], info["n_val"], info["n_test"]) == (1437, 144, 360)


def test_channels_come_first_and_keep_their_colour(small_cifar, tmp_path):
    small_cifar.npz(tmp_path)
    split = load("cifar10", data_root=tmp_path, offline=True).train_all
    assert split.images.shape == (50, 3, 32, 32)
    assert np.array_equal(split.images.numpy(), small_cifar.x["train"].transpose(0, 3, 1, 2))
