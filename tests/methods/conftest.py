"""Small ReLU networks of every kind, images on the pixel grid, quick trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench import DataSpec, Method, Recipe, Step, registry, threat
from bench.data import Dataset, load
from bench.progress import Progress
from bench.train import make_step as loop_step
from bench.train import seed_everything, train
from methods.nets import NetRecipe, ReluNet, build_net

GREY = DataSpec("mnist", 1, 12, 12, 5, (0.13,), (0.3,))
COLOUR = DataSpec("cifar10", 3, 12, 12, 5, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
# arch: (data, width, hidden); one of each kind of layer and block, normalised and not
KINDS: dict[str, tuple[DataSpec, int, tuple[int, ...]]] = {
    "mlp": (GREY, 0, (24, 16)),
    "conv_small": (COLOUR, 4, (16,)),
    "cnn7_bn_all": (GREY, 4, (16,)),
    "resnext": (COLOUR, 2, (12,)),
    "densenet": (GREY, 4, (12,)),
    "wide_resnet": (COLOUR, 1, ()),
}


def make_net(arch: str, seed: int = 0) -> ReluNet:
    """A float32 net in eval mode, its batch norms with statistics of their own."""
    data, width, hidden = KINDS[arch]
    recipe = NetRecipe(
        dataset=data.name, eps="0.1", preset="quick", source="test", arch=arch, width=width, hidden=hidden
    )
    torch.manual_seed(seed)
    net = build_net(data, recipe)
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        for k in range(3):
            net(make_images(arch, 8, seed + k)[0])
    return net.eval()


def make_images(arch: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] on the grid of 256 levels, and labels."""
    data = KINDS[arch][0]
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (count, data.channels, data.height, data.width), generator=generator)
    return threat.levels_table(256)[levels], torch.randint(0, data.classes, (count,), generator=generator)


@pytest.fixture(params=list(KINDS))
def arch(request: pytest.FixtureRequest) -> str:
    """Every kind of network."""
    name: str = request.param
    return name


@pytest.fixture
def small_net() -> Callable[..., ReluNet]:
    """make_net(arch, seed)."""
    return make_net


@pytest.fixture
def images() -> Callable[..., tuple[Tensor, Tensor]]:
    """make_images(arch, count, seed)."""
    return make_images


@pytest.fixture(scope="session")
def trained() -> Callable[..., tuple[Method, Recipe, torch.nn.Module, Dataset]]:
    """trained(method, dataset, eps, **changes): a net trained by the suite's own loop on the quick recipe, kept."""
    kept: dict[tuple[object, ...], tuple[Method, Recipe, torch.nn.Module, Dataset]] = {}

    def work(name: str, dataset: str, eps: str, **changes: object) -> tuple[Method, Recipe, torch.nn.Module, Dataset]:
        key = (name, dataset, eps, *sorted(changes.items()))
        if key not in kept:
            method, data = registry.get(name), load(dataset)
            recipe = replace(registry.recipe(name, dataset, eps, "quick"), **changes)
            seed_everything(0, "build")
            net = method.build(data.spec, recipe)
            train(
                method,
                recipe,
                net,
                data.train,
                spec=data.spec,
                seed=0,
                eps=recipe.radius,
                store=None,
                progress=Progress(quiet=True),
            )
            kept[key] = method, recipe, net.eval(), data
        return kept[key]

    return work


@pytest.fixture
def make_step() -> Callable[..., Step]:
    """make_step(recipe, method, epoch=...): the step of the loop at this (fractional) epoch."""

    def work(recipe: Recipe, method: Method, epoch: float = 0.0) -> Step:
        generator = torch.Generator().manual_seed(0)
        return loop_step(
            recipe, method, iteration=round(epoch * 100), per_epoch=100, eps=recipe.radius, generator=generator
        )

    return work
