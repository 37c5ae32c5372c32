"""Checks 7 and 11: evaluating a method leaves no trace, and nonsense is refused with the argument's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..contract import margin
from ..eps import Eps
from .subject import Breach, Subject
from .surroundings import Surroundings, net_changes, same_bits


def no_side_effects(subject: Subject) -> str:
    """7: nothing that evaluates changes the net, its input, a global generator, a switch or somebody's function."""
    if subject.imported:
        raise Breach(
            f"importing it changes {', '.join(subject.imported)}; the other methods would be measured with that"
        )
    method, net, (x, y) = subject.method, subject.net, subject.pixels(4)
    eps, data = subject.recipe.radius, subject.data

    def attack_gradients() -> None:
        for _, guide in method.attack_models(net):
            leaf = x.clone().requires_grad_(True)
            torch.autograd.grad(margin(guide.eval()(leaf), y).sum(), leaf)

    calls: dict[str, Callable[[], Any]] = {
        "the net": lambda: net(x),
        "margin_bound()": lambda: method.margin_bound(net, x, y, eps),
        "margin_bounds()": lambda: method.margin_bounds(net, x, y, eps),
        "radius()": lambda: method.radius(net, x, y),
        "flops()": lambda: method.flops(net, data),
        "recipes()": lambda: list(method.recipes()),
        "attack_models()": attack_gradients,
    }
    kept = x.clone(), y.clone()
    for name, call in calls.items():
        net.eval()
        around, inside = Surroundings.now(), net_changes(net)
        if name == "attack_models()":
            call()
        else:
            with torch.no_grad():
                call()
        changed = [*around.changes(), *inside()]
        if not (same_bits(x, kept[0]) and same_bits(y, kept[1])):
            changed.append("its arguments x and y")
        if changed:
            raise Breach(f"{name} changes {', '.join(changed[:4])}; evaluation must leave everything as it was")
    return f"{len(calls)} calls left {len(around.values)} settings, the net and its input as they were"


def refuses(subject: Subject) -> str:
    """11: a ValueError that names the argument, for what no certificate can be asked."""
    method, net, (x, y) = subject.method, subject.net, subject.pixels(4)
    eps, classes = subject.recipe.radius, subject.data.classes
    smaller = x[:, :, :-1]
    wrong: list[tuple[str, str, Tensor | Any, Tensor | Any, Any]] = [
        ("x", "float64 images", x.double(), y, eps),
        ("x", "uint8 images", (x * 255).to(torch.uint8), y, eps),
        ("x", "images without a batch", x[0], y, eps),
        ("x", "images of another size", smaller, y, eps),
        ("x", "pixels above 1", x + 1.0, y, eps),
        ("x", "pixels below 0", x - 1.0, y, eps),
        ("x", "NaN pixels", x * torch.nan, y, eps),
        ("y", "float labels", x, y.float(), eps),
        ("y", "too few labels", x, y[:-1], eps),
        ("y", "labels beyond the last class", x, y + classes, eps),
        ("y", "negative labels", x, y - classes, eps),
        ("eps", "a float radius", x, y, float(eps)),
        ("eps", "a negative radius", x, y, None),
    ]
    for argument, what, images, labels, radius in wrong:
        try:
            method.margin_bound(net, images, labels, Eps("-0.1") if radius is None else radius)
        except ValueError as error:
            if argument not in str(error):
                raise Breach(f"margin_bound() refuses {what} without naming {argument}: {error}") from error
        else:
            raise Breach(f"margin_bound() takes {what}; a ValueError that names {argument} is needed")
    return f"{len(wrong)} kinds of nonsense refused"
