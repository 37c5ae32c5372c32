"""Rigorous interval propagation through a whole `ReluNet` (class F32), and the tape that rigorous linear bounds need.

Every layer's bounds contain whatever any IEEE float32 evaluation of it gives on inputs within its input bounds, so by
induction the last ones contain the deployed logits. Batch norm is taken as deployed, with its frozen statistics.
Derivations: trust.md 1.7; tests/methods/test_interval_net.py attacks them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench import Bound, Eps
from bench.threat import box, box_float32, check_images

from . import tape as tapes
from .box import affine_entry, bias_of, geometry_of, pool_kernel, write
from .box_ops import affine
from .interval import TINY32, U32, U64, class_margins, gamma, linear_image, no_overflow, outward, widen
from .lookalikes import refuse_lookalikes
from .nets import Concat, Normalize, ReluNet, Residual

KNOWN: tuple[type[nn.Module], ...] = (
    ReluNet, nn.Sequential, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.AvgPool2d,
    nn.Identity, Residual, Concat, Normalize,
)  # fmt: skip

# var + eps, sqrt, divide, times weight, times x, mean's product, two additions: 8 (trust.md 1.7); the rest is for GPUs,
# whose rsqrt is off by up to 2 ulps.
BATCH_NORM_ROUNDINGS = 12
NORMALIZE_ROUNDINGS = 4  # subtract, divide; one each to spare for a kernel that multiplies by a reciprocal

Ends = tuple[Tensor, Tensor]
Writer = list[tapes.Entry] | None


@dataclass(frozen=True)
class Reached:
    """Bounds before the last layer, [B, I] float64, the last layer, the box of images, and the tape if wanted."""

    lower: Tensor
    upper: Tensor
    head: nn.Linear
    image: Ends
    tape: Writer

    def class_margins(self, y: Tensor) -> Tensor:
        """Lower bounds of f_y - f_j, [B, K] float64, infinity at j = y."""
        if not bool(torch.isfinite(self.head.weight).all() & torch.isfinite(bias_of(self.head)).all()):
            raise ValueError("net has non-finite weights in its last layer and therefore no certificate")
        return class_margins(self.lower, self.upper, self.head.weight, bias_of(self.head), y)


@torch.no_grad()
def ibp_bound(net: ReluNet, x: Tensor, y: Tensor, eps: Eps) -> Bound:
    """Margin bound by interval propagation of the outer box, clipped to [0, 1]; class F32.

    Args:
        net: in eval mode. x: [B, C, H, W] float32 in [0, 1]. y: [B] int64. eps: exact radius.

    Raises:
        ValueError: training mode, wrong dtype, shape or range, non-finite bounds.
    """
    check(net, x)
    return Bound(_margin(net, *box(x, eps), y), "ibp", "F32")


@torch.no_grad()
def ibp_margin_at(net: ReluNet, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """The same bound, [B] float64, at a float32 radius per example, [B]."""
    check(net, x)
    return _margin(net, *box_float32(x, radius), y)


def _margin(net: ReluNet, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
    return reach(net, lower, upper).class_margins(y).amin(dim=1)


def check(net: nn.Module, x: Tensor) -> None:
    """Refuse what must not be certified.

    Raises:
        ValueError: the net is in training mode, a layer is not what its class says, or x is not a batch of images.
    """
    check_images(x)
    if any(module.training for module in net.modules()):
        raise ValueError("net is in training mode; call net.eval() before certifying: batch statistics are no net")
    refuse_lookalikes(net, KNOWN)


@torch.no_grad()
def reach(net: ReluNet, lower: Tensor, upper: Tensor, *, tape: bool = False) -> Reached:
    """Bounds of what enters the last layer, over images between lower and upper, [B, C, H, W] float32.

    Raises:
        ValueError: bounds are not finite (weights are NaN, infinite, or so large that float32 may overflow).
    """
    written: Writer = [] if tape else None
    ends = _layers([net.normalize, *net.body], (lower.double(), upper.double()), written)
    if not bool(torch.isfinite(ends[0]).all() & torch.isfinite(ends[1]).all()):
        raise ValueError("net gives non-finite bounds; a net with NaN or infinite weights has no certificate")
    return Reached(*ends, net.head, (lower, upper), written)


def _layers(modules: Iterable[nn.Module], ends: Ends, tape: Writer) -> Ends:
    for module in modules:
        ends = _layer(module, ends, tape)
    return ends


def _layer(module: nn.Module, ends: Ends, tape: Writer) -> Ends:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return _affine(module, ends, tape)
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return _batch_norm(module, ends, tape)
    if isinstance(module, nn.ReLU):
        write(tape, lambda: tapes.Relu(*ends, loss=2 * _pull_error(ends[0]) * size(ends)))
        return ends[0].clamp(min=0), ends[1].clamp(min=0)  # exact: max rounds nothing
    if isinstance(module, nn.Flatten):
        write(tape, lambda: tapes.Flatten(ends[0].shape[1:]))
        return ends[0].flatten(1), ends[1].flatten(1)
    if isinstance(module, nn.AvgPool2d):
        return _pool(module, ends, tape)
    if isinstance(module, Residual):
        return _residual(module, ends, tape)
    if isinstance(module, Concat):
        branch: Writer = None if tape is None else []
        made = _layers(module.branch, ends, branch)
        write(tape, lambda: tapes.Beside(branch or [], made[0].shape[1], size(ends)))
        return torch.cat([made[0], ends[0]], 1), torch.cat([made[1], ends[1]], 1)
    if isinstance(module, Normalize):
        return _normalize(module, ends, tape)
    if isinstance(module, nn.Identity):
        return ends
    raise ValueError(f"no interval bound is known for layer {type(module).__name__}; see methods/nets.py for the list")


def size(ends: Ends) -> Tensor:
    """The largest magnitude a value between the ends can have."""
    return torch.maximum(ends[0].abs(), ends[1].abs())


def _pull_error(output: Tensor, fan: int = 0) -> float:
    """Relative float64 error of pulling rows back through a layer with this output: products and the constant's sum."""
    return gamma(output.shape[1:].numel() + fan + 16, U64)


