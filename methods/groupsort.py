"""GroupSort network (arXiv 1811.05381): l_1-projected rows and sorting activations, 1-Lipschitz in l_inf by design.

Every row of a weight matrix lies in the unit l_1 ball, so a layer is 1-Lipschitz from l_inf to l_inf; MaxMin sorts
pairs and is a permutation. Projection happens after every optimiser step, the forward pass is an ordinary one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Bound, DataSpec, Eps, Losses, Method, Recipe, Step, bounded, margin, register

from .groupsort_bounds import certificates, certified_radius, interval_bound
from .lookalikes import refuse_lookalikes
from .relu import accuracy, shortened

PAPER = "cemanil/LNets, fc_classification_l_inf_margin.json; the last epoch, not the best on held-out images"


@dataclass(frozen=True, kw_only=True)
class GroupSortRecipe(Recipe):
    """Hyper-parameters of a GroupSort network."""

    widths: tuple[int, ...] = (1024, 1024, 1024)  # hidden units; even, they are sorted in pairs
    lipschitz: float = bounded(1.0, 0.0, 1e6, open_low=True)  # constant of the whole net, spread over its layers
    gap: float = bounded(0.3, 0.0, 10.0, open_low=True)  # wanted margin of the 1-Lipschitz net; 2 * radius certifies
    tight: bool = True  # project rows onto the l_1 sphere, not only into the ball
    optim: str = field(default="aggmo", metadata={"choices": ("aggmo", "adam")})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or any(w < 2 or w % 2 for w in self.widths):
            raise ValueError(f"recipe widths = {self.widths}: one or more even numbers are needed, units sort in pairs")


class MaxMin(nn.Module):
    """Consecutive pairs sorted: all maxima, then all minima. A permutation: 1-Lipschitz in every l_p."""

    def forward(self, z: Tensor) -> Tensor:  # [B, 2n] -> the same
        first, second = z[:, 0::2], z[:, 1::2]
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)


class GroupSortNet(nn.Module):
    """Flatten, then Linear times `factor`, MaxMin after all but the last; images go in as they are, in [0, 1].

    `factor` is the recipe's Lipschitz constant to the power 1 / (number of layers), once per layer, biases included.
    """

    factor: Tensor

    def __init__(self, data: DataSpec, recipe: GroupSortRecipe) -> None:
        super().__init__()
        sizes = [data.pixels, *recipe.widths, data.classes]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.sort = MaxMin()
        self.register_buffer("factor", torch.tensor(recipe.lipschitz ** (1.0 / len(self.linears))))
        for layer in self.dense_layers():
            # LNets: orthogonal weights of gain 1 / sqrt(fan_in), biases uniform within the same.
            reach = layer.in_features**-0.5
            nn.init.orthogonal_(layer.weight, gain=reach)
            nn.init.uniform_(layer.bias, -reach, reach)

    def dense_layers(self) -> Iterator[nn.Linear]:
        """The linear layers, from the image on."""
        for layer in self.linears:
            assert isinstance(layer, nn.Linear)
            yield layer

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, K]
        z = x.flatten(1)
        for number, layer in enumerate(self.dense_layers()):
            z = layer(self.sort(z) if number else z) * self.factor
        return z

    @torch.no_grad()
    def project(self, tight: bool) -> None:
        """Project every row of every weight matrix."""
        for layer in self.dense_layers():
            layer.weight.copy_(project_rows(layer.weight, tight))


def project_rows(weight: Tensor, tight: bool) -> Tensor:
    """Rows of [O, I] projected onto the unit l_1 ball in the Euclidean norm; `tight`: onto its sphere.

    LNets' code leaves out the test whether a row is inside already; its threshold is then negative and the row grows to
    norm 1, which keeps norms from decaying. That is `tight`.
    """
    size = weight.abs()
    sorted_, _ = size.sort(dim=1, descending=True)
    ranks = torch.arange(1, weight.shape[1] + 1, device=weight.device, dtype=weight.dtype)
    excess = (sorted_.cumsum(dim=1) - 1) / ranks  # the threshold if the k largest stay
    kept = (sorted_ > excess).sum(dim=1, keepdim=True)
    threshold = excess.gather(1, (kept - 1).clamp(min=0))  # a row of NaN keeps none: it stays NaN, and is reported
    projected = weight.sign() * (size - threshold).clamp(min=0)
    return projected if tight else torch.where(size.sum(dim=1, keepdim=True) <= 1, weight, projected)


class AggMo(torch.optim.Optimizer):
    """Aggregated momentum (arXiv 1804.00325): v_k <- beta_k v_k - gradient, theta <- theta + lr mean_k v_k."""

    def __init__(self, parameters: Iterable[Any], lr: float, betas: tuple[float, ...] = (0.0, 0.9, 0.99)) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "AggMo takes no closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                for number, beta in enumerate(group["betas"]):
                    if (name := f"velocity_{number}") not in state:
                        state[name] = torch.zeros_like(parameter)
                    velocity = state[name]
                    velocity.mul_(beta).sub_(parameter.grad)
                    parameter.add_(velocity, alpha=group["lr"] / len(group["betas"]))


@register
class GroupSort(Method):
    name, title, paper = "groupsort", "GroupSort", "anil2019groupsort"

    def recipes(self) -> Iterator[Recipe]:
        paper = GroupSortRecipe(
            dataset="mnist", eps="0.3", preset="paper", source=PAPER, epochs=200, batch_size=128, lr=0.0033,
            lr_schedule="step", lr_milestones=(60.0, 100.0, 150.0), lr_decay=0.1, lipschitz=1000.0, gap=0.3,
        )  # fmt: skip
        yield paper  # the one cell of the ICML 2021 tables; other data sets have quick recipes, which are ours
        yield shortened(paper, 60)
        yield from _quick()

    def build(self, data: DataSpec, recipe: GroupSortRecipe) -> nn.Module:
        return GroupSortNet(data, recipe)

    def optimizer(self, net: nn.Module, recipe: GroupSortRecipe) -> torch.optim.Optimizer:
        if recipe.optim == "adam":
            return torch.optim.Adam(net.parameters(), lr=recipe.lr, fused=True)
        return AggMo(net.parameters(), lr=recipe.lr)

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        logits = net(x)
        wanted = step.recipe.gap * step.recipe.lipschitz
        loss = functional.multi_margin_loss(logits, y, margin=wanted)
        satisfied = (margin(logits.detach(), y) >= wanted).float().mean()
        return Losses(loss, {"acc": accuracy(logits, y), "satisfied": satisfied})

    def after_step(self, net: nn.Module, step: Step) -> None:
        as_groupsort_net(net).project(step.recipe.tight)

    def margin_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> Bound:
        return interval_bound(as_groupsort_net(net), x, y, eps)

    def margin_bounds(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> list[Bound]:
        return certificates(as_groupsort_net(net), x, y, eps)

    def radius(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return certified_radius(as_groupsort_net(net), x, y)


def as_groupsort_net(net: nn.Module) -> GroupSortNet:
    """The net as what it is; anything else is a caller's mistake."""
    if not isinstance(net, GroupSortNet):
        raise ValueError(f"net is a {type(net).__name__}; a GroupSortNet is needed")
    refuse_lookalikes(net, (GroupSortNet, MaxMin))
    return net


