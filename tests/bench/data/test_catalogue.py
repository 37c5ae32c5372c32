"""The catalogue and the two sets that need no file."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from bench.data import DataError, UnknownDatasetError, catalogue, embedded, load, names, spec
from bench.errors import BenchError, UsageError


def test_the_default_data_set_comes_first_and_all_six_are_listed():
    assert names() == ("digits", "mnist", "fashion_mnist", "cifar10", "tinyimagenet", "synthetic")


def test_an_unknown_name_suggests_the_nearest_and_lists_all_in_one_line():
    with pytest.raises(UnknownDatasetError) as error:
        load("cifar")
    assert 'did you mean "cifar10"?' in str(error.value)
    assert all(name in str(error.value) for name in names()) and "\n" not in str(error.value)


def test_an_unknown_name_is_a_usage_error_and_every_data_error_a_cell_error():
    assert issubclass(UnknownDatasetError, UsageError) and UnknownDatasetError("").exit_code == 2
    assert issubclass(DataError, BenchError) and DataError("").exit_code == 1


@pytest.mark.parametrize("name", names())
def test_spec_agrees_with_the_catalogue_and_touches_no_file(name, monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("a file was opened"))
    data, entry = spec(name), catalogue.entry(name)
    assert (data.channels, data.height, data.width, data.classes) == (
        entry.channels,
        entry.height,
        entry.width,
        entry.classes,
    )
    assert len(data.mean) == len(data.std) == data.channels


def test_names_need_no_torch():
    """`bench list datasets` and `bench --help` must not wait a second for torch."""
    code = "import sys; import bench.data; bench.data.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digits_are_scikit_learns():
    """The shipped npz is a copy; it must be the same images in the same order."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    theirs, ours = load_digits(), load("digits")
    test = ours.test()
    images, labels = torch.empty(1797, 8, 8), torch.empty(1797, dtype=torch.int64)
    for split in (ours.train_all, test):
        images[split.index], labels[split.index] = split.images[:, 0].float(), split.labels
    assert np.array_equal(images.numpy(), theirs.images) and np.array_equal(labels.numpy(), theirs.target)


def test_digits_split_is_1437_to_360_without_overlap_and_never_changes():
    ours = load("digits")
    test = ours.test()
    assert (len(ours.train_all), len(test)) == (1437, 360)
    assert len(set(ours.train_all.index.tolist()) | set(test.index.tolist())) == 1797
    assert ours.info["test_index_sha256"] == "eee6402329bad7500fe1958d0cd07458caa0c22aabc841b94174d9b73401b749"
    assert ours.info["val_index_sha256"] == "dd7b25e30c4dbe6a01ff0585a6b3ced9846de2b38ee28a5eccb89d86376e3a04"


def test_synthetic_is_the_same_on_every_machine():
    """Pure integer arithmetic; a change would silently change every test that trains on it."""
    assert load("synthetic").info["checksum"] == "78ef18b2ae7fbada706e09812487f45a051d44e96def49a2334dda30ab0023cf"


def test_synthetic_is_learnable_by_a_linear_net_and_not_by_a_constant():
    data = load("synthetic")
    torch.manual_seed(0)
    net = torch.nn.Linear(64, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    x, y = data.train.pixels(slice(None)).flatten(1), data.train.labels
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    val = data.val
    assert (net(val.pixels(slice(None)).flatten(1)).argmax(1) == val.labels).float().mean() > 0.95
    assert val.labels.bincount(minlength=4).max() <= 13


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_embedded_means_and_stds_are_those_of_the_training_images(name):
    data = load(name)
    x = data.train_all.pixels(slice(None)).double()
    assert x.mean().item() == pytest.approx(data.spec.mean[0], abs=6e-6)
    assert x.std(correction=0).item() == pytest.approx(data.spec.std[0], abs=6e-6)


def test_an_altered_digits_file_is_refused_with_the_mend(tmp_path, monkeypatch):
    with np.load(embedded.resources.files("bench.data").joinpath("digits.npz")) as stored:
        images, labels = stored["images"].copy(), stored["labels"]
    images[0, 0, 0] += 1
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    monkeypatch.setattr(embedded.resources, "files", lambda _: tmp_path)
    with pytest.raises(DataError, match=r"digits\.npz: was altered .* install certbench again"):
        load("digits")
