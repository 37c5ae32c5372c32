"""Adversarial training (arXiv 1706.06083): cross-entropy at the point a projected gradient ascent finds in the ball.

No certificate of its own; certified afterwards like every ReLU net, so that its row is honest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Losses, Recipe, Step, bounded, register

from .nets import NetRecipe, ReluNet
from .relu import ReluMethod, as_relu_net, clean_losses
from .standard import paper_sized, quick_sized


@dataclass(frozen=True, kw_only=True)
class PgdRecipe(NetRecipe):
    """Hyper-parameters of adversarial training."""

    attack_steps: int = bounded(10, 1, 1000)
    attack_step: float = bounded(0.25, 0.0, 2.0, open_low=True)  # size of a step, in radii


@register
class Pgd(ReluMethod):
    name, title, paper = "pgd", "PGD training", None

    def recipes(self) -> Iterator[Recipe]:
        base = PgdRecipe(
            dataset="mnist", eps="0.3", preset="quick", lr=5e-4, lr_schedule="step", lr_decay=0.2, source="ours",
        )  # fmt: skip
        for recipe in paper_sized(base):
            grey = recipe.dataset in ("mnist", "fashion_mnist")
            steps, size = (40, 1 / 30) if grey else (10, 0.25)
            source = f"attack of arXiv 1706.06083 ({steps} steps), net and schedule ours"
            yield replace(recipe, attack_steps=steps, attack_step=size, source=source)
        quick = replace(base, lr=1e-3, lr_schedule="cosine", batch_size=128, attack_steps=7, attack_step=0.35)
        for recipe in quick_sized(quick):
            yield replace(recipe, eps_ramp=(0.0, recipe.epochs / 3))

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        if step.eps_now == 0:
            return clean_losses(as_relu_net(net)(x), y)
        return clean_losses(as_relu_net(net)(worst_point(as_relu_net(net), x, y, step)), y)


def worst_point(net: ReluNet, x: Tensor, y: Tensor, step: Step) -> Tensor:
    """A point of the ball of radius eps_now where the cross-entropy is large, [B, C, H, W].

    Sign steps from a uniform start, projected onto ball and [0, 1]. The attacked net is in eval mode: its batch norm
    must not see attack iterates.
    """
    radius = float(step.eps_now)
    lower, upper = (x - radius).clamp(min=0.0), (x + radius).clamp(max=1.0)  # trains only; certificates use threat.box
    point = lower + torch.rand(x.shape, generator=step.generator, device=x.device) * (upper - lower)
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        for _ in range(step.recipe.attack_steps):
            point = point.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(functional.cross_entropy(net(point), y), point)
            moved = point.detach() + step.recipe.attack_step * radius * slope.sign()
            point = torch.minimum(torch.maximum(moved, lower), upper)
    finally:
        for module, training in modes:
            module.training = training
    return point.detach()
