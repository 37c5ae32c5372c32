"""What a certificate may be asked: every `Method` subclass gets these checks around its own code.

A certificate for an image outside [0, 1], a label that is none or a float radius would be a wrong number, not a crash,
so the suite looks before any method does; a plugin author writes none of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .eps import Eps
from .threat import check_images

_ASKED = ("margin_bound", "margin_bounds", "radius")  # called with (net, x, y[, eps])


def guard(cls: type) -> None:
    """Wrap what `cls` itself defines of build, margin_bound, margin_bounds and radius."""
    for name in _ASKED:
        if inspect.isfunction(cls.__dict__.get(name)):
            setattr(cls, name, _checked(cls.__dict__[name], takes_eps=name != "radius"))
    if inspect.isfunction(cls.__dict__.get("build")):
        setattr(cls, "build", _remembering(cls.__dict__["build"]))  # noqa: B010  (mypy: cannot assign to a method)


def _remembering(build: Callable[..., Any]) -> Callable[..., Any]:
    """Note on the net which images it was built for, so that others can be refused."""

    @functools.wraps(build)
    def call(self: Any, data: Any, recipe: Any) -> Any:
        net = build(self, data, recipe)
        if isinstance(net, nn.Module):
            net.built_for = data
        return net

    return call


def _checked(ask: Callable[..., Any], *, takes_eps: bool) -> Callable[..., Any]:
    @functools.wraps(ask)
    def call(self: Any, net: Any, x: Tensor, y: Tensor, *eps: Any, **named: Any) -> Any:
        check_question(net, x, y)
        radius = eps[0] if eps else named.get("eps")
        if takes_eps and not isinstance(radius, Eps):
            raise ValueError(f'eps = {radius!r} must be an exact radius, Eps("8/255"), not {type(radius).__name__}')
        return ask(self, net, x, y, *eps, **named)

    return call


def check_question(net: Any, x: Any, y: Any) -> None:
    """Refuse anything but a batch of images in [0, 1] that fits the net, and one int64 label for each.

    Raises:
        ValueError: names the argument and what is wrong with it.
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"net must be a torch.nn.Module, not {type(net).__name__}")
    check_images(x)
    built_for = getattr(net, "built_for", None)
    if built_for is not None:
        fits = (built_for.channels, built_for.height, built_for.width)
        if tuple(x.shape[1:]) != fits:
            wanted = ", ".join(map(str, fits))
            raise ValueError(f"x has shape {tuple(x.shape)}; this net takes [B, {wanted}]")
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        raise ValueError(f"y must be an int64 tensor, not {getattr(y, 'dtype', type(y).__name__)}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y has shape {tuple(y.shape)}; one label per image, [{len(x)}], is needed")
    classes = built_for.classes if built_for is not None else torch.iinfo(torch.int64).max
    if y.numel() and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"y holds labels from {int(y.min())} to {int(y.max())}; this net knows 0 to {classes - 1}")
