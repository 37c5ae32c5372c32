"""What the three distance-net methods share: building, schedules, certificates, surrogates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from bench import Bound, DataSpec, Eps, Method, Step

from .certificates import certified_radius, interval_bound, lipschitz_bound
from .nets import DistNet, Smoothed
from .recipes import DistRecipe
from .training import build_optimizer, set_schedule

# At p = inf an input gradient touches one pixel per logit; at these p it touches many. No single p is safe to
# rely on, and both are on the coarse grid that kernels serve fastest.
SURROGATE_P = (98.0, 34.0)


def as_dist_net(net: nn.Module) -> DistNet:
    """The net as what it is; anything else is a caller's mistake."""
    if not isinstance(net, DistNet):
        raise ValueError(f"net is a {type(net).__name__}; a DistNet is needed")
    return net


class DistMethod(Method):
    """A distance net; subclasses give the recipes and the objective."""

    learns_scale = False  # only the scaled cross-entropy reaches the net's scale; elsewhere it stays 1, frozen

    def build(self, data: DataSpec, recipe: DistRecipe) -> nn.Module:
        net = DistNet(data, recipe)
        net.scale.requires_grad_(self.learns_scale)
        return net

    def optimizer(self, net: nn.Module, recipe: DistRecipe) -> torch.optim.Optimizer:
        return build_optimizer(as_dist_net(net), recipe)

    def schedule(self, net: nn.Module, step: Step) -> Mapping[str, float]:
        return set_schedule(as_dist_net(net), step)

    def finish(self, net: nn.Module, recipe: DistRecipe, batches: Callable[[], Iterable[Tensor]]) -> None:
        as_dist_net(net).set_p(math.inf)
        as_dist_net(net).set_matmul("")
        if recipe.estimate_means:
            as_dist_net(net).estimate_means(batches())

    def margin_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> Bound:
        return interval_bound(as_dist_net(net), x, y, eps)

    def margin_bounds(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> list[Bound]:
        bounds = [self.margin_bound(net, x, y, eps)]
        if as_dist_net(net).head is None:
            bounds.append(lipschitz_bound(as_dist_net(net), x, y, eps))
        return bounds

    def radius(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return certified_radius(as_dist_net(net), x, y)

    def attack_models(self, net: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        for p in SURROGATE_P:
            yield f"p{p:g}", Smoothed(as_dist_net(net), p)


def theta(net: DistNet, step: Step) -> float:
    """The wanted margin 2 * eps_now in the net's normalised units."""
    return 2.0 * step.eps_now / net.normalize.scalar_std
