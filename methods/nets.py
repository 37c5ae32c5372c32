"""ReLU networks of the baselines, with the layers that interval and linear bounds know how to pass.

A `ReluNet` is normalisation plus one `nn.Sequential` of: Conv2d, Linear, BatchNorm, ReLU, AvgPool2d, Flatten, and the
two containers below for residual and dense blocks; the last layer is a Linear. Whatever is built from these can be
trained and certified by every ReLU method of the suite.

Sources: DM-small, -medium, -large arXiv 1810.12715; CNN7 with BN, ResNeXt, DenseNet, WideResNet as in the examples of
auto_LiRPA (arXiv 2002.12920); BN after every layer arXiv 2103.17268. Operation counts are pinned by
tests/methods/test_nets.py; baselines.md 0.2 says which of them equal the papers' tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from bench import DataSpec, Recipe, bounded

# Means and stds as every ReLU baseline's code has them; CIFAR-10's stds are not the pixel stds (about 0.247), eps is
# divided by them, so do not "mend" them. Grey data sets are not normalised.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}


class Normalize(nn.Module):
    """(x - mean_c) / std_c with one value per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Buffers, not Python scalars: dividing by a scalar may become a product with its reciprocal on a GPU.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> the same
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """main(x) + skip(x)."""

    def __init__(self, main: nn.Sequential, skip: nn.Sequential) -> None:
        super().__init__()
        self.main, self.skip = main, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


class Concat(nn.Module):
    """Channels of branch(x), then those of x."""

    def __init__(self, branch: nn.Sequential) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch(x), x], 1)


class ReluNet(nn.Module):
    """Normalisation and a stack of layers; see the module's docstring for what may be in it.

    Raises:
        ValueError: the stack does not end in a Linear layer, which certificates merge with the class difference.
    """

    def __init__(self, normalize: Normalize | None, layers: nn.Sequential) -> None:
        super().__init__()
        if not isinstance(layers[-1], nn.Linear):
            raise ValueError(f"the last layer is a {type(layers[-1]).__name__}; a ReluNet ends in nn.Linear")
        self.normalize: nn.Module = normalize or nn.Identity()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, K]
        logits: Tensor = self.layers(self.normalize(x))
        return logits

    @property
    def body(self) -> list[nn.Module]:
        """Everything between normalisation and the last layer."""
        return list(self.layers)[:-1]

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        return last

    def has_batch_norm(self) -> bool:
        """Whether a training pass needs clean batch statistics."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())


@dataclass(frozen=True, kw_only=True)
class NetRecipe(Recipe):
    """Recipe fields that choose a ReLU network."""

    arch: str = "dm_small"  # a key of ARCHITECTURES
    width: int = bounded(0, 0, 4096)  # channels of the first convolution; 0 = the architecture's own
    hidden: tuple[int, ...] = ()  # units of the dense layers before the last; () = the architecture's own
    init: str = field(default="torch", metadata={"choices": ("torch", "ibp")})  # ibp: arXiv 2103.17268

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"recipe arch = {self.arch!r}; choose one of {', '.join(ARCHITECTURES)}")


def build_net(data: DataSpec, recipe: NetRecipe) -> ReluNet:
    """The recipe's network for a data set; initial weights come from torch's global generator."""
    constants = NORMALISATION.get(data.name)
    net = ReluNet(Normalize(*constants) if constants else None, ARCHITECTURES[recipe.arch](data, recipe))
    if recipe.init == "ibp":
        ibp_init(net)
    return net


def ibp_init(net: ReluNet) -> None:
    """N(0, 2 pi / fan_in^2) for every weight but the last layer's: interval widths then neither grow nor shrink.

    |W| sums fan_in half-normals of mean sigma * sqrt(2 / pi), and a ReLU halves the width: sigma = sqrt(2 pi) / fan_in
    gives 1. Batch norm and the last layer keep their start. Source: arXiv 2103.17268, section 4.1. (Its halving after
    residual additions is not done: the suite uses this start for chains only.)
    """
    weights = [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m is not net.head]
    for weight in weights:
        fan_in = weight[0].numel()
        nn.init.normal_(weight, 0.0, math.sqrt(2 * math.pi) / fan_in)


# --- architectures ----------------------------------------------------------------------------------------------------

Conv = tuple[int, int, int, int]  # channels in units of the width, kernel, stride, padding


def _chain(
    data: DataSpec,
    recipe: NetRecipe,
    convs: tuple[Conv, ...],
    width: int,
    hidden: tuple[int, ...],
    norm: str = "none",
) -> nn.Sequential:
    """Convolutions, flatten, dense layers, ReLU after each; batch norm after "none", the "convs" or "all" of them."""
    width, hidden = recipe.width or width, recipe.hidden or hidden
    layers: list[nn.Module] = []
    channels, height, wide = data.channels, data.height, data.width
    for units, kernel, stride, padding in convs:
        layers.append(nn.Conv2d(channels, units * width, kernel, stride, padding))
        channels = units * width
        height, wide = ((side + 2 * padding - kernel) // stride + 1 for side in (height, wide))
        if height < 1 or wide < 1:
            raise ValueError(f"arch {recipe.arch} is too deep for {data.height}x{data.width} images of {data.name}")
        layers += [nn.BatchNorm2d(channels)] if norm != "none" else []
        layers.append(nn.ReLU())
    layers.append(nn.Flatten())
    size = channels * height * wide
    for units in hidden:
        layers.append(nn.Linear(size, units))
        layers += [nn.BatchNorm1d(units)] if norm == "all" else []
        layers.append(nn.ReLU())
        size = units
    return nn.Sequential(*layers, nn.Linear(size, data.classes))


def _resnext(data: DataSpec, recipe: NetRecipe) -> nn.Sequential:
    """ResNeXt of loss fusion's TinyImageNet runs: three stages of two blocks, cardinality 2, group width 8, 16, 32."""
    cardinality, group = 2, recipe.width or 8
    layers: list[nn.Module] = [nn.Conv2d(data.channels, 16, 3, 1, 1), nn.ReLU()]
    channels, side = 16, _side(data)
    for stage in range(3):
        inner = cardinality * group * 2**stage
        for block in range(2):
            stride = 2 if stage and not block else 1
            main = nn.Sequential(
                nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner), nn.ReLU(),
                nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality), nn.ReLU(),
                nn.Conv2d(inner, 2 * inner, 1),
            )  # fmt: skip
            layers += [Residual(main, _projection(channels, 2 * inner, stride)), nn.ReLU()]
            channels, side = 2 * inner, (side - 1) // stride + 1
    return nn.Sequential(*layers, *_dense_end(data, recipe, channels * side * side, 512))


