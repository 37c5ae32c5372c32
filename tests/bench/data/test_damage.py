"""P60-P63 of trust.md: damaged and hostile files end in one sentence before anything is trained."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bench.data import DataError, cifar, load, tinyimagenet

resource = pytest.importorskip("resource", reason="needs a POSIX system")

MUTATIONS = 250  # per layout; eight layouts


def fails(name: str, root: Path, *words: str) -> str:
    """Loading must raise DataError in one printable line that names the mend and says all of `words`."""
    with pytest.raises(DataError) as error:
        load(name, data_root=root, offline=True)
    message = str(error.value)
    assert message.isprintable() and "--data-root" in message, message
    assert all(word in message for word in words), message
    return message


# --- P60: random damage -----------------------------------------------------------------------------------------------


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One of: flipped bits, cut short, a byte too many, a hole, a run of zeros, a doubled stretch."""
    at = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 400))
    length = rng.choice([1, 2, 16, 500])
    return {
        "flip": lambda: content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :],
        "cut": lambda: content[:at],
        "junk": lambda: content + rng.randbytes(length),
        "hole": lambda: content[:at] + content[at + length :],
        "zeros": lambda: content[:at] + bytes(min(length, len(content) - at)) + content[at + length :],
        "double": lambda: content[:at] + content[at : at + length] + content[at:],
    }[rng.choice(["flip", "flip", "cut", "junk", "hole", "zeros", "double"])]()


