"""Steps of training through boxes whose cost is memory traffic, written as autograd functions with few passes.

On a CPU a step of interval training spends as long in elementwise operations and fresh memory as in its products if it
is composed of ordinary ones; these functions bring it from 4 or 5 plain forward-backward passes to about 3
(tests/methods/test_box.py times it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

aten = torch.ops.aten

Geometry = tuple[tuple[int, int], tuple[int, int], int]  # stride, padding, groups of a convolution


class ReluBox(torch.autograd.Function):
    """max(., 0) of a box given by centre and reach."""

    @staticmethod
    def forward(ctx: Any, centre: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = (centre - reach).relu_(), (centre + reach).relu_()
        ctx.save_for_backward(lower, upper)
        return (lower + upper).mul_(0.5), (upper - lower).mul_(0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_centre: Tensor, g_reach: Tensor) -> tuple[Tensor, Tensor]:
        g_centre, g_reach = _through_relu(g_centre, g_reach, *ctx.saved_tensors)
        return g_centre.mul_(0.5), g_reach.mul_(0.5)


class AffineReluBox(torch.autograd.Function):
    """ReLU(W h + b) of a box: returns lower + upper and upper - lower, TWICE the centre and the reach.

    Arguments: centre, reach, weight [O, I] or [O, C, k, k], bias [O], geometry (None: dense) and a number that
    multiplies centre and reach first. The halving a centre needs is left to the next layer's `scale`, because its
    weights are fewer than its activations.
    """

    @staticmethod
    def forward(
        ctx: Any, centre: Tensor, reach: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        scaled = weight if scale == 1 else weight * scale
        size = scaled.abs()
        middle = affine(centre, scaled, bias, geometry)
        spread = affine(reach, size, None, geometry)
        upper = (middle + spread).relu_()
        lower = middle.sub_(spread).relu_()
        ctx.save_for_backward(centre, reach, scaled, size, lower, upper)
        ctx.geometry, ctx.scale = geometry, scale
        return lower + upper, torch.sub(upper, lower, out=spread)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_centre: Tensor, g_reach: Tensor) -> tuple[Tensor | None, ...]:
        centre, reach, scaled, size, lower, upper = ctx.saved_tensors
        g_middle, g_spread = _through_relu(g_centre, g_reach, lower, upper)
        wanted = ctx.needs_input_grad[0]
        to_centre, g_weight, g_bias = _affine_backward(g_middle, centre, scaled, ctx.geometry, wanted)
        to_reach, g_size, _ = _affine_backward(g_spread, reach, size, ctx.geometry, wanted)
        g_weight.addcmul_(g_size, scaled.sgn())
        if ctx.scale != 1:
            g_weight.mul_(ctx.scale)
        return to_centre, to_reach, g_weight, g_bias, None, None


class BatchStatistics(torch.autograd.Function):
    """Batch norm of a clean batch by its own statistics, with scale and shift [C] as outputs that carry gradients.

    Arguments: z [B, C, ...], gamma, beta, running mean and variance (moved as nn.BatchNorm moves them), momentum, eps.
    Returns (z - mean) * scale + beta, scale = gamma / sqrt(var + eps), shift = beta - mean * scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, inverse = torch.native_batch_norm(z, gamma, beta, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(z, gamma, mean, inverse, running_mean, running_var)
        ctx.eps = eps
        scale = gamma * inverse
        return out, scale, beta - mean * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor, g_scale: Tensor, g_shift: Tensor) -> tuple[Tensor | None, ...]:
        z, gamma, mean, inverse, running_mean, running_var = ctx.saved_tensors
        g_z, g_gamma, g_beta = aten.native_batch_norm_backward(
            g_out.contiguous(), z, gamma, running_mean, running_var, mean, inverse, True, ctx.eps, [True, True, True]
        )
        # shift = beta - mean * scale, scale = gamma * inverse, inverse = (var + eps) ** -0.5, both from z.
        g_scale = g_scale - mean * g_shift
        count = z.numel() // z.shape[1]
        per_z = g_scale * gamma * inverse**3 / -count  # times (z - mean): the gradient through the variance
        flat = (g_shift * gamma * inverse) / -count - per_z * mean
        shape = [-1] + [1] * (z.ndim - 2)
        g_z = g_z.addcmul_(z, per_z.reshape(shape)).add_(flat.reshape(shape))
        return g_z, g_gamma + g_scale * inverse, g_beta + g_shift, None, None, None, None


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """W x + b, dense or as a convolution."""
    if geometry is None:
        return functional.linear(x, weight, bias)
    stride, padding, groups = geometry
    return functional.conv2d(x, weight, bias, stride, padding, 1, groups)


def _through_relu(g_centre: Tensor, g_reach: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of centre and reach before the ReLU, for outputs lower + upper and upper - lower."""
    g_lower, g_upper = g_centre - g_reach, g_centre + g_reach
    aten.threshold_backward.grad_input(g_lower, lower, 0, grad_input=g_lower)
    aten.threshold_backward.grad_input(g_upper, upper, 0, grad_input=g_upper)
    return g_lower + g_upper, g_upper.sub_(g_lower)


def _affine_backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of input (None unless wanted), weight and bias."""
    if geometry is None:
        return g @ weight if wanted else None, g.T @ x, g.sum(0)
    stride, padding, groups = geometry
    got = aten.convolution_backward(
        g, x, weight, [len(weight)], stride, padding, (1, 1), False, (0, 0), groups, (wanted, True, True)
    )
    return got[0], got[1], got[2]
