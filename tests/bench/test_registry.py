"""Methods are found without importing them, and a broken one is one line with its reason."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import Eps, Method, Recipe, probe, register, registry, sources
from bench.errors import UsageError
from bench.registry import PluginError, Registry

GOOD = """
from bench import Bound, Losses, Method, Recipe, register
@register
class Good(Method):
    name, title = "good", "Good"
    def recipes(self):
        yield Recipe(dataset="digits", eps="0.1", preset="quick", source="ours")
        yield Recipe(dataset="digits", eps="0.1", preset="paper", source="ours")
        yield Recipe(dataset="cifar10", eps="8/255", preset="paper", source="ours")
    def build(self, data, recipe): ...
    def loss(self, net, x, y, step): ...
    def margin_bound(self, net, x, y, eps): ...
"""


def empty() -> Registry:
    """A registry that knows no built-ins and no installed plugins."""
    return Registry("no_such_package", "no.such.group")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of methods, `house`, with one good method."""
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name == "house" or name.startswith("house.")]:
        del sys.modules[name]


# --- built-ins --------------------------------------------------------------------------------------------------------


def test_names_of_the_real_methods_are_listed_without_importing_torch_or_them() -> None:
    code = (
        "import sys; from bench import registry; names = registry.names(); "
        "assert 'linf_dist' in names and 'linf_dist_v2' in names, names; "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'methods')]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(registry.__file__).parents[1])


def test_every_real_method_loads_and_its_module_is_named_after_one_of_its_methods() -> None:
    for entry in registry.load_all():
        if entry.origin == sources.BUILT_IN:
            assert entry.error is None, entry
            assert entry.name in entry.where.split("."), f"{entry.name} stands in {entry.where}"


def test_methods_of_a_package_are_found_in_modules_and_subpackages(package: Path) -> None:
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").write_text(GOOD.replace('"good"', '"deep"'))
    (package / "deep" / "parts.py").write_text("register = None\n")
    assert Registry("house", "no.such.group").names() == ["deep", "good"]


def test_broken_built_in_costs_only_its_own_row(package: Path) -> None:
    (package / "worse.py").write_text("raise OSError('disk on fire')\n" + GOOD.replace('"good"', '"worse"'))
    entries = {entry.name: entry for entry in Registry("house", "no.such.group").load_all()}
    assert entries["good"].method is not None
    assert entries["worse"].method is None
    assert entries["worse"].error == "OSError: disk on fire (worse.py:1, in <module>)"


def test_broken_module_is_executed_once(package: Path) -> None:
    (package / "worse.py").write_text(
        "import builtins; builtins.runs = getattr(builtins, 'runs', 0) + 1\nraise ValueError\n"
        + GOOD.replace('"good"', '"worse"')
    )
    found = Registry("house", "no.such.group")
    found.load_all()
    with pytest.raises(PluginError):
        found.get("worse")
    import builtins

    assert builtins.__dict__.pop("runs") == 1


# --- files ------------------------------------------------------------------------------------------------------------


def test_file_gives_its_methods_without_being_imported(tmp_path: Path) -> None:
    path = tmp_path / "plugin file.py"
    path.write_text(GOOD + "\n@register\nclass Other(Good):\n    name: str = 'other'\nraise SystemExit(1)\n")
    found = empty()
    assert found.add_file(path) == ["good", "other"]
    assert found.names() == ["good", "other"] and found.plugin_files() == (path,)