LAYOUTS = {
    "idx": ("small_mnist", lambda s, p: s.idx(p)),
    "idx.gz": ("small_mnist", lambda s, p: s.idx(p, packed=True)),
    "npz": ("small_mnist", lambda s, p: s.npz(p)),
    "npz compressed": ("small_mnist", lambda s, p: s.npz(p, compressed=True)),
    "batches": ("small_cifar", lambda s, p: s.cifar_folder(p)),
    "tar.gz": ("small_cifar", lambda s, p: s.cifar_archive(p)),
    "folder": ("small_tiny", lambda s, p: s.folder(p)),
    "zip": ("small_tiny", lambda s, p: s.zip(p / "tiny-imagenet-200.zip")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_damage_is_refused_in_one_line_or_leaves_every_array_as_it_was(layout, tmp_path, request, monkeypatch):
    fixture, write = LAYOUTS[layout]
    small = request.getfixturevalue(fixture)
    write(small, tmp_path)
    name = "tinyimagenet" if fixture == "small_tiny" else small.entry.name
    if fixture == "small_tiny":
        know_digests(small, monkeypatch)
    want = load(name, data_root=tmp_path, offline=True).info
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    rng = random.Random(7)
    refused = 0
    for turn in range(MUTATIONS):
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(mutated(whole, rng))
        try:
            data = load(name, data_root=tmp_path, offline=True)
        except DataError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 1000, f"mutation {turn} of {path.name}"
        else:
            got = data.info
            subset = got["subset"] != want["subset"]  # a wnids.txt cut at a line end is an honest subset, and says so
            assert got["checksum"] == want["checksum"] or subset, f"mutation {turn} of {path.name}"
        path.write_bytes(whole)
    assert refused > MUTATIONS // 2, "the mutations did not bite"


def know_digests(small, monkeypatch) -> None:
    """Give the three small classes the digests that 19 of the real ones have."""
    import hashlib

    rows = [line.split(b"\t")[:2] for line in small.files["val/val_annotations.txt"].splitlines()]
    known = dict(tinyimagenet.official_classes())
    for wnid in small.files["wnids.txt"].decode().split():
        names = [f"train/{wnid}/images/{wnid}_{k}.JPEG" for k in range(3)]
        names += [f"val/images/{name.decode()}" for name, w in rows if w.decode() == wnid]
        known[wnid] = hashlib.sha256(b"".join(hashlib.sha256(small.files[n]).digest() for n in names)).hexdigest()
    monkeypatch.setattr(tinyimagenet, "official_classes", lambda: known)


# --- P60: named kinds of damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train-images-idx3-ubyte", lambda c: c[:-1], ["ends after 31359 of 31360 bytes"]),
        ("train-images-idx3-ubyte", lambda c: c + b"x", ["goes on after 31360 bytes"]),
        ("train-images-idx3-ubyte", lambda c: b"", ["begins with nothing"]),
        ("train-images-idx3-ubyte", lambda c: b"<!DOCTYPE html>", ["not an idx file"]),
        ("t10k-labels-idx1-ubyte", lambda c: c[:4] + struct.pack(">I", 9) + c[8:-1], ["holds 9 values, expected 10"]),
        ("t10k-labels-idx1-ubyte", lambda c: c[:-1] + b"\x0a", ["test labels run from 0 to 10, expected 0 to 9"]),
        ("t10k-labels-idx1-ubyte", lambda c: c[:3] + b"\x02" + c[4:], ["has 2 dimensions, expected 1"]),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_was_expected(small_mnist, tmp_path, file, change, words):
    path = small_mnist.idx(tmp_path) / file
    path.write_bytes(change(path.read_bytes()))
    fails("mnist", tmp_path, *words)


def test_gzip_with_trailing_junk_or_a_wrong_sum_is_refused(small_mnist, tmp_path):
    path = small_mnist.idx(tmp_path, packed=True) / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    for broken in (whole + b"junk", whole[:-8] + bytes(4) + whole[-4:], whole[:-4]):
        path.write_bytes(broken)
        fails("mnist", tmp_path, path.name, "damaged")


def test_a_missing_companion_file_is_named(small_mnist, tmp_path):
    (small_mnist.idx(tmp_path) / "t10k-images-idx3-ubyte").unlink()
    fails("mnist", tmp_path, "t10k-images-idx3-ubyte.gz: does not exist", "belong together")


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_wrong_shape_dtype_or_count_in_an_npz_is_named(small_mnist, tmp_path, key):
    array = small_mnist.arrays()[key]
    split = "training" if "train" in key else "test"
    for wrong in (array[:-1], array.astype(np.float32), array.T if array.ndim > 1 else array[None]):
        small_mnist.npz(tmp_path, **{key: wrong})
        message = fails("mnist", tmp_path, "mnist.npz", "expected")
        assert split in message or key in message


def test_labels_out_of_range_are_refused(small_mnist, tmp_path):
    small_mnist.npz(tmp_path, y_train=small_mnist.y["train"].astype(np.int64) - 1)
    fails("mnist", tmp_path, "training labels run from -1 to 8, expected 0 to 9")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "mnist.npz").mkdir()
    fails("mnist", tmp_path, "mnist.npz: cannot be read (is a directory)")


def test_a_symlink_loop_is_refused(tmp_path):
    (tmp_path / "cifar10.npz").symlink_to(tmp_path / "cifar10.npz")
    fails("cifar10", tmp_path, "cifar10.npz: cannot be read (too many levels of symbolic links)")


def test_a_dangling_link_is_named_instead_of_looking_further(tmp_path):
    (tmp_path / "cifar10.npz").symlink_to(tmp_path / "gone.npz")
    fails("cifar10", tmp_path, "cifar10.npz: cannot be read (no such file or directory)")


def test_a_file_without_permission_is_refused(small_mnist, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    small_mnist.npz(tmp_path).chmod(0)
    fails("mnist", tmp_path, "mnist.npz: cannot be read (permission denied)")


def test_newlines_and_escapes_in_a_folders_name_stay_on_one_line(tmp_path):
    folder = tmp_path / "a\n\x1b[31mb"
    folder.mkdir()
    (folder / "mnist.npz").write_text("broken")
    fails("mnist", folder, "\\n\\x1b[31mb")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train/n04067472/images/n04067472_1.JPEG", lambda c: c[:500], ["n04067472_1.JPEG", "truncated"]),
        ("train/n04067472/images/n04067472_1.JPEG", None, ["n04067472_1.JPEG", "no such file"]),
        ("val/images/val_4.JPEG", lambda c: b"GIF89a", ["val_4.JPEG", "damaged"]),
        ("val/val_annotations.txt", lambda c: c[: c.rindex(b"val_")], ["lists 1 images of n04540053, expected 2"]),
        ("val/val_annotations.txt", lambda c: b"../../x\tn0\n" + c, ["line 1", "expected val_<number>.JPEG"]),
        ("wnids.txt", lambda c: c + b"n02480855\n", ["line 4", "none of the 200 classes"]),
        ("wnids.txt", lambda c: c + c, ["6 classes, 3 different"]),
        ("wnids.txt", lambda c: b"", ["lists 0 classes"]),
    ],
)
def test_a_damaged_tinyimagenet_names_the_file(small_tiny, tmp_path, file, change, words):
    path = small_tiny.folder(tmp_path) / file
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    fails("tinyimagenet", tmp_path, *words)


