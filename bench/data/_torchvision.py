"""The one module that imports torchvision: where the official archives lie, and their MD5s.

Reading needs no torchvision. With a CPU-only torch the index's wheel of torchvision cannot be imported as it is
("operator torchvision::nms does not exist", pytorch/vision #9077): its operators live in a library that links CUDA, and
its fake kernels are then registered for operators that were never defined. `torchvision_datasets` defines their schemas
first, and only after a plain import has failed, because defining them twice breaks a working one.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[Any] = []  # torch.library forgets definitions when the Library object dies


def torchvision_datasets() -> Any:
    """The module `torchvision.datasets`.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{operator}{_SCHEMA}")
            _kept.append(library)
    return importlib.import_module("torchvision.datasets")


def archives(name: str) -> list[tuple[str, list[str], str]]:
    """(file name, addresses, MD5) of every archive of mnist, fashion_mnist or cifar10, as torchvision has them."""
    datasets = torchvision_datasets()
    if name == "cifar10":
        return [(datasets.CIFAR10.filename, [datasets.CIFAR10.url], datasets.CIFAR10.tgz_md5)]
    source = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}[name]
    return [(file, [mirror + file for mirror in source.mirrors], md5) for file, md5 in source.resources]
