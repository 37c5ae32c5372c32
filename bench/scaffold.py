"""`bench new-method NAME`: a folder with a working method of about 40 lines, its packaging and its test. No torch."""

from __future__ import annotations

import importlib.util
import keyword
import shutil
from importlib import resources
from pathlib import Path
from string import Template

from . import registry
from .errors import UsageError, printable

_FILES = {  # template -> file in the new folder
    "method.py.template": "{name}.py",
    "pyproject.toml.template": "pyproject.toml",
    "test_method.py.template": "test_{name}.py",
}
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # on Windows


def new_method(name: str, parent: Path | None = None) -> list[Path]:
    """Write the folder `name` into `parent` (the current folder): an installable plugin that works at once.

    Returns:
        The files written.

    Raises:
        UsageError: the name is not snake_case or is taken, or the folder exists or cannot be written.
    """
    if not registry.is_name(name):
        rule = "snake_case, [a-z][a-z0-9_]*, at most 40 characters"
        raise UsageError(f'"{printable(name)}" is no name for a method: {rule}')
    folder = (parent or Path()) / name
    shown = printable(str(folder), 120)
    if folder.exists():  # before the name is looked up: here, the folder itself is importable under it
        raise UsageError(f"{shown} exists already; choose another name or remove it")
    _check_free(name)
    try:
        folder.mkdir()
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be made ({error.strerror or error}); go to a folder you may write to"
        ) from None
    words = {"name": name, "hyphened": name.replace("_", "-"), "title": _title(name), "cls": _class_name(name)}
    written, templates = [], resources.files("bench") / "templates"
    try:
        for template, pattern in _FILES.items():
            text = templates.joinpath(template).read_text(encoding="utf-8")
            path = folder / pattern.format(name=name)
            path.write_text(Template(text).substitute(words), encoding="utf-8")
            written.append(path)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UsageError(f"{shown} cannot be written ({error.strerror or error}); nothing was left there") from None
    return written


def advice(name: str) -> str:
    """What to type next, one command a line."""
    return (
        f"bench check {name} --plugin {name}/{name}.py   # does it keep the contract?\n"
        f"bench run --plugin {name}/{name}.py -m {name}\n"
        f"pip install -e {name}            # from then on without --plugin"
    )


def _check_free(name: str) -> None:
    if name in registry.names():
        raise UsageError(f'there is a method "{name}" already (`bench list methods`); choose another name')
    if keyword.iskeyword(name) or name in _RESERVED or importlib.util.find_spec(name) is not None:
        raise UsageError(f'"{name}" is taken in Python (a keyword or an importable module); choose another name')


def _title(name: str) -> str:
    return name.replace("_", " ").strip().capitalize()


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
