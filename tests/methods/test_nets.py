"""Networks of the ReLU methods: operation counts of the papers' tables, shapes, the start for interval training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bench import DataSpec
from bench.flops import count_ops
from methods.nets import ARCHITECTURES, Concat, NetRecipe, Normalize, ReluNet, Residual, build_net

MNIST = DataSpec("mnist", 1, 28, 28, 10, (0.13,), (0.31,))
CIFAR = DataSpec("cifar10", 3, 32, 32, 10, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
TINY56 = DataSpec("tinyimagenet", 3, 56, 56, 200, (0.48, 0.45, 0.4), (0.23, 0.23, 0.23))
TINY64 = DataSpec("tinyimagenet", 3, 64, 64, 200, (0.48, 0.45, 0.4), (0.23, 0.23, 0.23))


def recipe(arch: str, **fields: object) -> NetRecipe:
    return NetRecipe(dataset="mnist", eps="0.1", preset="quick", source="test", arch=arch, **fields)  # type: ignore[arg-type]


# Multiply-accumulates, exact; beside it what the papers print (baselines.md 0.2).
COUNTS = [
    ("dm_large", MNIST, 114_456_576),  # 114M
    ("dm_large", CIFAR, 150_672_384),  # 151M
    ("cnn7_bn", CIFAR, 150_672_384),  # 151M: batch norm counts nothing
    ("cnn7_bn_all", CIFAR, 150_672_384),
    ("dm_medium", MNIST, 6_237_312),
    ("dm_medium", CIFAR, 9_367_936),
    ("dm_small", MNIST, 1_183_464),
    ("dm_small", CIFAR, 1_814_248),
    ("conv_small", MNIST, 609_384),  # the paper's 0.41M needs 3 x 3 kernels, its code has 4 x 4
    ("cnn7_bn", TINY56, 461_520_896),  # the paper's 458M is neither this
    ("cnn7_bn_imagenet", TINY56, 336_281_600),  # nor this, the net of its code
    ("cnn7_bn_all_imagenet", TINY64, 439_193_600),
    ("resnext", TINY56, 62_471_168),  # 64M counts biases and batch norm too
    ("densenet", TINY56, 567_492_608),  # 575M likewise
    ("wide_resnet", TINY56, 5_220_170_752),  # 5.22G
    ("densenet", CIFAR, 185_275_392),
]


@pytest.mark.parametrize(("arch", "data", "wanted"), COUNTS, ids=[f"{a}-{d.name}{d.height}" for a, d, _ in COUNTS])
def test_operations_are_those_of_the_tables(arch: str, data: DataSpec, wanted: int) -> None:
    with torch.device("meta"):
        net = build_net(data, recipe(arch))
    assert count_ops(net, data) == wanted


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_maps_images_to_logits(arch: str) -> None:
    data = DataSpec("mnist", 1, 20, 20, 7, (0.1,), (0.3,))
    width = {"resnext": 2, "wide_resnet": 1}.get(arch, 4)
    net = build_net(data, recipe(arch, width=width, hidden=(8,))).eval()
    assert net(torch.rand(3, 1, 20, 20)).shape == (3, 7)


def test_a_net_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="ends in nn"):
        ReluNet(None, nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()))


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="arch = 'vgg'"):
        recipe("vgg")


def test_an_architecture_too_deep_for_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match="too deep for 8x8"):
        build_net(DataSpec("digits", 1, 8, 8, 10, (0.3,), (0.3,), 17), recipe("dm_small"))


def test_every_channel_has_its_own_mean_and_deviation() -> None:
    out = Normalize((0.1, 0.2, 0.4), (1.0, 2.0, 4.0))(torch.full((1, 3, 1, 1), 0.9)).flatten()
    assert torch.allclose(out, torch.tensor([0.8 / 1.0, 0.7 / 2.0, 0.5 / 4.0]))


def test_colour_images_are_normalised_and_grey_ones_are_not() -> None:
    assert isinstance(build_net(CIFAR, recipe("conv_small")).normalize, Normalize)
    assert isinstance(build_net(MNIST, recipe("conv_small")).normalize, nn.Identity)


def test_ibp_start_keeps_the_mean_reach_of_boxes() -> None:
    """Under torch's own start the mean reach grows by a factor at every layer; under this one it stays within a few."""
    from methods import box

    torch.manual_seed(0)
    growth = {}
    for init in ("torch", "ibp"):
        net = build_net(MNIST, recipe("dm_large", width=16, hidden=(64,), init=init))
        with torch.no_grad():
            passed = box.run(net, torch.rand(4, 1, 28, 28) * 0.2 + 0.4, 0.01)
        growth[init] = float(passed.flow.box()[1].mean()) / 0.01
    assert 0.3 < growth["ibp"] < 3
    assert growth["torch"] > 10 * growth["ibp"]


def test_ibp_start_leaves_the_last_layer_alone() -> None:
    torch.manual_seed(0)
    plain = build_net(MNIST, recipe("mlp")).head.weight
    torch.manual_seed(0)
    started = build_net(MNIST, recipe("mlp", init="ibp"))
    assert torch.equal(plain, started.head.weight)
    first = started.layers[1].weight
    assert isinstance(first, torch.Tensor)
    assert float(first.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 784, rel=0.02)


def test_blocks_compute_sum_and_concatenation() -> None:
    x = torch.randn(2, 3, 4, 4)
    main = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert torch.equal(Residual(main, nn.Sequential())(x), main(x) + x)
    assert torch.equal(Concat(main)(x), torch.cat([main(x), x], 1))


@pytest.mark.parametrize("arch", ["resnext", "densenet", "wide_resnet"])
def test_architectures_for_square_images_say_so(arch):
    data = DataSpec("oblong", 3, 32, 24, 5, (0.5,) * 3, (0.2,) * 3)
    recipe = NetRecipe(dataset="oblong", eps="0.1", preset="quick", source="test", arch=arch, width=2)
    with pytest.raises(ValueError, match="32 x 24: this architecture is for square"):
        build_net(data, recipe)