def test_method_of_a_file_works_and_its_recipes_resolve(tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    path.write_text("from __future__ import annotations\n" + GOOD)
    found = empty()
    found.add_file(path)
    assert found.get("good").title == "Good"
    assert registry.recipe(found.get("good"), "digits", "0.1", "quick").preset == "quick"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nowhere_at_all\n" + GOOD, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("import sys; sys.exit(3)\n" + GOOD, "calls sys.exit(3)"),
        ("class Strange(BaseException): ...\nraise Strange('why')\n" + GOOD, "Strange: why"),
        ("raise ValueError('two\\nlines')\n" + GOOD, "ValueError: two (good.py:1, in <module>)"),
        ("raise ValueError('\\x1b[31mred')\n" + GOOD, "ValueError: \\x1b[31mred"),
        (GOOD + "def broken(:\n", "SyntaxError: invalid syntax (line 13)"),
        (GOOD.replace("(Method)", ""), "Good is not a bench.Method; write `class Good(Method)`"),
        (GOOD.replace("def loss", "def los"), "Good must define loss()"),
        (GOOD.replace('"Good"', '""'), "Good.title = '' must be one line"),
        (GOOD.replace('"Good"', '"a\\nb"'), "must be one line of 1 to 60 printable characters"),
        (GOOD.replace('"good", "Good"', '"good", "Good"; norm = "l7"'), "norm = 'l7' must be one of linf"),
        (GOOD.replace('"good", "Good"', '"good", "Good"; norm = "l2"'), "norm = 'l2' must be one of linf"),
        (GOOD.replace('"good", "Good"', '"good", "Good"; paper = 3'), "paper = 3 must be a citekey or None"),
        ("def register(cls): return cls\n" + GOOD.replace(", register", ""), 'registers no method "good"'),
        (GOOD + "\n@register\nclass Twin(Good): ...\n", 'name "good" is taken by Good beside it'),
    ],
)
def test_broken_file_is_one_line_with_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "good.py"
    path.write_text(text)
    found = empty()
    found.add_file(path)
    with pytest.raises(PluginError) as caught:
        found.get("good")
    line = str(caught.value)
    assert line.startswith('method "good" (file, good.py) is broken: ')
    assert reason in line and line.isprintable()


def test_ctrl_c_during_an_import_is_not_the_plugins_fault(tmp_path: Path) -> None:
    path = tmp_path / "good.py"
    path.write_text("raise KeyboardInterrupt\n" + GOOD)
    found = empty()
    found.add_file(path)
    with pytest.raises(KeyboardInterrupt):
        found.get("good")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.write_text("x = 1\n"), "no class in it is decorated with @register"),
        (lambda path: path.write_bytes(b"\x00\xff" * 9), "no class in it is decorated with @register"),
        (lambda path: path.symlink_to(path), "no such file|cannot be read"),
    ],
)
def test_path_that_is_no_plugin_is_refused_in_one_line(make, what: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "plugin.py"
    make(path)
    with pytest.raises(UsageError, match=what):
        empty().add_file(path)


@pytest.mark.parametrize("path", ["a\nb.py", "x\0.py", "~nobody_here/x.py", "y" * 300 + ".py", "method.txt", ""])
def test_strange_path_is_refused_in_one_printable_line(path: str) -> None:
    with pytest.raises(UsageError) as caught:
        empty().add_file(path)
    assert str(caught.value).isprintable() and str(caught.value).startswith("--plugin")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(0)", "importing it ended the process (exit code 0)"),
        ("import ctypes; ctypes.string_at(0)", "importing it crashed the process (SIGSEGV)"),
        ("while True: pass", "importing it does not end within 4 s"),
    ],
)
def test_import_that_ends_or_holds_a_process_is_one_row_of_the_list(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe.importing, "__kwdefaults__", probe.importing.__kwdefaults__ | {"limit_s": 4.0})
    path = tmp_path / "good.py"
    path.write_text(f"{code}\n{GOOD}")
    found = empty()
    found.add_file(path)
    (entry,) = found.load_all()
    assert (entry.method, entry.error) == (None, reason)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "linf_dist", "x9_", "a" * 40])
def test_snake_case_is_a_name(name: str) -> None:
    assert registry.is_name(name)


@pytest.mark.parametrize("name", ["", "A", "9a", "_a", "a-b", "a.b", "../a", "a b", "a" * 41, "é", "a\n", "a\0"])
def test_anything_else_is_no_name(name: str) -> None:
    assert not registry.is_name(name)


def test_register_refuses_an_impossible_name() -> None:
    with pytest.raises(ValueError, match=r"Bad.name = '../x' must be snake_case"):
        register(type("Bad", (_complete(),), {"name": "../x", "title": "Bad"}))


def test_unknown_name_gets_a_suggestion(package: Path) -> None:
    with pytest.raises(UsageError, match='no method "godo"; did you mean "good"\\? `bench list methods` shows all 1'):
        Registry("house", "no.such.group").get("godo")


def test_a_file_may_not_hide_behind_a_built_in_name(package: Path, tmp_path: Path) -> None:
    """It would be ignored, and the built-in measured in its place."""
    path = tmp_path / "thief.py"
    path.write_text(GOOD)
    found = Registry("house", "no.such.group")
    with pytest.raises(UsageError, match='the name "good" is that of a built-in method'):
        found.add_file(path)
    assert found.plugin_files() == () and type(found.get("good")).__module__ == "house.good"


# --- entry points -----------------------------------------------------------------------------------------------------