def _affine(module: nn.Conv2d | nn.Linear, ends: Ends, tape: Writer) -> Ends:
    geometry = geometry_of(module)
    weight, bias = module.weight, bias_of(module)
    low, high, slack, mass = linear_image(*ends, weight, bias, lambda x, w, b: affine(x, w, b, geometry))
    fan = weight.numel() // weight.shape[1]  # outputs that one input meets, at most
    if tape is not None:
        entry = affine_entry(weight.double(), bias.double(), geometry, ends[0].shape[1:])
        tape.append(replace(entry, loss=slack + _pull_error(low, fan) * mass))
    return low, high


def _scale(ends: Ends, scale: Tensor, shift: Tensor, mass: Tensor, seen: Tensor, roundings: int, tape: Writer) -> Ends:
    """scale * x + shift for float64 scale and shift that stand for float32 ones known up to their roundings.

    seen: the largest magnitude that the scale is multiplied with: one that underflows is off by an absolute amount.
    """
    relative = (gamma(roundings, U32) + gamma(2 * roundings + 8, U64)) * (1 + 8 * U64)
    slack = relative * no_overflow(mass) + roundings * TINY32 * (1 + seen)
    write(tape, lambda: tapes.Scale(scale, shift, slack + _pull_error(mass) * mass))
    centre = (ends[0] + ends[1]) / 2
    half = torch.maximum(ends[1] - centre, centre - ends[0]) * (1 + 4 * U64) + 1e-300
    return widen(centre * scale + shift, half * scale.abs(), slack)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, ends: Ends, tape: Writer) -> Ends:
    if module.running_mean is None or module.running_var is None:
        raise ValueError("a batch norm without running statistics depends on the batch and has no certificate")
    if module.weight is None:
        raise ValueError("a batch norm without weight and bias (affine=False) has no bound here")
    shape = [-1] + [1] * (ends[0].ndim - 2)
    mean, var = module.running_mean.double().reshape(shape), module.running_var.double().reshape(shape)
    weight, bias = module.weight.double().reshape(shape), module.bias.double().reshape(shape)
    scale = weight / (var + module.eps).sqrt()
    # The deployed shift bias - mean * scale cancels: its error is relative to the parts, not to the difference.
    mass = scale.abs() * size(ends) + bias.abs() + (mean * scale).abs()
    # Some kernels form x - mean or the scale by itself: these must not overflow either.
    seen = size(ends) + mean.abs()
    alone = no_overflow(torch.maximum(seen, scale.abs()))
    mass = torch.where(alone.isinf(), torch.inf, mass)
    return _scale(ends, scale, bias - mean * scale, mass, seen, BATCH_NORM_ROUNDINGS, tape)


def _normalize(module: Normalize, ends: Ends, tape: Writer) -> Ends:
    mean, scale = module.mean[0].double(), 1 / module.std[0].double()
    seen = size(ends) + mean.abs()
    return _scale(ends, scale, -mean * scale, seen * scale, seen, NORMALIZE_ROUNDINGS, tape)


def _pool(module: nn.AvgPool2d, ends: Ends, tape: Writer) -> Ends:
    kernel = pool_kernel(module)
    mass: Tensor = module(size(ends))
    terms = kernel**2 + 2  # sum, then one division, or a product with a rounded reciprocal
    whole = no_overflow(mass * kernel**2) / kernel**2  # float32 forms the sum before it divides
    slack = (gamma(terms, U32) + gamma(2 * terms + 8, U64)) * whole * (1 + 8 * U64) + terms * TINY32
    write(tape, lambda: tapes.Pool(kernel, ends[0].shape[1:], slack + _pull_error(mass) * mass))
    return outward(module(ends[0]) - slack, module(ends[1]) + slack)


def _residual(module: Residual, ends: Ends, tape: Writer) -> Ends:
    main: Writer = None if tape is None else []
    skip: Writer = None if tape is None else []
    a, b = _layers(module.main, ends, main), _layers(module.skip, ends, skip)
    mass = size(a) + size(b)
    slack = (gamma(2, U32) + gamma(8, U64)) * no_overflow(mass) * (1 + 8 * U64) + TINY32
    write(tape, lambda: tapes.Sum(main or [], skip or [], size(ends), slack))
    return outward(a[0] + b[0] - slack, a[1] + b[1] + slack)
