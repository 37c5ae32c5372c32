"""Where data is looked for, in which layouts, and what is said when it is not there."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from bench.data import DataError, load, tinyimagenet

from_npz = pytest.mark.parametrize("compressed", [False, True])


def same_images(data, small):
    split = {1: lambda x: x[:, None], 3: lambda x: x.transpose(0, 3, 1, 2)}[data.spec.channels]
    test = data.test()
    return all(
        np.array_equal(got.images.numpy(), split(small.x[s])) and np.array_equal(got.labels.numpy(), small.y[s])
        for s, got in (("train", data.train_all), ("test", test))
    )


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "mnist", "raw", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_plain_and_gzipped_in_torchvisions_folder_and_flat(small_mnist, tmp_path, folder, packed):
    small_mnist.idx(tmp_path / folder, packed=packed)
    assert same_images(load("mnist", data_root=tmp_path, offline=True), small_mnist)


@from_npz
@pytest.mark.parametrize("name", ["small_mnist", "small_cifar"])
def test_keras_npz_is_read_plain_and_compressed(name, tmp_path, compressed, request):
    small = request.getfixturevalue(name)
    small.npz(tmp_path, compressed=compressed)
    assert same_images(load(small.entry.name, data_root=tmp_path, offline=True), small)


@pytest.mark.parametrize(
    "changed",
    [lambda y: y[:, None], lambda y: y.astype(np.int64), lambda y: y.astype(">i2")],
    ids=["column", "int64", "big-endian"],
)
def test_labels_in_other_integer_layouts_are_the_same_labels(small_cifar, tmp_path, changed):
    small_cifar.npz(tmp_path, y_train=changed(small_cifar.y["train"]))
    data = load("cifar10", data_root=tmp_path, offline=True)
    assert data.info["official"] and same_images(data, small_cifar)


def test_grey_images_may_have_a_channel_axis(small_mnist, tmp_path):
    small_mnist.npz(tmp_path, x_train=small_mnist.x["train"][..., None])
    assert load("mnist", data_root=tmp_path, offline=True).info["official"]


@pytest.mark.parametrize("where", ["cifar-10-batches-py", "."])
def test_python_batches_are_read_from_their_folder(small_cifar, tmp_path, where):
    small_cifar.cifar_folder(tmp_path / where)
    assert same_images(load("cifar10", data_root=tmp_path, offline=True), small_cifar)


def test_python_batches_are_read_out_of_the_archive_without_writing_a_file(small_cifar, tmp_path):
    small_cifar.cifar_archive(tmp_path)
    assert same_images(load("cifar10", data_root=tmp_path, offline=True), small_cifar)
    assert [path.name for path in tmp_path.rglob("*")] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("protocol", [3, 4])
def test_batches_saved_again_by_python_3_are_the_same_batches(small_cifar, tmp_path, protocol):
    x, y = small_cifar.x["test"].transpose(0, 3, 1, 2).reshape(10, 3072), small_cifar.y["test"].tolist()
    folder = small_cifar.cifar_folder(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({"labels": y, "data": np.ascontiguousarray(x)}, protocol))
    assert same_images(load("cifar10", data_root=tmp_path, offline=True), small_cifar)


def test_every_container_gives_the_same_checksum(small_cifar, tmp_path):
    """The checksum is of decoded arrays: records of the same images agree wherever they came from."""
    sums = set()
    for write in (small_cifar.npz, small_cifar.cifar_archive, small_cifar.cifar_folder):
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder)
        sums.add(load("cifar10", data_root=folder, offline=True).info["checksum"])
    assert len(sums) == 1


def test_tinyimagenet_is_read_from_folder_and_zip_alike(small_tiny, tmp_path):
    small_tiny.folder(tmp_path / "a" / "tiny-imagenet-200")
    (tmp_path / "b").mkdir()
    small_tiny.zip(tmp_path / "b" / "tiny-imagenet-200.zip")
    one, two = (load("tinyimagenet", data_root=tmp_path / x, offline=True) for x in "ab")
    assert one.info == two.info and one.train_all.images.shape == (9, 3, 64, 64)


def test_tinyimagenet_labels_are_line_numbers_of_wnids_txt(small_tiny, tmp_path):
    """Sorted folder names, the common habit, would give another numbering."""
    data = load("tinyimagenet", data_root=small_tiny.folder(tmp_path), offline=True)
    assert data.train_all.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test().labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_subset_of_classes_is_flagged_and_its_net_has_fewer_outputs(small_tiny, tmp_path):
    data = load("tinyimagenet", data_root=small_tiny.folder(tmp_path), offline=True)
    assert data.info["subset"] == {"classes": 3, "of": 200} and data.spec.classes == 3


def test_a_shorter_wnids_txt_is_enough_to_make_a_subset(small_tiny, tmp_path):
    folder = small_tiny.folder(tmp_path)
    (folder / "wnids.txt").write_text("n02124075\nn04540053\n")
    data = load("tinyimagenet", data_root=folder, offline=True)
    assert data.spec.classes == 2 and data.test().index.tolist() == [0, 2, 3, 5]


def test_classes_in_another_order_are_recorded_as_such(small_tiny, tmp_path):
    folder = small_tiny.folder(tmp_path)
    (folder / "wnids.txt").write_text("n04540053\nn02124075\n")
    assert load("tinyimagenet", data_root=folder, offline=True).info["order"] == "other"


def test_without_known_checksums_tinyimagenet_is_not_called_official(small_tiny, tmp_path):
    assert load("tinyimagenet", data_root=small_tiny.folder(tmp_path), offline=True).info["official"] is False


def test_the_official_zip_is_known_by_its_md5(small_tiny, tmp_path, monkeypatch):
    path = small_tiny.zip(tmp_path / "tiny-imagenet-200.zip")
    monkeypatch.setattr(tinyimagenet, "_ZIP_MD5", tinyimagenet._md5(path))
    assert load("tinyimagenet", data_root=tmp_path, offline=True).info["official"] is True


def test_the_official_class_list_has_200_different_classes():
    classes = tinyimagenet.official_classes()
    assert len(classes) == 200 and list(classes)[:2] == ["n02124075", "n04067472"]
    assert sum(digest is not None for digest in classes.values()) == 19


# --- official or not --------------------------------------------------------------------------------------------------


def test_official_images_in_another_order_are_recognised(small_mnist, tmp_path):
    order = np.random.default_rng(3).permutation(40)
    small_mnist.npz(tmp_path, x_train=small_mnist.x["train"][order], y_train=small_mnist.y["train"][order])
    info = load("mnist", data_root=tmp_path, offline=True).info
    assert info["official"] and info["order"] == "other"


def test_images_reordered_without_their_labels_are_refused(small_mnist, tmp_path):
    small_mnist.npz(tmp_path, x_train=small_mnist.x["train"][::-1])
    with pytest.raises(DataError, match="training images are not MNIST's, in any order"):
        load("mnist", data_root=tmp_path, offline=True)


def test_one_changed_pixel_is_refused_with_file_and_mend(small_mnist, tmp_path):
    changed = small_mnist.x["test"].copy()
    changed[3, 5, 5] ^= 1
    path = small_mnist.npz(tmp_path, x_test=changed)
    with pytest.raises(DataError, match="test images are not MNIST's") as error:
        load("mnist", data_root=tmp_path, offline=True)
    assert str(path) in str(error.value) and "--data-root" in str(error.value) and "\n" not in str(error.value)


def test_changed_labels_under_official_images_are_refused(small_mnist, tmp_path):
    small_mnist.npz(tmp_path, y_train=small_mnist.y["train"][::-1])
    with pytest.raises(DataError, match="training images are official, its training labels are not"):
        load("mnist", data_root=tmp_path, offline=True)


# --- search order -----------------------------------------------------------------------------------------------------


def test_data_root_comes_before_the_environment_and_that_before_the_cache(small_mnist, tmp_path, monkeypatch):
    """Broken files tell which folder was read."""
    folders = {name: tmp_path / name for name in ("root", "env", "home/data")}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "mnist.npz").write_text("broken")
    monkeypatch.setenv("BENCH_DATA", str(folders["env"]))
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    for name, data_root in (("root", folders["root"]), ("env", None), ("home/data", None)):
        with pytest.raises(DataError) as error:
            load("mnist", data_root=data_root, offline=True)
        assert str(folders[name] / "mnist.npz") in str(error.value)
        (folders[name] / "mnist.npz").unlink()


def test_a_data_root_without_the_set_falls_back_to_the_environment(small_mnist, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("BENCH_DATA", str(small_mnist.npz(tmp_path).parent))
    assert load("mnist", data_root=tmp_path / "empty", offline=True).info["official"]


def test_without_bench_home_the_cache_is_in_the_home_folder(small_mnist, tmp_path, monkeypatch):
    monkeypatch.delenv("BENCH_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache" / "certbench" / "data"
    cache.mkdir(parents=True)
    small_mnist.npz(cache)
    assert load("mnist", offline=True).info["official"]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "tinyimagenet"])
def test_a_missing_set_names_the_folders_searched_and_what_belongs_there(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as error:
        load(name, data_root=tmp_path, offline=True)
    message = str(error.value)
    assert str(tmp_path) in message and "nowhere (no such folder)" in message and "\n" not in message
    assert f"into {tmp_path}" in message and "{" not in message


def test_a_data_root_that_is_no_folder_is_an_error_even_if_the_cache_has_the_set(small_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(small_mnist.npz(tmp_path).parent))
    with pytest.raises(DataError, match=r"--data-root .*mistyped: is no folder"):
        load("mnist", data_root=tmp_path / "mistyped", offline=True)


def test_two_subsets_in_one_folder_are_not_guessed_between(small_tiny, tmp_path):
    for name in ("tiny-imagenet-19", "tiny-imagenet-20"):
        small_tiny.folder(tmp_path / name)
    with pytest.raises(DataError, match=r"several subsets \(tiny-imagenet-19, tiny-imagenet-20\); choose one"):
        load("tinyimagenet", data_root=tmp_path, offline=True)