# (data set, eps): what differs from the base below. The gap trades clean for certified accuracy.
_QUICK: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "0.1"): {
        "widths": (128, 128), "epochs": 60, "gap": 0.2, "lr": 5e-3,
        "source": "ours: gaps 0.2, 0.3, 0.4 compared on the validation split, n = 144: clean 90.97, certified 50.69",
    },
    ("synthetic", "0.1"): {"widths": (64,), "epochs": 10, "gap": 0.2},
    ("mnist", "0.1"): {"gap": 0.2},
    ("mnist", "0.3"): {"gap": 0.4},
    ("fashion_mnist", "0.1"): {"gap": 0.2},
    ("cifar10", "2/255"): {"gap": 0.03, "crop_pad": 2, "flip": True},
    ("cifar10", "8/255"): {"gap": 0.06, "crop_pad": 2, "flip": True},
}  # fmt: skip


def _quick() -> Iterator[GroupSortRecipe]:
    base = GroupSortRecipe(
        dataset="mnist", eps="0.1", preset="quick", source="ours: small and low-Lipschitz, not tuned for this cell",
        epochs=12, batch_size=128, lr=2e-3,
        widths=(256, 256, 256), optim="adam",
    )  # fmt: skip
    for (dataset, eps), fields in _QUICK.items():
        yield replace(base, dataset=dataset, eps=eps, **fields)
