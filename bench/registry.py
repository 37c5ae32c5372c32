"""Which methods there are, and how one becomes known: the `@register` decorator, lookup by name, recipes.

Listing names imports nothing, torch least of all; a method is imported when it is asked for. A plugin that cannot be
loaded is an `Entry` with a reason, never an outage: the others work on. Where two define the same name, the first of
built-in, entry point, file has it and the other is the broken one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import probe
from .eps import Eps
from .errors import BenchError, UsageError, one_line, place, printable
from .sources import BUILT_IN, Source, built_ins, entry_points, file_methods

if TYPE_CHECKING:
    from .contract import Method, Recipe

GROUP = "bench.methods"  # of entry points
NORMS = ("linf",)  # boxes, attacks and checks know no other ball
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_NAME_RULE = "must be snake_case, [a-z][a-z0-9_]*, at most 40 characters"
_REQUIRED = ("recipes", "build", "loss", "margin_bound")

T = TypeVar("T", bound="type[Method]")


class PluginError(BenchError):
    """A method exists but cannot be loaded or breaks its contract; the message names it and says why."""


@dataclass(frozen=True)
class Entry:
    """One row of `bench list methods`: `method` is None exactly when `error` says why."""

    name: str
    method: Method | None
    origin: str  # "built-in", "entry point" or "file"
    error: str | None = None
    where: str = ""  # module, entry point value or file name, for messages


# --- the decorator ----------------------------------------------------------------------------------------------------

_registered: dict[tuple[str, str], Method] = {}  # (module, method name) -> its one instance


def register(cls: T) -> T:
    """Class decorator: makes a `Method` known under its `name`.

    Raises:
        ValueError: not a complete method; the message names the class, the member and how to mend it.
    """
    method = instance_of(cls)
    key = (cls.__module__, method.name)
    other = _registered.get(key)
    if other is not None and type(other).__qualname__ != cls.__qualname__:
        raise ValueError(f'{cls.__qualname__}: name "{method.name}" is taken by {type(other).__qualname__} beside it')
    _registered[key] = method
    return cls


def instance_of(thing: Any) -> Method:
    """The method that a class (or an instance) defines, its members checked.

    Raises:
        ValueError: as `register`.
    """
    from .contract import Method

    cls = thing if isinstance(thing, type) else type(thing)
    if not issubclass(cls, Method):
        raise ValueError(f"{cls.__qualname__} is not a bench.Method; write `class {cls.__qualname__}(Method)`")
    missing = [f"{member}()" for member in _REQUIRED if getattr(cls, member) is getattr(Method, member)]
    if missing:
        raise ValueError(f"{cls.__qualname__} must define {', '.join(missing)}")
    name, title, paper, norm = (getattr(cls, key, None) for key in ("name", "title", "paper", "norm"))
    if not isinstance(name, str) or not is_name(name):
        raise ValueError(f"{cls.__qualname__}.name = {name!r} {_NAME_RULE}")
    if not isinstance(title, str) or not title.strip() or not title.isprintable() or len(title) > 60:
        raise ValueError(f"{cls.__qualname__}.title = {title!r} must be one line of 1 to 60 printable characters")
    if paper is not None and not (isinstance(paper, str) and paper.isprintable()):
        raise ValueError(f"{cls.__qualname__}.paper = {paper!r} must be a citekey or None")
    if norm not in NORMS:
        raise ValueError(f"{cls.__qualname__}.norm = {norm!r} must be one of {', '.join(NORMS)}")
    return thing() if isinstance(thing, type) else thing


def is_name(name: str) -> bool:
    """Whether `name` may name a method: [a-z][a-z0-9_]*, at most 40 characters."""
    return _NAME.fullmatch(name) is not None


# --- lookup -----------------------------------------------------------------------------------------------------------


class Registry:
    """The methods of one process. Tests make their own; everybody else uses the module's functions.

    Args:
        package: importable package that holds the built-ins.
        group: entry point group of third parties.
    """

    def __init__(self, package: str = "methods", group: str = GROUP) -> None:
        self._package, self._group = package, group
        self._files: dict[Path, list[Source]] = {}
        self._found: list[Source] | None = None  # in order of precedence; scanned once
        self._entries: dict[tuple[str, str, str], Entry] = {}  # a broken module is not executed a second time

    def names(self) -> list[str]:
        """Names of all methods, broken ones included, sorted; imports nothing."""
        return sorted({source.name for source in self._sources()})

    def get(self, name: str) -> Method:
        """The method of that name, imported now if need be.

        Raises:
            UsageError: there is no such method; the message suggests one.
            PluginError: there is, and it is broken; the message says why.
        """
        for source in self._sources():
            if source.name == name:
                entry = self._load(source)
                if entry.method is None:
                    raise PluginError(f'method "{name}" ({entry.origin}, {entry.where}) is broken: {entry.error}')
                return entry.method
        known = self.names()
        close = difflib.get_close_matches(name, known, n=1)
        hint = f' did you mean "{close[0]}"?' if close else ""
        raise UsageError(
            f'no method "{printable(name)}";{hint} `bench list methods` shows all {len(known)}; '
            "one of your own needs --plugin FILE"
        )

    def load_all(self) -> list[Entry]:
        """Every method, sorted by name, imported; broken ones and second users of a name carry their reason.

        Third parties' are imported in another process first: one that hangs or ends a process ends that one.
        """
        foreign = [s for s in self._sources() if s.origin != BUILT_IN and not s.error and _key(s) not in self._entries]
        verdict = self._probe(foreign) if foreign else None
        if verdict:
            for source in foreign:
                reason = self._probe([source]) if len(foreign) > 1 else verdict
                if reason:
                    self._entries[_key(source)] = Entry(source.name, None, source.origin, reason, source.where)
        return sorted((self._load(source) for source in self._sources()), key=lambda entry: entry.name)

    def add_file(self, path: str | Path) -> list[str]:
        """Make the methods of one Python file known; it is imported when one of them is asked for.

        Returns:
            The names it defines, by its text.

        Raises:
            UsageError: the path is no readable Python file, or no method is registered in it.
        """
        shown = f"--plugin {printable(str(path))}"
        try:
            full = Path(path).expanduser().resolve()
            if full.suffix != ".py" or not full.is_file():
                what = "no such file" if not full.exists() else "a folder" if full.is_dir() else "not a .py file"
                raise UsageError(f"{shown}: {what}; give the Python file that registers the method")
            found = file_methods(full)
        except (OSError, ValueError, RuntimeError) as error:  # no permission; NUL in the path; a loop of links
            raise UsageError(f"{shown}: cannot be read, {one_line(error)}") from None
        if not found:
            raise UsageError(f"{shown}: no class in it is decorated with @register; `bench new-method` writes one")
        own = {source.name for source in built_ins(self._package)}
        if taken := [source.name for source in found if source.name in own]:
            raise UsageError(f'{shown}: the name "{taken[0]}" is that of a built-in method, which would run; rename it')
        self._files[full] = found
        self._found = None
        return [source.name for source in found]

    def plugin_files(self) -> tuple[Path, ...]:
        """The files added, so that a child process can be given the same ones."""
        return tuple(self._files)

    def _sources(self) -> list[Source]:
        if self._found is None:
            found = [*built_ins(self._package), *entry_points(self._group)]
            found += [source for sources in self._files.values() for source in sources]
            self._found = list(_without_clashes(found))
        return self._found

    def _load(self, source: Source) -> Entry:
        if _key(source) not in self._entries:
            self._entries[_key(source)] = _entry(source)
        return self._entries[_key(source)]

    def _probe(self, suspects: list[Source]) -> str | None:
        names = [source.name for source in suspects]
        return probe.importing(names, package=self._package, group=self._group, files=self.plugin_files())


def _key(source: Source) -> tuple[str, str, str]:
    return source.origin, source.where, source.name


def _without_clashes(sources: list[Source]) -> Iterator[Source]:
    """The sources, those with an impossible or an already taken name marked as broken."""
    taken: dict[str, Source] = {}
    for source in sources:
        first = taken.setdefault(source.name, source)
        if not is_name(source.name):
            shown = printable(source.name)
            yield replace(source, name=shown, error=f'its name "{shown}" {_NAME_RULE}')
        elif first is not source:
            reason = f'the name "{source.name}" is taken by {first.where} ({first.origin}); rename it'
            yield replace(source, error=reason)
        else:
            yield source


def _entry(source: Source) -> Entry:
    """Load a source; whatever goes wrong becomes the reason."""
    method: Method | None = None
    error = source.error
    if not error:
        try:
            loaded = source.load()
            method = _registered_by(loaded, source.name) if _is_module(loaded) else instance_of(loaded)
            if method.name != source.name:
                raise ValueError(f'it calls itself "{method.name}"; the two names must be the same')
        except KeyboardInterrupt:  # the user's, not the plugin's
            raise
        except BaseException as problem:  # whatever an import may raise, SystemExit included
            method, error = None, one_line(problem) + place(problem)
    return Entry(source.name, method, source.origin, error, source.where)


def _is_module(thing: Any) -> bool:
    return isinstance(thing, type(re))


def _registered_by(module: Any, name: str) -> Method:
    method = _registered.get((module.__name__, name))
    if method is None:
        raise ValueError(f'{module.__name__} registers no method "{name}" when it is imported')
    return method


# --- recipes ----------------------------------------------------------------------------------------------------------


def recipes(method: Method) -> list[Recipe]:
    """Every recipe of a method.

    Raises:
        PluginError: `recipes()` fails, yields something else, or yields one twice.
    """
    from .contract import Recipe
    from .recipe import name_of

    broken = f'method "{method.name}" is broken: recipes()'
    try:
        found = list(method.recipes())
    except Exception as error:
        raise PluginError(f"{broken} fails, {one_line(error)}{place(error)}") from error
    seen = set()
    for item in found:
        if not isinstance(item, Recipe):
            raise PluginError(f"{broken} yields a {type(item).__name__}, not a Recipe")
        key = (item.dataset, item.radius, item.preset)
        if key in seen:
            raise PluginError(f"{broken} yields {name_of(item)} twice")
        seen.add(key)
    return found


def recipe(method: str | Method, dataset: str, eps: str | Eps, preset: str) -> Recipe:
    """The recipe of a method for one data set, radius and preset.

    Raises:
        ValueError: eps is no radius.
        UsageError: there is none; the message lists the nearest that exist.
        PluginError: the method is broken.
    """
    method = get(method) if isinstance(method, str) else method
    radius = Eps(eps)
    narrowing: tuple[tuple[str, Callable[[Recipe], bool], Callable[[Recipe], str]], ...] = (
        (f'data set "{printable(dataset)}"', lambda r: r.dataset == dataset, lambda r: r.dataset),
        (f"{dataset} at eps {radius}", lambda r: r.radius == radius, lambda r: r.eps),
        (f'{dataset} at eps {radius}, preset "{printable(preset)}"', lambda r: r.preset == preset, lambda r: r.preset),
    )
    found = recipes(method)
    for what, fits, shown in narrowing:
        left = [r for r in found if fits(r)]
        if not left:
            there = ", ".join(dict.fromkeys(shown(r) for r in found)) or "none"
            raise UsageError(f"{method.name} has no recipe for {what}; it has: {there} (`bench list recipes`)")
        found = left
    return found[0]


# --- the registry of this process -------------------------------------------------------------------------------------

_default = Registry()
names = _default.names
get = _default.get
load_all = _default.load_all
add_file = _default.add_file
plugin_files = _default.plugin_files
