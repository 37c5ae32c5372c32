"""Ordinary training on the clean images: what a comparable network reaches when nobody asks for a certificate.

Its certified column is what interval propagation proves about the result, usually nothing; it is measured all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bench import Losses, Recipe, Step, register

from .nets import NetRecipe
from .relu import N, ReluMethod, as_relu_net, clean_losses, shortened

RADII = {
    "mnist": ("0.1", "0.3"),
    "fashion_mnist": ("0.1",),
    "cifar10": ("2/255", "8/255", "16/255"),
    "tinyimagenet": ("1/255",),
}
# data set -> fields of the paper-sized run. No paper prints a recipe for this row; the network is CNN7 as elsewhere, so
# that what is compared are training objectives.
SIZES: dict[str, dict[str, Any]] = {
    "mnist": {"arch": "cnn7_bn", "epochs": 20, "batch_size": 256, "lr_milestones": (14.0, 18.0)},
    "fashion_mnist": {"arch": "cnn7_bn", "epochs": 20, "batch_size": 256, "lr_milestones": (14.0, 18.0)},
    "cifar10": {
        "arch": "cnn7_bn", "epochs": 160, "batch_size": 128, "lr_milestones": (120.0, 140.0), "crop_pad": 4,
        "crop_mode": "zeros", "flip": True,
    },
    "tinyimagenet": {
        "arch": "cnn7_bn_imagenet", "epochs": 80, "batch_size": 128, "lr_milestones": (61.0, 71.0), "crop_pad": 4,
        "crop_mode": "zeros", "flip": True,
    },
}  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {
    "digits": {"arch": "mlp", "epochs": 30, "lr": 3e-3},
    "synthetic": {"arch": "mlp", "hidden": (64,), "epochs": 5},
    "mnist": {"arch": "dm_small", "epochs": 5},
    "fashion_mnist": {"arch": "dm_small", "epochs": 5},
    "cifar10": {"arch": "dm_small", "epochs": 15, "crop_pad": 2, "flip": True},
}


def paper_sized(base: N) -> Iterator[N]:
    """The large runs of `base`, and the same in fewer epochs, for every data set and radius."""
    for dataset, radii in RADII.items():
        for eps in radii:
            paper = replace(base, dataset=dataset, eps=eps, preset="paper", **SIZES[dataset])
            yield paper
            yield shortened(paper, max(10, paper.epochs // 4))


def quick_sized(base: N) -> Iterator[N]:
    """The small runs of `base`."""
    for dataset, fields in QUICK.items():
        for eps in RADII.get(dataset, ("0.1",))[:2]:
            yield replace(base, dataset=dataset, eps=eps, preset="quick", **fields)


@register
class Standard(ReluMethod):
    name, title, paper = "standard", "Standard training", None

    def recipes(self) -> Iterator[Recipe]:
        base = NetRecipe(
            dataset="mnist", eps="0.1", preset="quick", source="ours: no paper prints this row", lr=5e-4,
            lr_schedule="step", lr_decay=0.2,
        )  # fmt: skip
        yield from paper_sized(base)
        yield from quick_sized(replace(base, lr=1e-3, lr_schedule="cosine", batch_size=128))

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        return clean_losses(as_relu_net(net)(x), y)
