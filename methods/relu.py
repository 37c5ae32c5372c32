"""What the methods on ReLU networks share: building, schedules, the interval certificate, recipes of every length.

Schedules are in epochs and tick per step. Sources: smoothed radius schedule as in auto_LiRPA and CROWN-IBP's code
(arXiv 2002.12920, 1906.06316); baselines.md 2.3 explains the units of the different repositories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Bound, DataSpec, Eps, Losses, Method, Recipe, Step, bounded, margin

from .box import Passed
from .crown import crown_ibp_bound
from .interval_net import ibp_bound
from .nets import NetRecipe, ReluNet, build_net
from .radius import certified_radius


@dataclass(frozen=True, kw_only=True)
class ReluRecipe(NetRecipe):
    """Hyper-parameters that every interval-trained ReLU net has."""

    eps_shape: str = field(default="linear", metadata={"choices": ("linear", "smoothed")})
    eps_mid: float = bounded(0.25, 0.0, 1.0, open_low=True)  # smoothed: share of the ramp that is a power, then linear
    kappa_start: float = bounded(1.0, 0.0, 1.0)  # weight of the clean cross-entropy at radius 0
    kappa_end: float = bounded(0.0, 0.0, 1.0)  # and at the full radius; in between it is linear in the radius


N = TypeVar("N", bound=NetRecipe)
R = TypeVar("R", bound=Recipe)
Q = TypeVar("Q", bound=ReluRecipe)

QUICK_SOURCE = "ours: settings of the tuned quick recipes, not tuned for this cell"  # where a recipe says no more
QUICK: dict[str, Any] = {  # what the quick recipes of the interval methods share; dataset and eps are replaced
    "dataset": "mnist", "eps": "0.1", "preset": "quick", "source": QUICK_SOURCE, "init": "ibp", "lr": 1e-3,
    "lr_schedule": "cosine", "batch_size": 128, "grad_clip": 10.0,
}  # fmt: skip
SMOOTH_POWER = 4.0  # of the first part of the smoothed ramp, in every published recipe


def smoothed(progress: float, mid: float) -> float:
    """The smoothed ramp from 0 to 1: a power up to `mid`, then the line that continues it without a kink."""
    power = SMOOTH_POWER
    alpha = 1.0 / ((1.0 - mid) * power * mid ** (power - 1) + mid**power)
    if progress < mid:
        return float(alpha * progress**power)
    rest = (progress - mid) / max(1.0 - mid, 1e-12)
    return float(alpha * mid**power * (1 - rest) + rest)


class ReluMethod(Method):
    """A method on a `ReluNet` with interval propagation as its certificate; subclasses give the objective."""

    def build(self, data: DataSpec, recipe: NetRecipe) -> nn.Module:
        return build_net(data, recipe)

    def optimizer(self, net: nn.Module, recipe: Any) -> torch.optim.Optimizer:
        """Adam in one kernel: on a CPU the ordinary one takes a fifth of an interval step of a small net."""
        return torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=recipe.lr, fused=True)

    def eps_schedule(self, recipe: Any, epoch_float: float) -> float:
        start, end = recipe.eps_ramp
        if getattr(recipe, "eps_shape", "linear") == "linear" or not start < epoch_float < end:
            return super().eps_schedule(recipe, epoch_float)
        return float(recipe.train_radius) * smoothed((epoch_float - start) / (end - start), recipe.eps_mid)

    def margin_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> Bound:
        return ibp_bound(as_relu_net(net), x, y, eps)

    def radius(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return certified_radius(as_relu_net(net), x, y)

    def posthoc_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps, certifier: str) -> Bound | None:
        """What `bench certify` asks first: our own bounds, class F32; None for those that auto_LiRPA must compute."""
        own = {"ibp": ibp_bound, "crown_ibp": crown_ibp_bound}.get(certifier)
        return None if own is None else own(as_relu_net(net), x, y, eps)


def as_relu_net(net: nn.Module) -> ReluNet:
    """The net as what it is; anything else is a caller's mistake."""
    if not isinstance(net, ReluNet):
        raise ValueError(f"net is a {type(net).__name__}; a ReluNet is needed")
    return net


