"""Checks 1, 8, 9 and 10: networks, counts, recipes, and whether the state dict is the whole state."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from .. import registry
from ..contract import Recipe
from ..recipe import as_dict, name_of
from ..state import load_net, load_tensors, net_tensors, save_tensors
from .subject import Breach, Subject, pictures, seen_by
from .surroundings import same_bits

BUILD_S = 20.0  # after which the remaining, larger networks are left out
LARGE = 3_000_000  # parameters; more take seconds to draw
_HIDDEN_STATE = "a fresh net with the saved state gives other {}; keep all state in parameters and buffers"


def builds(subject: Subject) -> str:
    """1: every recipe's network turns [B, C, H, W] into finite float32 logits [B, K].

    Large ones are looked at without weights, on torch's meta device, where that works: their shapes and dtypes.
    """
    started, built, sketched = time.monotonic(), 0, 0
    for recipe in subject.recipes:
        if built and _sketch(subject, recipe):
            sketched += 1
        elif time.monotonic() - started < BUILD_S:
            _check_net(subject.build(recipe=recipe), recipe)
            built += 1
    left = len(subject.recipes) - built - sketched
    large = f", {sketched} large ones by shape only" * bool(sketched)
    left_out = f", {left} left out for lack of time" * bool(left)
    datasets = len({recipe.dataset for recipe in subject.recipes})
    return f"{_count(built, 'network')}{large}{left_out} for {_count(datasets, 'data set')}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


@torch.no_grad()
def _sketch(subject: Subject, recipe: Recipe) -> bool:
    """Whether this is a large network whose shapes are right; False where it must be built to know."""
    data = seen_by(recipe)
    try:
        with torch.device("meta"):
            net = subject.build(recipe=recipe).eval()
            logits = net(torch.empty(2, data.channels, data.height, data.width))
        fits = logits.shape == (2, data.classes) and logits.dtype == torch.float32
        return fits and sum(p.numel() for p in net.parameters()) > LARGE
    except Exception:  # not everything works without values
        return False


@torch.no_grad()
def _check_net(net: nn.Module, recipe: Recipe) -> None:
    data = seen_by(recipe)
    x = pictures(data, 2).pixels(slice(None))
    kept = x.clone()
    logits = net.eval()(x)
    where = f"({name_of(recipe)})"
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, data.classes):
        shown = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise Breach(
            f"the net gives {shown} for 2 images of {data.classes} classes; [2, {data.classes}] is needed {where}"
        )
    if logits.dtype != torch.float32:
        raise Breach(f"the net gives {logits.dtype} logits; float32 is needed {where}")
    if not bool(torch.isfinite(logits).all()):
        raise Breach(f"a fresh net gives non-finite logits {where}")
    if not same_bits(x, kept):
        raise Breach(f"the net changes its input in place {where}")


def counts(subject: Subject) -> str:
    """8: operations and parameters are positive, and no batch changes them."""
    net = subject.build()
    parameters = sum(p.numel() for p in net.parameters())
    if not parameters:
        raise Breach("the net has no parameters; weights must be nn.Parameter of its modules")
    flops = subject.method.flops(net, subject.data)
    if not isinstance(flops, int) or isinstance(flops, bool) or flops <= 0:
        raise Breach(f"flops() gives {flops!r}; a positive int is needed")
    x, _ = subject.pixels(7)
    with torch.no_grad():
        net.eval()(x)
    again = subject.method.flops(net, subject.data)
    if again != flops:
        raise Breach(f"flops() gives {flops}, and after a batch of 7 images {again}; it is per image")
    return f"{flops:,} operations, {parameters:,} parameters"


def recipes(subject: Subject) -> str:
    """9: recipes are the same at every call, JSON, sourced, and one of them is quick."""
    found = registry.recipes(subject.method)
    if found != registry.recipes(subject.method):
        raise Breach("recipes() yields other recipes at a second call")
    for recipe in found:
        seen_by(recipe)
        if len(recipe.source.strip()) < 3:
            raise Breach(
                f"recipe {name_of(recipe)} has no source; name the paper's table, the file, or how it was tuned"
            )
        if recipe.radius.fraction == 0:
            raise Breach(f"recipe {name_of(recipe)} has eps 0; a radius is needed")
        if not type(recipe).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise Breach(f"{type(recipe).__name__} must be a frozen dataclass")
        try:
            json.dumps(as_dict(recipe), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Breach(f"recipe {name_of(recipe)} is no JSON: {error}") from error
    if not any(recipe.preset == "quick" for recipe in found):
        raise Breach('no recipe has preset="quick"; one that takes minutes on two cores is needed')
    return f"{len(found)} recipe{'s' * (len(found) > 1)}, all with a source"


def round_trip(subject: Subject) -> str:
    """10: another network, given the saved tensors, computes the same bits: nothing hides outside the state dict."""
    net, x, y = subject.net, *subject.pixels(8)
    tensors = net_tensors(net)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save_tensors(path, tensors, {})
        loaded = load_tensors(path).tensors
    other = subject.build(seed=1).eval()
    load_net(other, loaded, "the saved state")
    other.eval()
    with torch.no_grad():
        if not same_bits(net(x), other(x)):
            raise Breach(_HIDDEN_STATE.format("logits"))
        bounds = [subject.method.margin_bound(n, x, y, subject.recipe.radius).lower for n in (net, other)]
    if not same_bits(*bounds):
        raise Breach(_HIDDEN_STATE.format("bounds"))
    return f"{len(tensors)} tensors"
