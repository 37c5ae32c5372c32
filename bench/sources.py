"""Where methods come from: modules of `methods/`, entry points of installed packages, single files.

Names are read from source text and package metadata: nothing is imported before a `Source` is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import one_line, printable

BUILT_IN, ENTRY_POINT, FILE = "built-in", "entry point", "file"
_DECORATED = re.compile(r"^@(\w+\.)*register\b", re.MULTILINE)
_MAX_SOURCE_BYTES = 4_000_000  # nobody writes a method that long; a data file given by mistake is


@dataclass(frozen=True)
class Source:
    """Where a method would come from.

    `load` imports it, whatever that may raise; it returns the module whose import registers `name`, or for an entry
    point the object that it names. `error` is a reason known without importing.
    """

    name: str
    origin: str  # BUILT_IN, ENTRY_POINT or FILE
    where: str  # module, entry point value or file name, for messages
    load: Callable[[], Any]
    error: str | None = None


def built_ins(package: str) -> Iterator[Source]:
    """Methods of every module under the package that has a line starting with `@register`."""
    spec = importlib.util.find_spec(package)
    for root in sorted(spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(root).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            home = parts[:-1] if parts[-1] == "__init__" else parts
            yield from _built_in(path, ".".join((package, *home)))


def _built_in(path: Path, module: str) -> Iterator[Source]:
    def load() -> ModuleType:
        return importlib.import_module(module)

    fallback = module.rpartition(".")[2]
    try:
        names = names_in(read(path), fallback)
    except OSError as error:
        yield Source(fallback, BUILT_IN, module, load, f"{path.name} cannot be read ({error.strerror or error})")
        return
    for name in names:
        yield Source(name, BUILT_IN, module, load)


def entry_points(group: str) -> Iterator[Source]:
    """Methods that installed packages announce; reading the announcements imports none of them."""
    try:
        points = {(point.name, point.value): point for point in importlib.metadata.entry_points(group=group)}
    except Exception as error:  # one package with unreadable metadata must not take the others along
        reason = f"package metadata cannot be read: {one_line(error)}"
        yield Source("entry_points", ENTRY_POINT, group, str, reason)
        return
    for (name, value), point in sorted(points.items()):  # a dict: a package found twice on the path counts once
        yield Source(name, ENTRY_POINT, printable(value), point.load)


def file_methods(path: Path) -> list[Source]:
    """Methods of one Python file, which is imported under a private module name.

    Raises:
        OSError: it cannot be read.
    """

    def load() -> ModuleType:
        return _import_file(path)

    return [Source(name, FILE, printable(path.name), load) for name in names_in(read(path), path.stem)]


def _import_file(path: Path) -> ModuleType:
    """Execute a plugin file, once."""
    name = "bench_plugin_" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and get_type_hints look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def read(path: Path) -> str:
    """The text of a source file; bytes that are no UTF-8 are left to the import to complain about."""
    with path.open("rb") as file:
        return file.read(_MAX_SOURCE_BYTES).decode("utf-8", errors="replace")


def names_in(text: str, fallback: str) -> list[str]:
    """`name` of every class decorated with @register; `fallback` where it is not written as a plain string."""
    if not _DECORATED.search(text):
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [fallback]  # importing it will say what is wrong
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_registered(node)]
    return [_name_of(node) or fallback for node in classes] or [fallback]


def _is_registered(node: ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).split(".")[-1] == "register" for decorator in node.decorator_list)


def _name_of(node: ast.ClassDef) -> str | None:
    """The string given to `name` in a class body: `name = "x"`, `name: str = "x"` or `name, title = "x", "X"`."""
    for item in node.body:
        if isinstance(item, ast.Assign):
            targets = item.targets
        elif isinstance(item, ast.AnnAssign):
            targets = [item.target]
        else:
            continue
        for target in targets:
            pairs = [(target, item.value)]
            if isinstance(target, ast.Tuple) and isinstance(item.value, ast.Tuple):
                pairs = list(zip(target.elts, item.value.elts, strict=False))
            for left, right in pairs:
                if isinstance(left, ast.Name) and left.id == "name" and isinstance(right, ast.Constant):
                    return right.value if isinstance(right.value, str) else None
    return None
