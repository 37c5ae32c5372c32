"""The l_inf-distance net, with or without an MLP head, and its initialisation.

Logits of a net without a head are the NEGATED last distances: close to a class centre means that class.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench import DataSpec

from .kernels import MatmulStats
from .layers import MOMENTUM, DistConv2d, DistLinear, MeanShift, Normalize

if TYPE_CHECKING:
    from .recipes import DistRecipe

# Per-channel means and ONE std per data set, as all three official repositories have them. CIFAR's
# 0.2009 is not the pixel std (about 0.247); keep it: initial weights and learning rates live in these units.
NORMALISATION: dict[str, tuple[tuple[float, ...], float]] = {
    "mnist": ((0.1307,), 0.3081),
    "fashion_mnist": ((0.2860,), 0.3520),
    "cifar10": ((0.4914, 0.4822, 0.4465), 0.2009),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), 0.2276),
}


class Head(nn.Module):
    """Linear - tanh - Linear on the distance features (arXiv 2102.05363, l_inf-dist Net+MLP).

    Weights are stored as N(0, 1) and multiplied by 1/sqrt(fan_in) when used, which changes Adam's effective step.
    """

    def __init__(self, n_in: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.randn(hidden, n_in))
        self.bias1 = nn.Parameter(torch.zeros(hidden))
        self.weight2 = nn.Parameter(torch.randn(classes, hidden))
        self.bias2 = nn.Parameter(torch.zeros(classes))

    def effective(self) -> tuple[Tensor, Tensor]:
        """The float32 weights that the deployed products see, [hidden, I] and [K, hidden]."""
        return (
            self.weight1 * (1.0 / math.sqrt(self.weight1.shape[1])),
            self.weight2 * (1.0 / math.sqrt(self.weight2.shape[1])),
        )

    def forward(self, z: Tensor) -> Tensor:  # [B, I] -> [B, K]
        w1, w2 = self.effective()
        return nn.functional.linear(torch.tanh(nn.functional.linear(z, w1, self.bias1)), w2, self.bias2)

    def count_ops(self, inputs: Tensor, output: Tensor) -> int:
        """Multiply-accumulates of both products."""
        return output.shape[0] * (self.weight1.numel() + self.weight2.numel())


class DistNet(nn.Module):
    """normalise, convolutional and dense distance layers, then either a last distance layer or an MLP head.

    Args:
        data: shape of the images. recipe: widths, convolutions, head, identity start.

    forward(x, p=None): [B, C, H, W] float32 in [0, 1] -> logits [B, K]; `p` replaces every layer's own p for this call
    (surrogates of attacks use it). `scale` is the learnable scalar of arXiv 2110.06850: it multiplies the logits inside
    the cross-entropy only, never here, so certificates do not depend on it.
    """

    def __init__(self, data: DataSpec, recipe: DistRecipe) -> None:
        super().__init__()
        mean, std = NORMALISATION.get(data.name, (data.mean, sum(data.std) / len(data.std)))
        self.normalize = Normalize(mean, std)
        self.convs = nn.ModuleList()
        channels, height, width = data.channels, data.height, data.width
        for c_out, stride in zip(recipe.conv_channels, recipe.conv_strides, strict=True):
            self.convs.append(DistConv2d(channels, c_out, stride=stride, identity=recipe.identity))
            channels, height, width = c_out, (height - 1) // stride + 1, (width - 1) // stride + 1
        sizes = [channels * height * width, *recipe.widths]
        self.dense = nn.ModuleList(
            DistLinear(n_in, n_out, identity=recipe.identity) for n_in, n_out in itertools.pairwise(sizes)
        )
        self.head: Head | None = None
        if recipe.head:
            self.head = Head(sizes[-1], recipe.head, data.classes)
        else:
            self.dense.append(DistLinear(sizes[-1], data.classes, last=True, identity=recipe.identity))
        self.scale = nn.Parameter(torch.ones(()))

    def distance_layers(self) -> Iterator[DistConv2d | DistLinear]:
        """Every distance layer, from the image on."""
        for layer in (*self.convs, *self.dense):
            assert isinstance(layer, (DistConv2d, DistLinear))
            yield layer

    def set_p(self, p: float) -> None:
        """Set the exponent of every distance layer."""
        for layer in self.distance_layers():
            layer.p = p

    def set_matmul(self, name: str) -> None:
        """Train by matrix products in the named format, "" for none, and count flagged pairs from now on."""
        for layer in self.distance_layers():
            layer.matmul, layer.stats = name, MatmulStats()

    @property
    def is_exact(self) -> bool:
        """True if every layer is the exact l_inf distance and running means are frozen: what may be certified."""
        training = any(module.training for module in self.modules())
        return not training and all(layer.p == math.inf for layer in self.distance_layers())

    def features(self, x: Tensor, p: float | None = None) -> Tensor:
        """Outputs of the last distance layer, [B, O]."""
        h = self.normalize(x)
        for layer in self.distance_layers():
            h = layer(h if isinstance(layer, DistConv2d) else h.flatten(1), p)
        return h

    def forward(self, x: Tensor, p: float | None = None) -> Tensor:
        h = self.features(x, p)
        return -h if self.head is None else self.head(h)

    def feature_bounds(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Class D bounds of features() over lower <= x <= upper (images), float32."""
        low, high = self.normalize(lower), self.normalize(upper)
        for layer in self.distance_layers():
            if isinstance(layer, DistLinear):
                low, high = low.flatten(1), high.flatten(1)
            low, high = layer.bounds(low, high)
        return low, high

    @torch.no_grad()
    def estimate_means(self, images: Iterable[Tensor]) -> None:
        """Re-estimate every running mean at the current p as the average over batches of images.

        Means follow p with a lag during training; NeurIPS 2022's repository (SortNet) re-estimates them before it
        evaluates at p = inf, which is right whenever the schedule did not rest there long enough.
        """
        shifts = [layer.offset for layer in self.distance_layers() if isinstance(layer.offset, MeanShift)]
        was_training = self.training
        self.train()
        for shift in shifts:
            shift.momentum, shift.seen = None, 0
        try:
            for x in images:
                self.features(x)
        finally:
            for shift in shifts:
                shift.momentum = MOMENTUM
            self.train(was_training)


class Smoothed(nn.Module):
    """The same weights at a finite p: input gradients touch many pixels, where at p = inf they touch one."""

    def __init__(self, net: DistNet, p: float) -> None:
        super().__init__()
        self.net, self.p = net, p

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x, self.p)
