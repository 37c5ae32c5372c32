"""What the suite does with recipes: checks, overrides by name, schedules every method shares, a stable hash."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .eps import Eps

if TYPE_CHECKING:
    from .contract import Recipe, Step

PRESETS = ("paper", "short", "hour", "quick")
_CHOICES = {
    "preset": PRESETS,
    "lr_schedule": ("constant", "cosine", "step"),
    "crop_mode": ("edge", "zeros"),
}
_IDENTITY = ("dataset", "eps", "preset", "source")  # what a recipe is for; not hyper-parameters, so not overridable


def name_of(recipe: Recipe) -> str:
    """`cifar10/8/255/paper`: how messages call a recipe."""
    return f"{recipe.dataset}/{recipe.eps}/{recipe.preset}"


def check_recipe(recipe: Recipe) -> None:
    """Check types, ranges and choices of every field; Recipe calls it when it is made.

    Raises:
        ValueError: names the recipe, the field and the value.
    """
    try:
        Eps(recipe.eps)
    except ValueError as error:
        raise ValueError(f"recipe {name_of(recipe)}: {error}") from None
    hints = typing.get_type_hints(type(recipe))
    for spec in dataclasses.fields(recipe):
        value = getattr(recipe, spec.name)
        where = f"recipe {name_of(recipe)}: {spec.name} = {value!r}"
        if not _has_type(value, hints[spec.name]):
            raise ValueError(f"{where} is not {_type_name(hints[spec.name])}")
        if spec.name in _CHOICES and value not in _CHOICES[spec.name]:
            raise ValueError(f"{where}; choose one of {', '.join(_CHOICES[spec.name])}")
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{where}; choose one of {', '.join(map(str, choices))}")
        low, high = spec.metadata.get("low", -math.inf), spec.metadata.get("high", math.inf)
        outside = isinstance(value, (int, float)) and not (low <= value <= high)
        if outside or (spec.metadata.get("open_low") and value == low):
            bracket = "(" if spec.metadata.get("open_low") else "["
            hint = "; eps is in pixel units of [0, 1], write 8/255" if spec.name == "eps_train" else ""
            raise ValueError(f"{where} lies outside {bracket}{low}, {high}]{hint}")
    if recipe.eps_ramp[1] < recipe.eps_ramp[0]:
        raise ValueError(f"recipe {name_of(recipe)}: eps_ramp = {recipe.eps_ramp} must not end before it starts")


def override(recipe: Recipe, changes: Mapping[str, str]) -> Recipe:
    """The recipe with fields replaced from text, as `--set lr=1e-3` gives them.

    Raises:
        ValueError: unknown field (with a suggestion), or a value of the wrong type or range.
    """
    hints = typing.get_type_hints(type(recipe))
    values: dict[str, Any] = {}
    for key, text in changes.items():
        if key in _IDENTITY:
            raise ValueError(f"--set {key}: this names the recipe itself; choose it with -d, --eps or --preset")
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            known = ", ".join(f.name for f in dataclasses.fields(recipe) if f.name not in _IDENTITY)
            raise ValueError(
                f"--set {key}: no such field in recipe {name_of(recipe)}"
                + (f'; did you mean "{close[0]}"?' if close else "")
                + f" (fields: {known})"
            )
        values[key] = _parse(key, text, hints[key])
    return dataclasses.replace(recipe, **values)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Field -> JSON value; tuples become lists, and a number is a float wherever the field is one (lr=1 is lr=1.0)."""
    hints = typing.get_type_hints(type(recipe))
    return {f.name: _json(getattr(recipe, f.name), hints[f.name]) for f in dataclasses.fields(recipe)}


def recorded(recipe: Recipe) -> dict[str, Any]:
    """`as_dict` without fields that were added when records existed (metadata `added`) and still have their default."""
    added = [f for f in dataclasses.fields(recipe) if f.metadata.get("added")]
    unused = {f.name for f in added if getattr(recipe, f.name) == f.default}
    return {name: value for name, value in as_dict(recipe).items() if name not in unused}


def content_hash(recipe: Recipe) -> str:
    """sha256 over the recipe's recorded fields in canonical JSON; `source` is prose and left out."""
    content = {k: v for k, v in recorded(recipe).items() if k != "source"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def lr_factor(step: Step) -> float:
    """Factor on the initial lr at this step, by the recipe's `lr_schedule`.

    cosine: 1 until lr_hold epochs, then half a cosine down to 0 at the end of the run.
    step: lr_decay to the number of lr_milestones (epochs) passed. constant: 1.
    """
    recipe = step.recipe
    if recipe.lr_schedule == "cosine":
        done = (step.epoch_float - recipe.lr_hold) / max(step.epochs - recipe.lr_hold, 1e-12)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))
    if recipe.lr_schedule == "step":
        return float(recipe.lr_decay ** sum(step.epoch_float >= m for m in recipe.lr_milestones))
    return 1.0


def _has_type(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_has_type(v, args[0]) for v in value)
        return len(value) == len(args) and all(_has_type(v, a) for v, a in zip(value, args, strict=True))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _json(value: Any, hint: Any) -> Any:
    if isinstance(value, tuple):
        args = typing.get_args(hint)
        kinds = args[:1] * len(value) if args[1:] == (Ellipsis,) else args
        return [_json(v, kind) for v, kind in zip(value, kinds, strict=True)]
    return float(value) if hint is float else value


def _type_name(hint: Any) -> str:
    names = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a word"}
    return names.get(hint, str(hint))


def _parse(key: str, text: str, hint: Any) -> Any:
    try:
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if hint in (int, str):
            return hint(text)
        if hint is float:
            return _number(text)
        if typing.get_origin(hint) is tuple:
            kind = typing.get_args(hint)[0]
            return tuple(_parse(key, part, kind) for part in text.split(",") if part)
    except (ValueError, KeyError, ZeroDivisionError):
        pass
    raise ValueError(f"--set {key}={text}: {key} must be {_type_name(hint)}")


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(above)
