"""Small stand-ins of the official sets, written in every accepted layout; and the real ones where they lie."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import catalogue, tinyimagenet
from bench.data.arrays import pair_digest, sha256

WNIDS = ("n02124075", "n04067472", "n04540053")  # the first three of the official list


class Small:
    """A set of the catalogue shrunk to a few images, with matching checksums; methods write it to a folder."""

    def __init__(self, name: str, n_train: int, n_test: int) -> None:
        rng = np.random.default_rng(0)
        full = catalogue.entry(name)
        self.x = {s: rng.integers(0, 256, (n, *full.image_shape), np.uint8) for s, n in self._sizes(n_train, n_test)}
        self.y = {s: np.resize(np.arange(10, dtype=np.uint8), n) for s, n in self._sizes(n_train, n_test)}
        sums = {
            s: catalogue.Sums(sha256(self.x[s]), sha256(self.y[s]), pair_digest(self.x[s], self.y[s])) for s in self.x
        }
        self.entry = dataclasses.replace(
            full, n_train=n_train, n_test=n_test, n_val=n_train // 10, train=sums["train"], test=sums["test"]
        )

    @staticmethod
    def _sizes(n_train: int, n_test: int) -> tuple[tuple[str, int], ...]:
        return ("train", n_train), ("test", n_test)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "x_train": self.x["train"],
            "y_train": self.y["train"],
            "x_test": self.x["test"],
            "y_test": self.y["test"],
        }

    def npz(self, folder: Path, *, compressed: bool = False, **changed: np.ndarray) -> Path:
        path = folder / f"{self.entry.name}.npz"
        (np.savez_compressed if compressed else np.savez)(path, **{**self.arrays(), **changed})
        return path

    def idx(self, folder: Path, *, packed: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for prefix, split in (("train", "train"), ("t10k", "test")):
            x, y = self.x[split], self.y[split]
            for kind, array in (("images-idx3-ubyte", x), ("labels-idx1-ubyte", y)):
                head = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", side) for side in array.shape)
                content = head + array.tobytes()
                target = folder / f"{prefix}-{kind}{'.gz' if packed else ''}"
                target.write_bytes(gzip.compress(content, 1, mtime=0) if packed else content)
        return folder

    def batches(self) -> dict[str, bytes]:
        """The six python batches as Python 2 wrote them: byte strings, protocol 2."""
        out = {}
        size = len(self.x["test"])
        for i in range(6):
            split, start = ("train", i * size) if i < 5 else ("test", 0)
            x = self.x[split][start : start + size].transpose(0, 3, 1, 2).reshape(size, 3072)
            y = [int(label) for label in self.y[split][start : start + size]]
            name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
            out[name] = python2_batch(np.ascontiguousarray(x), y, f"batch {i + 1}")
        return out

    def cifar_folder(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.batches().items():
            (folder / name).write_bytes(content)
        return folder

    def cifar_archive(self, folder: Path) -> Path:
        path = folder / "cifar-10-python.tar.gz"
        write_tar(path, {f"cifar-10-batches-py/{name}": content for name, content in self.batches().items()})
        return path


def python2_batch(x: np.ndarray, labels: list[int], about: str) -> bytes:
    """One CIFAR batch with the opcodes of the official files."""

    def text(words: bytes) -> bytes:
        return b"U" + bytes([len(words)]) + words

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    data = x.tobytes()
    dtype = b"cnumpy\ndtype\nq\x05(" + text(b"u1") + b"K\x00K\x01tq\x06Rq\x07"
    dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03(K\x00t" + text(b"b") + b"\x87Rq\x04"
    state = b"(K\x01" + number(len(x)) + number(3072) + b"\x86" + dtype + b"\x89T" + struct.pack("<i", len(data)) + data
    parts = b"(" + text(b"batch_label") + text(about.encode())
    parts += (
        text(b"labels") + b"](" + b"".join(number(y) for y in labels) + b"e" + text(b"data") + array + state + b"tbu."
    )
    return b"\x80\x02}q\x01" + parts


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


class SmallTiny:
    """Three classes of TinyImageNet with 3 training and 2 validation images each."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.files: dict[str, bytes] = {"wnids.txt": "".join(f"{w}\n" for w in WNIDS).encode()}
        rows = []
        for c, wnid in enumerate(WNIDS):
            for k in range(3):
                mode = "L" if k == 2 else "RGB"
                self.files[f"train/{wnid}/images/{wnid}_{k}.JPEG"] = jpeg(rng, mode)
            for k in range(2):
                number = 3 * k + c  # classes interleave, as in the official file
                self.files[f"val/images/val_{number}.JPEG"] = jpeg(rng, "RGB")
                rows.append((number, f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n"))
        self.files["val/val_annotations.txt"] = "".join(line for _, line in sorted(rows)).encode()

    def folder(self, root: Path) -> Path:
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root

    def zip(self, path: Path, *, extra: dict[str, bytes] | None = None) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {**self.files, **(extra or {})}.items():
                archive.writestr(zipfile.ZipInfo(f"tiny-imagenet-200/{name}", (2015, 1, 1, 0, 0, 0)), content)
        return path


def jpeg(rng: np.random.Generator, mode: str, side: int = 64) -> bytes:
    shape = (side, side) if mode == "L" else (side, side, 3)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(file, "JPEG", quality=60)
    return file.getvalue()


@pytest.fixture(autouse=True)
def _only_given_folders(monkeypatch, tmp_path, request):
    """No data of this machine, unless a test asks for it by its marker."""
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("BENCH_DATA", raising=False)
        monkeypatch.setenv("BENCH_HOME", str(tmp_path / "no-cache"))


def _install(monkeypatch, small):
    monkeypatch.setitem(catalogue._BY_NAME, small.entry.name, small.entry)
    return small


@pytest.fixture
def small_mnist(monkeypatch):
    return _install(monkeypatch, Small("mnist", 40, 10))


@pytest.fixture
def small_cifar(monkeypatch):
    return _install(monkeypatch, Small("cifar10", 50, 10))


@pytest.fixture
def small_tiny(monkeypatch):
    monkeypatch.setattr(tinyimagenet, "_TRAIN_PER_CLASS", 3)
    monkeypatch.setattr(tinyimagenet, "_TEST_PER_CLASS", 2)
    real = tinyimagenet.official_classes()
    monkeypatch.setattr(tinyimagenet, "official_classes", lambda: dict.fromkeys(real))
    return SmallTiny()


def _shared_unpack() -> Path:
    return Path(__file__).resolve().parents[4] / "shared" / "data" / "unpack.py"


@pytest.fixture(scope="session")
def real_root(tmp_path_factory):
    """A function: name of a set -> a folder that holds it; skips where neither $BENCH_DATA nor ../shared has it."""
    unpacked = tmp_path_factory.mktemp("real")
    given = os.environ.get("BENCH_DATA")

    def root(name: str) -> Path:
        if given:
            here = Path(given)
            if (here / f"{name}.npz").exists() or (name == "tinyimagenet" and any(here.glob("tiny-imagenet-*"))):
                return here
        if not _shared_unpack().exists():
            pytest.skip(f"needs {name}: set BENCH_DATA to a folder with {name}.npz")
        packed = {"tinyimagenet": "tiny-imagenet-19"}.get(name, name)
        subprocess.run([sys.executable, str(_shared_unpack()), str(unpacked), packed], check=True, capture_output=True)
        return unpacked

    return root
