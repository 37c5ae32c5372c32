"""What a record must look like: the schema, what a schema cannot say, and what no record may give away."""

from __future__ import annotations

import getpass
import json
import math
import re
import socket
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .eps import Eps

_SCHEMA_FILE = Path(__file__).with_name("record.schema.json")
_ABSOLUTE = re.compile(r"(?:^|[\s\"'=(,;])(?:/[\w.-]+/[\w.-]|[A-Za-z]:\\|~/|file:/)")
_AUTHORED = ("cell", "method", "recipe", "certified_with", "attacked_with", "trained_with")
_COMMON_NAMES = {"localhost", "ubuntu", "debian", "fedora", "runner", "admin", "docker", "jovyan", "builder"}


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of the current version, `bench/record.schema.json`."""
    return dict(json.loads(_SCHEMA_FILE.read_text(encoding="utf-8")))


def validate(data: Mapping[str, Any]) -> str | None:
    """The first fault as `field: what is wrong`, or None. The slow and thorough check, by jsonschema."""
    import jsonschema  # 0.15 s, and only a writer needs it

    errors = sorted(jsonschema.Draft202012Validator(schema()).iter_errors(data), key=lambda e: list(map(str, e.path)))
    if errors:
        first = jsonschema.exceptions.best_match(errors)
        return f"{'.'.join(map(str, first.absolute_path)) or 'top level'}: {first.message[:200]}"
    return first_error(schema(), data) or semantics(data)  # jsonschema takes 1.0 for a whole number, readers do not


def semantics(data: Mapping[str, Any]) -> str | None:
    """What a schema cannot say."""
    cell, evaluation = data["cell"], data["evaluation"]
    try:
        Eps(cell["eps"])
    except ValueError as error:
        return f"cell.{error}"
    if evaluation["eps"] != cell["eps"]:
        return f"evaluation.eps = {evaluation['eps']} differs from cell.eps = {cell['eps']}"
    if data["data"]["name"] != cell["dataset"]:
        return f"data.name = {data['data']['name']} differs from cell.dataset = {cell['dataset']}"
    counts = [evaluation[k] for k in ("n_certified", "n_robust", "n_correct", "n")]
    if counts != sorted(counts):
        return "evaluation: n_certified <= n_robust <= n_correct <= n does not hold: " + ", ".join(map(str, counts))
    headlines = sum(c["headline"] for c in evaluation["certificates"])
    if evaluation["certificates"] and headlines != 1:
        return f"evaluation.certificates: {headlines} are marked as headline; one must be"
    return None


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def first_error(rule: Mapping[str, Any], value: Any, where: str = "") -> str | None:
    """`validate` without jsonschema, for the keywords our schema uses: 1000 records in under a second, not ten."""
    if "enum" in rule and value not in rule["enum"]:
        return f"{where or 'top level'} = {value!r} is not one of {', '.join(map(str, rule['enum']))}"
    if "type" in rule:
        names = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
        allowed = tuple(t for name in names for t in _TYPES[name])
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            return f"{where or 'top level'} = {str(value)[:40]!r} is not of type {' or '.join(names)}"
    if isinstance(value, dict):
        for name in rule.get("required", ()):
            if name not in value:
                return f"{where + '.' if where else ''}{name} is missing"
        known, extra = rule.get("properties", {}), rule.get("additionalProperties", True)
        for name, item in value.items() if known or extra is not True else ():
            inner = known.get(name, extra)
            path = f"{where}.{name}" if where else name
            if inner is False:
                return f"{path} is not a field of a record"
            if inner is not True and (found := first_error(inner, item, path)):
                return found
    elif isinstance(value, list) and "items" in rule:
        for at, item in enumerate(value):
            if found := first_error(rule["items"], item, f"{where}[{at}]"):
                return found
    elif isinstance(value, str):
        if "pattern" in rule and not re.search(rule["pattern"], value):
            return f"{where} = {value[:40]!r} has the wrong form"
    elif isinstance(value, (int, float)) and value < rule.get("minimum", -math.inf):
        return f"{where} = {value} is below {rule['minimum']}"
    return None


def plain(value: Any, where: str = "record") -> Any:
    """Python's own types only; numpy scalars become numbers. An infinite p in the history becomes "inf"."""
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        if value == math.inf and where.startswith(
            ("record.training.history", "record.recipe", "record.evaluation.att")
        ):
            return "inf"  # the exponent of an l_inf net; JSON knows no infinity
        raise ValueError(f"{where} = {value}: a record holds finite numbers only")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"{where} is a {type(value).__name__}; a record holds numbers, words, lists and objects")


def private(data: Mapping[str, Any]) -> str | None:
    """Where a record names a folder, host or user of the machine it was made on, or None.

    Names are not looked for in keys, nor in what the method's and the recipe's authors wrote: there a user called
    `kernels`, or the author of a cited repository, is no secret.
    """
    names = {_user(), socket.gethostname(), socket.gethostname().partition(".")[0]} - _COMMON_NAMES
    words = [re.escape(n) for n in sorted(names) if len(n) >= 5]  # shorter names are too often ordinary words
    named = re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])", re.IGNORECASE) if words else None
    for where, text in _strings(data, ""):
        if found := _ABSOLUTE.search(text):
            return f"{where} holds an absolute path ({found.group().strip()}); a record names no folder of a machine"
        shown = where.endswith("device") or where.endswith("(key)") or where.partition(".")[0] in _AUTHORED
        if named and not shown and (found := named.search(text)):
            return (
                f'{where} holds "{found.group()}", the name of this host or user, and a record names neither; what was '
                "computed is kept: take it out there, or, if it is just a word, run again with LOGNAME=someone"
            )
    return None


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{where} (key)", str(key)
            yield from _strings(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _strings(item, f"{where}[{at}]")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no entry in the password file, no variable: nothing to hide
        return ""
