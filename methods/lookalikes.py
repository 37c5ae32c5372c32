"""Bounds know a layer by its class; what computes something else than its class says must not be certified."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

# What a subclass may have of its own: none of it computes.
HARMLESS = frozenset({
    "__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__parameters__",
    "__orig_bases__", "__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__repr__", "extra_repr", "__getstate__", "__setstate__", "__deepcopy__",
})  # fmt: skip


def refuse_lookalikes(net: nn.Module, known: tuple[type[nn.Module], ...]) -> None:
    """Refuse what bounds cannot see: subclasses of known layers that override anything of theirs, and hooks.

    Parametrisations (torch.nn.utils.parametrize) are fine: bounds read the weight that the layer uses.

    Raises:
        ValueError: names the layer.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise ValueError("torch has global forward hooks, which no bound can see: nothing has a certificate")
    for name, layer in net.named_modules():
        where = f"layer {name or 'net'} ({type(layer).__name__})"
        if layer._forward_hooks or layer._forward_pre_hooks:
            raise ValueError(f"{where} has forward hooks, which no bound can see: it has no certificate")
        base = next((cls for cls in known if isinstance(layer, cls)), None)
        if base is not None and (own := _overrides(layer, base)):
            raise ValueError(
                f"{where} computes something else than {base.__name__} (it has its own {own}): it has no certificate"
            )


def _overrides(layer: nn.Module, base: type[nn.Module]) -> str | None:
    """The first thing of `base` that the layer's class, or the layer itself, replaces."""
    classes = type(layer).__mro__
    for cls in classes[: classes.index(base)]:
        for name in vars(cls):
            if name not in HARMLESS and hasattr(base, name):
                return name
    return next((name for name in vars(layer) if callable(getattr(base, name, None))), None)
