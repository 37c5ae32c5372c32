"""Operations of one forward pass: one multiply-accumulate or one |x - w| counts 1, the papers' convention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .contract import DataSpec

MEND = "give it a method count_ops(inputs, output) -> int, or override Method.flops"


def count_ops(net: nn.Module, data: DataSpec) -> int:
    """Operations of one forward pass of one image.

    Convolutions and linear layers by their formulas (bias, activations, pooling and normalisation count 0, as in the
    papers); a layer with a method `count_ops(inputs, output) -> int` speaks for itself and all it contains.

    Raises:
        ValueError: a layer holds weights but no formula is known for it, or its weights are used without calling it.
    """
    total = 0
    hooks = []
    counted = set(_counted(net))
    waiting = {module: name for name, module in net.named_modules() if module in counted}

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        total += _layer_ops(module, inputs[0], output)
        waiting.pop(module, None)

    modes = [(module, module.training) for module in net.modules()]
    try:
        for module in list(waiting):  # a layer used twice is here once and fires its hook twice
            hooks.append(module.register_forward_hook(hook))
        net.eval()
        some = next(iter(net.parameters()), torch.zeros(()))
        with torch.no_grad():
            net(torch.full((1, data.channels, data.height, data.width), 0.5, device=some.device, dtype=some.dtype))
    finally:
        for module, training in modes:
            module.training = training
        for handle in hooks:
            handle.remove()
    if waiting:
        names = ", ".join(list(waiting.values())[:3])
        raise ValueError(
            f"layer {names} holds weights but is never called, so its operations cannot be counted; {MEND}"
        )
    return total


def _counted(net: nn.Module) -> list[nn.Module]:
    """The layers that count: own formula first (its children are its business), then all that hold a weight matrix.

    Vectors and scalars (biases, scales) act elementwise and count 0.
    """
    if hasattr(net, "count_ops") or isinstance(net, _LINEAR + _CONV):  # these have children when parametrised
        return [net]
    own = [net] if any(p.ndim > 1 for p in net.parameters(recurse=False)) else []
    return own + [layer for child in net.children() for layer in _counted(child)]


_LINEAR = (nn.Linear,)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _layer_ops(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    if hasattr(module, "count_ops"):
        formula: Any = module.count_ops
        return int(formula(inputs, output))
    if isinstance(module, _LINEAR):
        return output.numel() * module.in_features
    if isinstance(module, _CONV):
        taps = module.in_channels // module.groups
        for side in module.kernel_size:
            taps *= side
        return output.numel() * taps
    if isinstance(module, nn.LayerNorm):
        return 0
    raise ValueError(f"no operation count is known for layer {type(module).__name__}; {MEND}")