def test_a_jpeg_of_another_size_is_refused_before_it_is_decoded(small_tiny, tmp_path):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(file, "JPEG", quality=1)
    (small_tiny.folder(tmp_path) / "val/images/val_0.JPEG").write_bytes(file.getvalue()[:200_000])
    fails("tinyimagenet", tmp_path, "val_0.JPEG: is 5000 x 5000, expected 64 x 64")


def test_an_altered_jpeg_of_a_known_class_is_refused(small_tiny, tmp_path, monkeypatch):
    """It decodes, has the right size and hangs no reader: only the digest tells."""
    know_digests(small_tiny, monkeypatch)
    folder = small_tiny.folder(tmp_path)
    assert load("tinyimagenet", data_root=folder, offline=True).info["official"]
    pictures = sorted((folder / "train/n02124075/images").iterdir())
    pictures[0].write_bytes(pictures[1].read_bytes())
    fails("tinyimagenet", folder, "JPEG files of n02124075", "were altered")


# --- P61: no pickle ---------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_batch_runs_nothing(small_cifar, tmp_path, protocol):
    target = tmp_path / "escaped"
    folder = small_cifar.cifar_folder(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Payload(target)}, protocol))
    fails("cifar10", tmp_path, "data_batch_2")
    assert not target.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("name", ["builtins eval", "numpy core.multiarray._reconstruct", "os system", "numpy load"])
def test_only_the_three_names_of_a_batch_are_known(small_cifar, tmp_path, protocol, name):
    """Dotted names too: protocol 4 would walk attributes."""
    module, attribute = name.split()
    folder = small_cifar.cifar_folder(tmp_path)
    packed = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute)) + b"\x93"
    old = f"c{module}\n{attribute}\n".encode()
    (folder / "test_batch").write_bytes(bytes([0x80, protocol]) + (packed if protocol == 4 else old) + b")R.")
    fails("cifar10", tmp_path, "test_batch", attribute, "hostile")


def test_an_npz_with_objects_is_refused_unread(small_mnist, tmp_path):
    target = tmp_path / "escaped"
    hostile = np.empty(40, dtype=object)
    hostile[:] = [Payload(target)] * 40
    np.savez(tmp_path / "mnist.npz", **{**small_mnist.arrays(), "y_train": hostile})
    fails("mnist", tmp_path, "y_train holds |O, expected integers")
    assert not target.exists()


# --- P62: headers buy no memory ---------------------------------------------------------------------------------------


