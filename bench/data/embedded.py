"""The two sets that need no file: `digits`, shipped as an npz, and `synthetic`, computed.

digits.npz holds the 1797 images of the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak,
UCI Machine Learning Repository 1998, CC BY 4.0) as scikit-learn's `load_digits` gives them: `images` uint8
[1797, 8, 8] with grey levels 0..16, `labels` uint8 [1797]. Exported once; a test compares it with scikit-learn's copy.
"""

from __future__ import annotations

from importlib import resources
from io import BytesIO

import numpy as np

from .arrays import Arrays, Bytes, sha256
from .catalogue import Entry, entry
from .errors import DataError
from .splits import mixed_bits, stratified

_DIGITS_SHA = (  # images, labels
    "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
)
_SYNTHETIC_SEED = 4_217


def read_embedded(name: str) -> Arrays:
    """`digits` or `synthetic`.

    Raises:
        DataError: the npz in the installed package is missing or altered; names the package and the command.
    """
    return _digits(entry(name)) if name == "digits" else _synthetic(entry(name))


def _digits(data: Entry) -> Arrays:
    file = resources.files("bench.data").joinpath("digits.npz")
    try:
        with np.load(BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            images, labels = stored["images"], stored["labels"]
        found = (sha256(images), sha256(labels))
    except Exception as error:
        raise DataError(f"digits: {file}: cannot be read ({error}); install certbench again") from error
    if found != _DIGITS_SHA:
        raise DataError(f"digits: {file}: was altered (sha256 {found[0][:12]}); install certbench again")
    train, test = stratified(labels, data.n_test)
    return Arrays(images[train], labels[train], images[test], labels[test], data.classes, train, test, official=True)


def _synthetic(data: Entry) -> Arrays:
    """Four 4x4 quadrants, the class's one bright (about 192) and the others dark (about 64), uniform noise of +-40.

    Classes lie 128 levels apart: separable with a margin at eps = 0.1, and not trivial for a net of a few neurons.
    """
    n = data.n_train + data.n_test
    labels = (np.arange(n) % data.classes).astype(np.uint8)
    images = np.full((n, data.height, data.width), 64, dtype=np.int64)
    half = data.height // 2
    for c in range(data.classes):
        top, left = half * (c // 2), half * (c % 2)
        images[labels == c, top : top + half, left : left + half] = 192
    noise = mixed_bits(np.arange(images.size, dtype=np.uint64), _SYNTHETIC_SEED) % np.uint64(81)
    images += noise.astype(np.int64).reshape(images.shape) - 40
    x: Bytes = images.astype(np.uint8)
    cut = data.n_train
    return Arrays(x[:cut], labels[:cut], x[cut:], labels[cut:], data.classes, official=True)