def _densenet(data: DataSpec, recipe: NetRecipe) -> nn.Sequential:
    """DenseNet of loss fusion's TinyImageNet runs: blocks of 2, 4, 4 bottlenecks, growth 32, halving transitions."""
    growth, blocks = recipe.width or 32, (2, 4, 4)
    channels, side = 2 * growth, _side(data)
    layers: list[nn.Module] = [nn.Conv2d(data.channels, channels, 3, 1, 1)]
    for stage, count in enumerate(blocks):
        for _ in range(count):
            layers.append(
                Concat(
                    nn.Sequential(
                        nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1),
                        nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, 1, 1),
                    )
                )
            )  # fmt: skip
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < len(blocks) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels, side = channels // 2, side // 2
    return nn.Sequential(*layers, *_dense_end(data, recipe, channels * side * side, 512))


def _wide_resnet(data: DataSpec, recipe: NetRecipe) -> nn.Sequential:
    """WRN-10-10 of loss fusion's TinyImageNet runs: one pre-activation block in each of three stages, 7 x 7 pooling."""
    factor = recipe.width or 10
    layers: list[nn.Module] = [nn.Conv2d(data.channels, 16, 3, 1, 1)]
    channels, side = 16, _side(data)
    for out, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
        main = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, out, 3, 1, 1),
            nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, stride, 1),
        )  # fmt: skip
        layers.append(Residual(main, _projection(channels, out, stride)))
        channels, side = out, (side - 1) // stride + 1
    pool = min(7, side)
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AvgPool2d(pool), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels * (side // pool) ** 2, data.classes))


def _side(data: DataSpec) -> int:
    if data.height != data.width:
        raise ValueError(f"images of {data.height} x {data.width}: this architecture is for square ones; use a cnn7_*")
    return data.height


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """A 1 x 1 convolution where shapes differ, nothing where they agree."""
    return nn.Sequential() if stride == 1 and c_in == c_out else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride))


def _dense_end(data: DataSpec, recipe: NetRecipe, size: int, units: int) -> Iterator[nn.Module]:
    units = recipe.hidden[0] if recipe.hidden else units
    yield from (nn.Flatten(), nn.Linear(size, units), nn.ReLU(), nn.Linear(units, data.classes))


_SMALL: tuple[Conv, ...] = ((1, 4, 2, 1), (2, 4, 2, 1))
_DM_SMALL: tuple[Conv, ...] = ((1, 4, 2, 0), (2, 4, 1, 0))
_DM_MEDIUM: tuple[Conv, ...] = ((1, 3, 1, 0), (1, 4, 2, 0), (2, 3, 1, 0), (2, 4, 2, 0))
_CNN7: tuple[Conv, ...] = ((1, 3, 1, 1), (1, 3, 1, 1), (2, 3, 2, 1), (2, 3, 1, 1), (2, 3, 1, 1))
_CNN7_IMAGENET: tuple[Conv, ...] = (*_CNN7[:4], (2, 3, 2, 1))

ARCHITECTURES: dict[str, Callable[[DataSpec, NetRecipe], nn.Sequential]] = {
    "mlp": partial(_chain, convs=(), width=0, hidden=(256, 256)),
    "conv_small": partial(_chain, convs=_SMALL, width=16, hidden=(100,)),
    "conv_small_bn": partial(_chain, convs=_SMALL, width=16, hidden=(100,), norm="all"),
    "dm_small": partial(_chain, convs=_DM_SMALL, width=16, hidden=(100,)),
    "dm_small_bn": partial(_chain, convs=_DM_SMALL, width=16, hidden=(100,), norm="all"),
    "dm_medium": partial(_chain, convs=_DM_MEDIUM, width=32, hidden=(512, 512)),
    "dm_large": partial(_chain, convs=_CNN7, width=64, hidden=(512,)),
    "cnn7_bn": partial(_chain, convs=_CNN7, width=64, hidden=(512,), norm="convs"),
    "cnn7_bn_all": partial(_chain, convs=_CNN7, width=64, hidden=(512,), norm="all"),
    "cnn7_bn_imagenet": partial(_chain, convs=_CNN7_IMAGENET, width=64, hidden=(512,), norm="convs"),
    "cnn7_bn_all_imagenet": partial(_chain, convs=_CNN7_IMAGENET, width=64, hidden=(512,), norm="all"),
    "resnext": _resnext,
    "densenet": _densenet,
    "wide_resnet": _wide_resnet,
}