@pytest.fixture
def little_memory():
    """Address space for 1 GB more than now: a believed header then fails loudly, and is told from a refused one."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to know how much memory is in use")
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-40,), }\n",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (40,), }\n",
        "{'descr': '|O', 'fortran_order': False, 'shape': (40,), }\n",
        "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (40,), }\n",
        "{'shape': (40,)}\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 80 + ",), }\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4 0,), }\n",
        "(" * 9000,
        "[" * 20000,
    ],
    ids=["1e12", "overflow", "negative", "short", "object", "void", "no dtype", "1e80", "blank", "nested", "long"],
)
def test_an_absurd_npy_header_is_refused_before_memory_is_asked_for(small_mnist, tmp_path, header, little_memory):
    path = small_mnist.npz(tmp_path)
    whole = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            body = npy(header, bytes(40)) if info.filename == "y_train.npy" else old.read(info)
            new.writestr(info.filename, body)
    assert "allocate" not in fails("mnist", tmp_path, "mnist.npz: its y_train", "expected" if header[0] != "{" else "")


def test_an_idx_header_that_claims_terabytes_is_refused(small_mnist, tmp_path, little_memory):
    path = small_mnist.idx(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12)
    fails("mnist", tmp_path, "holds 4294967295 x 4294967295 x 4294967295 values, expected 40 x 28 x 28")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # memo slot 2 ** 31: the C unpickler would allocate 32 GB
        b"\x80\x02T\xff\xff\xff\x7fx.",  # a string of 2 GB in a file of 10 bytes
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".",
        b"\x80\x02" + b"(" * 2_000_000,
    ],
    ids=["memo", "string", "bytes8", "marks"],
)
def test_a_pickle_cannot_ask_for_more_memory_than_it_has_bytes(small_cifar, tmp_path, content, little_memory):
    folder = small_cifar.cifar_folder(tmp_path)
    (folder / "data_batch_1").write_bytes(content)
    assert "MemoryError" not in fails("cifar10", tmp_path, "data_batch_1")


# --- P63: archives ----------------------------------------------------------------------------------------------------


def bomb(size: int) -> bytes:
    """gzip of `size` zeros."""
    return gzip.compress(bytes(2**20), 9, mtime=0) * (size >> 20)


def test_a_gzip_bomb_costs_no_more_than_an_honest_file(small_mnist, tmp_path, little_memory):
    path = small_mnist.idx(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + struct.pack(">III", 40, 28, 28), mtime=0) + bomb(2**32))
    fails("mnist", tmp_path, "goes on after 31360 bytes")


def test_a_tar_bomb_stops_at_the_cap(small_cifar, tmp_path, monkeypatch, little_memory):
    monkeypatch.setattr(cifar, "_MAX_TAR_BYTES", 2**23)
    path = small_cifar.cifar_archive(tmp_path)
    path.write_bytes(path.read_bytes() + bomb(2**26))
    fails("cifar10", tmp_path, "unpacks to more than 8 MB")


def test_a_zip_bomb_in_a_jpeg_is_refused_by_its_claim(small_tiny, tmp_path):
    name = "val/images/val_0.JPEG"
    small_tiny.files[name] = bytes(2**27)
    small_tiny.zip(tmp_path / "tiny-imagenet-200.zip")
    fails("tinyimagenet", tmp_path, "val_0.JPEG: claims 134217728 bytes")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "C:escaped"])
def test_a_zip_with_members_that_point_outside_is_refused_and_writes_nothing(small_tiny, tmp_path, name):
    path = tmp_path / "tiny-imagenet-200.zip"
    small_tiny.zip(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    fails("tinyimagenet", tmp_path, "points outside")
    assert [found.name for found in tmp_path.rglob("*")] == [path.name]


def test_a_zip_with_two_members_of_one_name_is_refused(small_tiny, tmp_path):
    path = small_tiny.zip(tmp_path / "tiny-imagenet-200.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("tiny-imagenet-200/wnids.txt", b"n02124075\n")
    fails("tinyimagenet", tmp_path, "two members 'tiny-imagenet-200/wnids.txt'")


@pytest.mark.parametrize("kind", ["link", "hardlink", "device"])
def test_a_tar_whose_batch_is_a_link_or_device_is_refused(small_cifar, tmp_path, kind):
    import tarfile

    flag = {"link": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}[kind]
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.type, info.linkname = flag, "/etc/passwd"
        archive.addfile(info)
    fails("cifar10", tmp_path, "data_batch_1 is no ordinary file")


def test_a_tar_with_thousands_of_members_is_refused(tmp_path, small_cifar):
    import tarfile

    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        for i in range(200):
            archive.addfile(tarfile.TarInfo(f"x{i}"))
    fails("cifar10", tmp_path, "more than 64 members")
