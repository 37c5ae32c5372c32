"""Training objectives. `f` are logits (negated distances) in normalised units, theta = 2 eps_train / std.

Sources: hinge and worst-case cross-entropy arXiv 2102.05363; clipped hinge + decaying cross-entropy arXiv 2110.06850.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import Losses, margin

from .nets import DistNet


def hinge(net: DistNet, x: Tensor, y: Tensor, theta: float, mix: float) -> Losses:
    """mean( mix * max_j h_j + (1 - mix) * mean_j h_j ), h_j = max(0, theta - (f_y - f_j)), h_y = 0 (ICML 2021).

    Args:
        theta: wanted margin in normalised units. mix: weight of the worst class against all K classes.
    """
    logits = net(x)
    gaps = logits.gather(1, y[:, None]) - logits  # [B, K], 0 at the label
    short = (theta - gaps).clamp(min=0).scatter(1, y[:, None], 0.0)
    loss = (mix * short.amax(dim=1) + (1 - mix) * short.mean(dim=1)).mean()
    return Losses(loss, {"acc": _accuracy(logits, y)})


def ramp_cross_entropy(net: DistNet, x: Tensor, y: Tensor, theta: float, weight: float) -> Losses:
    """mean( clip(1 - margin/theta, 0, 1) ) + weight * CE(scale * f, y) (ICLR 2022).

    The clipped hinge has no gradient for misclassified examples, so the cross-entropy must start a run; its weight
    decays while p grows. The learnable scale multiplies only the logits of the cross-entropy.
    """
    logits = net(x)
    gap = margin(logits, y).float()
    # [B]; at theta = 0, the first step of a radius that grows from nothing, a step function without a gradient
    ramp = (1 - gap / theta).clamp(0, 1) if theta > 0 else (gap <= 0).float()
    entropy = torch.nn.functional.cross_entropy(net.scale * logits, y)
    return Losses(
        ramp.mean() + weight * entropy,
        {"acc": _accuracy(logits, y), "worst": (ramp == 0).float().mean(), "ce": entropy.detach()},
    )


def worst_case_cross_entropy(net: DistNet, x: Tensor, y: Tensor, radius: float, kappa: float) -> Losses:
    """kappa * CE(worst margins, y) + (1 - kappa) * CE(f, y) for a net with an MLP head (ICML 2021).

    The features move by at most `radius` (normalised units), at any p as the paper trains it; their box goes through
    the head by interval arithmetic with the last layer merged with the class difference.
    """
    if net.head is None:
        raise ValueError("worst_case_cross_entropy needs a net with an MLP head (recipe field head > 0)")
    features = net.features(x)
    w1, w2 = net.head.effective()
    mid = torch.nn.functional.linear(features, w1, net.head.bias1)
    spread = radius * w1.abs().sum(dim=1)  # [hidden], the same for every example
    low, high = torch.tanh(mid - spread), torch.tanh(mid + spread)
    centre, reach = (low + high) / 2, (high - low) / 2  # [B, hidden]
    bounds = torch.nn.functional.linear(centre, w2, net.head.bias2)  # [B, K]
    gap = bounds - bounds.gather(1, y[:, None])  # centre part of f_j - f_y
    away = _difference_reach(reach, w2, y)
    worst = (gap + away).scatter(1, y[:, None], 0.0)
    logits = torch.nn.functional.linear(torch.tanh(mid), w2, net.head.bias2)
    loss = kappa * torch.nn.functional.cross_entropy(worst, y)
    if kappa < 1:
        loss = loss + (1 - kappa) * torch.nn.functional.cross_entropy(logits, y)
    robust = (worst.scatter(1, y[:, None], -torch.inf).amax(dim=1) < 0).float().mean()
    return Losses(loss, {"acc": _accuracy(logits, y), "worst": robust})


def _difference_reach(reach: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """sum_i |w_j - w_y|_i * reach_i for every example and class, [B, K].

    One product with the [K * K, hidden] matrix of all differences; each example then picks its label's K rows. For
    200 classes that matrix is 40,000 x 512 floats, 82 MB: still smaller than the features of one batch's gradients.
    """
    classes = weight.shape[0]
    spread = (weight[None] - weight[:, None]).abs().flatten(0, 1)  # [K*K, hidden], row y*K + j
    every = torch.nn.functional.linear(reach, spread).reshape(-1, classes, classes)
    return every[torch.arange(len(y), device=y.device), y]


def _accuracy(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == y).float().mean()
