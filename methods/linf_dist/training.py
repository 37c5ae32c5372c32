"""Optimiser and schedules of distance nets: Adam with a tiny eps, p from 8 to infinity, l_p weight decay.

Sources: code and scripts of zbh2047/L_inf-dist-net (ICML 2021) and L_inf-dist-net-v2 (ICLR 2022).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bench import Losses, Step
from bench.errors import BenchError

from .kernels import EXPONENTS, coarse_even_p, has_units
from .nets import DistNet
from .recipes import DistRecipe

BETAS = (0.9, 0.99)
# At p = 8 the median hidden-weight gradient is about 3e-10 at the start: torch's default 1e-8 would freeze the net.
ADAM_EPS = 1e-10
AUTO_FORMAT = "bf16x3"  # its guard flags next to no pair; tf32, less exact, flags some per cent of trained layers
JUMP_FROM = 100  # arXiv 2110.06850's code jumps to infinity only if p has come this far


def ramp(start: float, end: float, epoch_float: float) -> float:
    """0 until `start` epochs, 1 from `end` epochs on, linear between."""
    if epoch_float >= end:
        return 1.0
    return min(1.0, max(0.0, (epoch_float - start) / max(end - start, 1e-12)))


def p_at(recipe: DistRecipe, epoch_float: float) -> float:
    """Exponent after `epoch_float` epochs: p_start, geometric growth (from p_jump if given) to p_end, then infinity."""
    part = ramp(recipe.p_hold, recipe.p_inf_from, epoch_float)
    if part >= 1.0:
        return math.inf if recipe.p_end >= JUMP_FROM else float(recipe.p_end)
    first = recipe.p_jump if recipe.p_jump and epoch_float >= recipe.p_hold else recipe.p_start
    p = float(first * (recipe.p_end / first) ** part)
    return coarse_even_p(p) if recipe.p_grid == "coarse" else p


def mix_at(recipe: DistRecipe, epoch_float: float) -> float:
    """Weight of the cross-entropy: lambda0, decaying geometrically to lambda_end on p's ramp or lambda_ramp."""
    own = recipe.lambda_ramp if recipe.lambda_ramp[1] > 0 else (recipe.p_hold, recipe.p_inf_from)
    return float(recipe.lambda0 * (recipe.lambda_end / recipe.lambda0) ** ramp(*own, epoch_float))


def set_schedule(net: DistNet, step: Step) -> dict[str, float]:
    """Set p and the arithmetic for this step; returns p for the log."""
    p = p_at(step.recipe, step.epoch_float)
    net.set_p(p)
    net.set_matmul(matmul_at(step.recipe, p, net.scale))
    return {"p": p}


def matmul_at(recipe: DistRecipe, p: float, like: Tensor) -> str:
    """Format of the matrix products of a step at exponent p on the device of `like`; "" for direct arithmetic.

    Raises:
        BenchError: the recipe names a format, but this CUDA device has no kernels for it.
    """
    if recipe.matmul == "off" or p not in EXPONENTS:
        return ""
    if recipe.matmul == "auto":
        return AUTO_FORMAT if recipe.p_grid == "coarse" and has_units(like) else ""
    if like.is_cuda and not has_units(like):
        raise BenchError(f"recipe matmul = {recipe.matmul}: device {like.device} lacks the kernels for matrix products "
                         "(`bench doctor` says why); --set matmul=off trains without them")
    return recipe.matmul


def logged(net: DistNet, losses: Losses) -> Losses:
    """The losses with what the matrix products of this step, if any, leave for the log; nothing waits for the device.

    matmul_FORMAT: 1. flagged_K: share of layer K's pairs, counted from 0 at the image, that was computed directly.
    """
    ran: dict[str, Tensor | float] = {}
    for k, layer in enumerate(net.distance_layers()):
        share = layer.stats.ratio()
        if share is not None:
            ran |= {f"matmul_{layer.matmul}": 1.0, f"flagged_{k}": share}
    return Losses(losses.loss, {**losses.scalars, **ran})


def build_optimizer(net: DistNet, recipe: DistRecipe) -> torch.optim.Optimizer:
    """Adam(0.9, 0.99, eps 1e-10), the learnable scale in a group of its own, l_p decay before every step if wanted."""
    scale = [net.scale]
    rest = [p for name, p in net.named_parameters() if name != "scale"]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": recipe.lr}, {"params": scale, "lr": recipe.scale_lr}]
    optimizer = torch.optim.Adam(groups, lr=recipe.lr, betas=BETAS, eps=ADAM_EPS, fused=True)
    if recipe.weight_decay > 0:
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: decay(net, opt, recipe.weight_decay))
    return optimizer


@torch.no_grad()
def decay(net: DistNet, optimizer: torch.optim.Optimizer, strength: float) -> None:
    """w <- w - lr * strength * grad( |w_row|_p^2 / 2 ) on distance weights, plain decay elsewhere, before Adam's step.

    Source: arXiv 2102.05363's repository; p is the layer's current one. At p = inf only each row's largest entry
    decays.
    """
    rate = float(optimizer.param_groups[0]["lr"]) * strength
    distance_weights = set()
    for layer in net.distance_layers():
        distance_weights.add(id(layer.weight))
        layer.weight.sub_(norm_gradient(layer.weight, layer.p), alpha=rate)
    for parameter in optimizer.param_groups[0]["params"]:
        if id(parameter) not in distance_weights:
            parameter.mul_(1 - rate)


def norm_gradient(weight: Tensor, p: float) -> Tensor:
    """Gradient of |w|_p^2 / 2 per row: (|w_j| / |w|_p)^(p-2) * w_j; rows of zeros give zero.

    Args:
        weight: [O, I]. p: at least 2, or infinity.
    """
    size = weight.abs()
    biggest = size.amax(dim=1, keepdim=True)
    if p == math.inf:
        first = size.argmax(dim=1, keepdim=True)
        return torch.zeros_like(weight).scatter_(1, first, weight.gather(1, first))
    part = size / torch.where(biggest > 0, biggest, torch.ones_like(biggest))  # in [0, 1]: powers cannot overflow
    total = part.pow(p).sum(dim=1, keepdim=True)
    return part.pow(p - 2) * total.clamp(min=1.0).pow(2.0 / p - 1.0) * weight
