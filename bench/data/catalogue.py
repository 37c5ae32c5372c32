"""What is known about each data set before a file is touched: shape, statistics, checksums, where to get it.

Torch-free. Checksums are sha256 of decoded arrays as C-contiguous uint8 bytes (images [N, H, W] or [N, H, W, C] in RGB,
labels [N]) in the official order, so they do not depend on the container. `digest` is the same for any order: sha256
over the sorted sha256 of (image bytes, label byte). Means and stds are of the training images in [0, 1], over all
pixels of a channel; tests/bench/data/test_real_data.py recomputes them (TinyImageNet's are those that public loaders
quote for all 200 classes; the 19 at hand agree to 0.02).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from .errors import UnknownDatasetError


@dataclass(frozen=True)
class Sums:
    """Checksums of one split: of the images and labels in the official order, and order-free over pairs."""

    images: str
    labels: str
    digest: str


@dataclass(frozen=True)
class Entry:
    """One data set of the catalogue."""

    name: str
    title: str  # as tables and messages print it
    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    n_train: int
    n_test: int
    n_val: int  # images of the training split that are held out for tuning
    source: str
    licence: str
    levels: int = 256
    train: Sums | None = None  # None: made here, or no official checksum is known
    test: Sums | None = None
    by_hand: str = ""  # how to get it without a download; {there} becomes the folder

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W) for grey images, (H, W, 3) for colour: the layout that is hashed."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)

    @property
    def embedded(self) -> bool:
        """Whether it comes with the suite, no file to find."""
        return self.name in ("digits", "synthetic")


_ENTRIES = (
    Entry(
        name="digits",
        title="Digits",
        channels=1,
        height=8,
        width=8,
        classes=10,
        mean=(0.30539,),
        std=(0.37598,),
        n_train=1437,
        n_test=360,
        n_val=144,
        levels=17,
        source="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (UCI, 1998), its test set as in "
        "scikit-learn's load_digits",
        licence="CC BY 4.0",
    ),
    Entry(
        name="mnist",
        title="MNIST",
        channels=1,
        height=28,
        width=28,
        classes=10,
        mean=(0.13066,),
        std=(0.30811,),
        n_train=60_000,
        n_test=10_000,
        n_val=5_000,
        source="Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits",
        licence="generally given as CC BY-SA 3.0",
        train=Sums(
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "54e1ab866c9484947dd4821c52bb7a43938f555d6b046be6af55247f8e6ffc64",
        ),
        test=Sums(
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
            "97b756d55950f1841ebd48df7379b9b2fc87a10d63e08d6213dad41d564e8508",
        ),
        by_hand="put mnist.npz (Keras layout) or train-images-idx3-ubyte.gz and its three companions {there}",
    ),
    Entry(
        name="fashion_mnist",
        title="Fashion-MNIST",
        channels=1,
        height=28,
        width=28,
        classes=10,
        mean=(0.28604,),
        std=(0.35302,),
        n_train=60_000,
        n_test=10_000,
        n_val=5_000,
        source="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST (2017), github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        train=Sums(
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "fb88a2f5c1b590c907f860b47803d006e4fa7b276cdb551799af9d443accdff7",
        ),
        test=Sums(
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
            "0b381379398a0943a88bf3864ff3f5177903dcf178030b4b74c495294b38fa7c",
        ),
        by_hand="put fashion_mnist.npz (Keras layout) or, in a folder FashionMNIST/raw, train-images-idx3-ubyte.gz "
        "and its three companions {there}",
    ),
    Entry(
        name="cifar10",
        title="CIFAR-10",
        channels=3,
        height=32,
        width=32,
        classes=10,
        mean=(0.49140, 0.48216, 0.44653),
        std=(0.24703, 0.24349, 0.26159),
        n_train=50_000,
        n_test=10_000,
        n_val=5_000,
        source="A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images (2009)",
        licence="none stated; customary use with citation of the technical report",
        train=Sums(
            "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
        ),
        test=Sums(
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
            "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
        ),
        by_hand="put cifar10.npz (Keras layout), cifar-10-python.tar.gz or its folder cifar-10-batches-py {there}",
    ),
    Entry(
        name="tinyimagenet",
        title="TinyImageNet",
        channels=3,
        height=64,
        width=64,
        classes=200,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        n_train=100_000,
        n_test=10_000,
        n_val=10_000,
        source="Stanford CS231n: Tiny ImageNet (2015), drawn from ImageNet; its validation images are the test split",
        licence="ImageNet's terms: non-commercial research and education",
        by_hand="torchvision has no such set: fetch cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB) and put the "
        "zip, or the folder tiny-imagenet-200 that it holds, {there}",
    ),
    Entry(
        name="synthetic",
        title="Synthetic",
        channels=1,
        height=8,
        width=8,
        classes=4,
        mean=(0.37645,),
        std=(0.23609,),
        n_train=512,
        n_test=128,
        n_val=52,
        source="generated (bench/data/embedded.py), for tests",
        licence="as the suite",
    ),
)
_BY_NAME = {entry.name: entry for entry in _ENTRIES}


def names() -> tuple[str, ...]:
    """Every data set, the default first."""
    return tuple(_BY_NAME)


def all_entries() -> tuple[Entry, ...]:
    """The whole catalogue."""
    return _ENTRIES


def entry(name: str) -> Entry:
    """The catalogue's entry.

    Raises:
        UnknownDatasetError: no such data set; the message suggests one and lists all.
    """
    if name not in _BY_NAME:
        close = difflib.get_close_matches(str(name), _BY_NAME, n=1)
        suggestion = f'; did you mean "{close[0]}"?' if close else ""
        raise UnknownDatasetError(f'no data set "{name!s:.40}"{suggestion} (there are {", ".join(_BY_NAME)})')
    return _BY_NAME[name]