def _install(folder: Path, lines: str, text: str = GOOD) -> None:
    """What pip leaves of a package: a module and its metadata."""
    (folder / "third_party_method.py").write_text(text)
    info = folder / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[test.methods]\n{lines}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("third_party_method", None)


def test_entry_point_is_listed_without_import_and_loads(site: Path) -> None:
    _install(site, "good = third_party_method:Good")
    found = Registry("no_such_package", "test.methods")
    assert found.names() == ["good"] and "third_party_method" not in sys.modules
    assert found.get("good").name == "good"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("good = third_party_method:Missing", "has no attribute 'Missing'"),
        ("good = nowhere_at_all:Good", "No module named 'nowhere_at_all'"),
        ("better = third_party_method:Good", 'it calls itself "good"; the two names must be the same'),
        ("Not-A-Name = third_party_method:Good", "must be snake_case"),
        ("good = third_party_method:GROUP", "is not a bench.Method"),
    ],
)
def test_broken_entry_point_is_one_line_with_the_reason(line: str, reason: str, site: Path) -> None:
    _install(site, line, GOOD + "\nGROUP = 7\n")
    found = Registry("no_such_package", "test.methods")
    with pytest.raises(PluginError) as caught:
        found.get(*found.names())
    assert reason in str(caught.value)


def test_unreadable_metadata_is_one_row(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    def fail(**_: str) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.setattr(importlib.metadata, "entry_points", fail)
    rows = {entry.name: entry for entry in Registry("house").load_all()}
    assert rows["good"].error is None
    assert "package metadata cannot be read" in str(rows["entry_points"].error)


# --- recipes ----------------------------------------------------------------------------------------------------------


def _complete() -> type[Method]:
    class Complete(Method):
        name, title = "complete", "Complete"

        def recipes(self):  # type: ignore[no-untyped-def]
            return []

        def build(self, data, recipe): ...  # type: ignore[no-untyped-def]

        def loss(self, net, x, y, step): ...  # type: ignore[no-untyped-def]

        def margin_bound(self, net, x, y, eps): ...  # type: ignore[no-untyped-def]

    return Complete


@pytest.fixture
def good(tmp_path: Path) -> Method:
    (tmp_path / "good.py").write_text(GOOD)
    found = empty()
    found.add_file(tmp_path / "good.py")
    return found.get("good")


@pytest.mark.parametrize(
    ("dataset", "eps", "preset", "message"),
    [
        ("mnits", "0.1", "quick", 'good has no recipe for data set "mnits"; it has: digits, cifar10 '),
        ("digits", "0.2", "quick", "good has no recipe for digits at eps 0.2; it has: 0.1 "),
        ("digits", "0.1", "hour", 'good has no recipe for digits at eps 0.1, preset "hour"; it has: quick, paper '),
    ],
)
def test_missing_recipe_says_what_there_is(good: Method, dataset: str, eps: str, preset: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.recipe(good, dataset, eps, preset)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("eps", ["0.1", "1/10", "0.10", Eps("0.1")])
def test_recipe_is_found_by_the_value_of_eps(good: Method, eps: str) -> None:
    assert registry.recipe(good, "digits", eps, "paper").preset == "paper"


def test_recipe_passes_on_what_is_wrong_with_eps(good: Method) -> None:
    with pytest.raises(ValueError, match="did you mean 8/255"):
        registry.recipe(good, "cifar10", "0.03137", "paper")


@dataclass(frozen=True, kw_only=True)
class Custom(Recipe):
    width: int = 3


def _custom(item: object) -> object:
    shared = {"dataset": "digits", "preset": "quick", "source": "ours"}
    return Custom(**shared, **item) if isinstance(item, dict) else item


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([3], "yields a int, not a Recipe"),
        ([dict(eps="0.1"), dict(eps="1/10")], "yields digits/1/10/quick twice"),
        ([dict(eps="2")], "recipes() fails, ValueError: recipe digits/2/quick: eps = '2' lies outside"),
        ([dict(eps="0.1", width="3")], "width = '3' is not a whole number"),
    ],
)
def test_broken_recipes_name_the_method_and_the_reason(items: list[object], reason: str) -> None:
    method = _complete()()
    method.recipes = lambda: (_custom(item) for item in items)  # type: ignore[method-assign]
    with pytest.raises(PluginError) as caught:
        registry.recipes(method)
    assert reason in str(caught.value) and '"complete"' in str(caught.value)