def ramped(step: Step) -> float:
    """How far the radius has come, eps_now / eps_train, in [0, 1]: what the mixing weights follow."""
    return min(1.0, float(step.eps_now) / float(step.recipe.train_radius))


def kappa_at(step: Step) -> float:
    """Weight of the clean cross-entropy now."""
    recipe = step.recipe
    return float(recipe.kappa_start + (recipe.kappa_end - recipe.kappa_start) * ramped(step))


def clean_losses(logits: Tensor, y: Tensor) -> Losses:
    """Plain cross-entropy."""
    return Losses(functional.cross_entropy(logits, y), {"acc": accuracy(logits, y)})


def mixed_losses(
    passed: Passed, y: Tensor, worst: Tensor, kappa: float, margins: Tensor, **more: Tensor | float
) -> Losses:
    """kappa * CE(f, y) + (1 - kappa) * mean(worst).

    Args:
        worst: [B] bound of the worst-case cross-entropy. margins: [B, K] bounds that the scalar `worst`, the certified
            share of the batch, is counted from. more: further scalars.
    """
    scalars: dict[str, Tensor | float] = {"worst_ce": worst.detach().mean(), "kappa": kappa}
    scalars |= {"worst": certified_share(margins, y), **more}
    loss = (1 - kappa) * worst.mean()
    if passed.flow.clean is not None:
        if kappa > 0:
            logits = passed.logits()
            loss = loss + kappa * functional.cross_entropy(logits, y)
        else:
            with torch.no_grad():
                logits = passed.logits()
        scalars["acc"] = accuracy(logits, y)
    return Losses(loss, scalars)


def worst_cross_entropy(margins: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the worst-case logits, [B]: 0 for the label, minus the margin bound for every other class."""
    return functional.cross_entropy(-margins, y, reduction="none")


def certified_share(margins: Tensor, y: Tensor) -> Tensor:
    """Share of the batch whose every margin bound is positive; a training scalar, no certificate."""
    hide = torch.zeros_like(margins, dtype=torch.bool).scatter_(1, y.unsqueeze(1), True)
    return (margins.detach().masked_fill(hide, torch.inf).amin(dim=1) > 0).float().mean()


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the batch classified rightly."""
    return (margin(logits.detach(), y) > 0).float().mean()


def shortened(paper: R, epochs: int, **changes: Any) -> R:
    """The same run in fewer epochs: ramps and milestones keep their share of the run."""
    factor = epochs / paper.epochs
    start, end = paper.eps_ramp
    changes.setdefault("preset", "short")
    changes.setdefault("source", f"ours: {paper.source.removeprefix('ours: ')}, in {epochs} epochs")
    return replace(
        paper,
        epochs=epochs,
        lr_hold=paper.lr_hold * factor,
        lr_milestones=tuple(m * factor for m in paper.lr_milestones),
        eps_ramp=(start * factor, end * factor),
        **changes,
    )


def quick_recipes(base: Q, fields: Mapping[tuple[str, str], Mapping[str, Any]], ramp: float) -> Iterator[Q]:
    """Small runs of `base`: one per (data set, eps), with the fields that differ there.

    Where `fields` name no schedule, the radius grows over the first `ramp` of the run and the learning rate falls
    behind it: at 0.7 and 0.9 of the run, or along a cosine from the end of the ramp.
    """
    for (dataset, eps), changes in fields.items():
        epochs = changes.get("epochs", base.epochs)
        grown = changes.get("eps_ramp", (0.0, ramp * epochs))
        schedule: dict[str, Any] = {"eps_ramp": grown}
        if changes.get("lr_schedule", base.lr_schedule) == "cosine":
            schedule["lr_hold"] = grown[1]
        else:
            schedule["lr_milestones"] = (0.7 * epochs, 0.9 * epochs)
        yield replace(base, dataset=dataset, eps=eps, **{**schedule, **changes})
