"""Bounds know a layer by its class; what computes something else than its class says must not be certified."""

from __future__ import annotations

from torch import nn


def refuse_lookalikes(net: nn.Module, known: tuple[type[nn.Module], ...]) -> None:
    """Refuse subclasses of known layers with a forward of their own, and hooks, neither of which bounds can see.

    Parametrisations (torch.nn.utils.parametrize) are fine: bounds read the weight that the layer uses.

    Raises:
        ValueError: names the layer.
    """
    for name, module in net.named_modules():
        where = f"layer {name or 'net'} ({type(module).__name__})"
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{where} has forward hooks, which no bound can see: it has no certificate")
        base = next((cls for cls in known if isinstance(module, cls)), None)
        own = ("forward", "_conv_forward")  # an instance may carry its own too
        if base is not None and any(
            name in vars(module) or getattr(type(module), name, None) is not getattr(base, name, None) for name in own
        ):
            raise ValueError(f"{where} computes something else than {base.__name__}: it has no certificate")
