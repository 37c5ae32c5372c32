"""The arrows of the house: who may import whom, what works without torch, and that nobody takes a short cut.

Every module's syntax tree is walked, imports inside functions included; imports under TYPE_CHECKING do not count, they
do not happen. What must work without torch is then really imported without it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from bench import registry

ROOT = Path(registry.__file__).parents[1]
FILES = sorted([*(ROOT / "bench").rglob("*.py"), *(ROOT / "methods").rglob("*.py")])

# Rooms whose every first-party import is listed, with why there are no more. A name covers what lies below it.
ONLY = {
    "bench.errors": (),
    "bench.seeding": (),
    "bench.eps": (),
    "bench.threat": ("bench.eps",),
    "bench.recipe": ("bench.eps",),
    "bench.arguments": ("bench.eps", "bench.threat"),
    "bench.contract": ("bench.eps", "bench.recipe", "bench.arguments", "bench.flops"),  # neither train nor evaluate
    "bench.flops": ("bench.contract",),
    "bench.sources": ("bench.errors",),
    "bench.probe": ("bench.environment", "bench.errors"),
    "bench.data": ("bench.contract", "bench.threat", "bench.eps", "bench.seeding", "bench.errors"),  # no consumer
    "bench.record": ("bench.record_arrays", "bench.record_check", "bench.eps", "bench.errors", "bench.files"),
    "bench.record_arrays": ("bench.errors", "bench.eps"),
    "bench.record_check": ("bench.errors", "bench.eps"),
    "bench.beside": ("bench.record", "bench.record_arrays", "bench.record_check", "bench.errors", "bench.files"),
    "bench.certification": ("bench.beside", "bench.record", "bench.errors"),
    "bench.reattack": ("bench.beside", "bench.record"),
    "bench.report": ("bench.record", "bench.beside", "bench.certification", "bench.reattack", "bench.record_arrays",
                     "bench.record_check", "bench.eps", "bench.errors", "bench.recipe", "bench.text", "bench.files",
                     "bench.__version__"),
}  # fmt: skip

# No room looks back along the way of an image: data -> train -> evaluate -> record -> report, cli above all.
NEVER = {
    "bench.train": ("bench.evaluate", "bench.attack", "bench.certify", "bench.record", "bench.run", "bench.registry"),
    "bench.evaluate": ("bench.train", "bench.record", "bench.run", "bench.registry"),
    "bench.attack": ("bench.train", "bench.evaluate", "bench.record", "bench.run", "bench.registry", "bench.data"),
    "bench.certify": ("bench.train", "bench.evaluate", "bench.record", "bench.run", "bench.registry", "bench.data"),
    "bench.exact": ("bench.train", "bench.evaluate", "bench.record", "bench.run", "bench.registry", "bench.data"),
    "bench.cost": ("bench.train", "bench.evaluate", "bench.record", "bench.run", "bench.registry"),
    "bench.state": ("bench.train", "bench.evaluate", "bench.record", "bench.run", "bench.registry", "bench.data"),
    "bench.cell": ("bench.train", "bench.evaluate", "bench.run"),
    "bench.run": ("bench.launch", "bench.planning", "bench.report", "bench.conformance"),
}

# What of the suite a method may use: the contract, the arithmetic of the ball, post-hoc bounds.
FOR_METHODS = ("bench.lirpa", "bench.threat", "bench.certify", "bench.flops", "bench.eps", "bench.errors")

# Works in an environment without torch: what writes reports, lists, plans and complains.
TORCH_FREE = (
    "bench", "bench.eps", "bench.errors", "bench.seeding", "bench.recipe", "bench.registry", "bench.sources",
    "bench.probe", "bench.scaffold", "bench.progress", "bench.cell", "bench.cli", "bench.conformance",
    "bench.conformance.parent", "bench.data", "bench.data.catalogue", "bench.record", "bench.beside",
    "bench.certification", "bench.reattack", "bench.report",
)  # fmt: skip

THIRD_PARTY = {
    "torch", "torchvision", "numpy", "pandas", "matplotlib", "seaborn", "click", "safetensors", "jsonschema", "jinja2",
    "PIL", "tqdm", "packaging", "tomli",
}  # fmt: skip
OPTIONAL = {"auto_LiRPA", "triton", "submitit", "pyautoattack", "sklearn"}  # extras, imported where they are used


@dataclass(frozen=True)
class Import:
    """`source` imports `target` (a module, or a name in one); lazy: inside a function."""

    source: str
    target: str
    lazy: bool


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, path in MODULES.items() for found in _of_module(name, path))


def _of_module(name: str, path: Path) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    todo: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text()), False)]
    while todo:
        node, lazy = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += [(child, lazy) for child in node.orelse]
            continue
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        todo += [(child, inside) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(name, f"{base}.{alias.name}", lazy) for alias in node.names)


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def root_of(name: str) -> str:
    return name.split(".")[0]


def shown(found: list[Import]) -> str:
    return "; ".join(f"{i.source} imports {i.target}" for i in found)


# --- the arrows -------------------------------------------------------------------------------------------------------


def test_walk_sees_the_house() -> None:
    """If this fails, every other test here passes for nothing."""
    assert len(MODULES) > 20 and "bench.contract" in MODULES and "methods.linf_dist" in MODULES
    assert Import("bench.threat", "bench.eps.Eps", False) in imports()
    assert Import("bench.contract", "bench.flops.count_ops", True) in imports()


def test_methods_import_only_the_contract_and_their_neighbours() -> None:
    bad = [
        i
        for i in imports()
        if root_of(i.source) == "methods" and root_of(i.target) == "bench"
        if not within(i.target, FOR_METHODS) and i.target.removeprefix("bench.") not in _contract_names()
    ]
    assert not bad, shown(bad)


def _contract_names() -> list[str]:
    import bench

    return list(bench.__all__)


def test_methods_are_reached_through_the_registry_only() -> None:
    """`bench doctor` may import the bare package, to see whose it is."""
    bad = [i for i in imports() if root_of(i.source) == "bench" and root_of(i.target) == "methods"]
    bad = [i for i in bad if (i.source, i.target) != ("bench.doctor", "methods")]
    assert not bad, shown(bad)


@pytest.mark.parametrize("room", ONLY)
def test_room_imports_nothing_but_what_is_listed(room: str) -> None:
    inside = [i for i in imports() if within(i.source, (room,)) and root_of(i.target) in ("bench", "methods")]
    bad = [i for i in inside if not within(i.target, (room, *ONLY[room]))]
    assert not bad, shown(bad)


@pytest.mark.parametrize("room", NEVER)
def test_room_never_looks_back(room: str) -> None:
    forbidden = (*NEVER[room], "bench.cli", "bench.report", "bench.launch", "bench.conformance")
    bad = [i for i in imports() if within(i.source, (room,)) and within(i.target, forbidden)]
    assert not bad, shown(bad)


def test_nobody_imports_the_command_line() -> None:
    bad = [i for i in imports() if within(i.target, ("bench.cli",)) and not within(i.source, ("bench.cli",))]
    assert not bad, shown(bad)


def test_modules_import_each_other_in_no_circle() -> None:
    """At import time; a lazy import may point back."""
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for i in imports():
        if not i.lazy:
            target = i.target if i.target in MODULES else i.target.rpartition(".")[0]
            # a package's own __init__ is there before its modules are
            if target in MODULES and target != i.source and not i.source.startswith(f"{target}."):
                graph[i.source].add(target)
    while leaves := [name for name, targets in graph.items() if not targets]:
        for leaf in leaves:
            del graph[leaf]
        for targets in graph.values():
            targets.difference_update(leaves)
    assert not graph, f"a circle among {', '.join(sorted(graph))}"


def test_a_method_imports_other_methods_only_from_the_top_of_its_own_folder_or_a_named_neighbour() -> None:
    """methods/a.py may use methods/b.py and what methods/b/ gives; not the kernels inside somebody else's folder."""
    bad = [
        i
        for i in imports()
        if root_of(i.source) == "methods" and root_of(i.target) == "methods"
        if i.target.count(".kernels.") and not within(i.source, (i.target.split(".kernels.")[0],))
    ]
    assert not bad, shown(bad)


# --- third parties ----------------------------------------------------------------------------------------------------


def test_third_parties_are_declared_dependencies() -> None:
    known = THIRD_PARTY | OPTIONAL | set(sys.stdlib_module_names) | {"bench", "methods"}
    bad = [i for i in imports() if root_of(i.target) not in known]
    assert not bad, shown(bad)
    text = (ROOT / "pyproject.toml").read_text()
    names = {"PIL": "pillow"}
    assert all(f'"{names.get(name, name)}>=' in text for name in THIRD_PARTY)


def test_optional_packages_are_imported_where_they_are_used() -> None:
    """At the top only in modules that nobody imports but lazily: GPU kernels, and bench/lirpa.py."""
    homes = ("bench.lirpa", "methods.linf_dist.kernels")
    bad = [i for i in imports() if root_of(i.target) in OPTIONAL and not i.lazy and not within(i.source, homes)]
    assert not bad, shown(bad)


def test_auto_lirpa_has_one_home() -> None:
    bad = [i for i in imports() if root_of(i.target) == "auto_LiRPA" and i.source != "bench.lirpa"]
    assert not bad, shown(bad)


def test_nothing_that_unpickles_is_imported() -> None:
    """P61; CIFAR-10's official batches are read by a whitelist of their own, and its errors are caught."""
    unsafe = ("pickle", "shelve", "marshal", "dill", "joblib", "torch.load", "torch.save")
    homes = ("bench.data.cifar", "bench.data.errors")
    bad = [i for i in imports() if within(i.target, unsafe) and i.source not in homes]
    assert not bad, shown(bad)


# --- habits -----------------------------------------------------------------------------------------------------------


def test_no_star_imports() -> None:
    bad = [i for i in imports() if i.target.endswith(".*")]
    assert not bad, shown(bad)


def test_no_module_is_called_after_nothing() -> None:
    assert not [name for name in MODULES if re.search(r"(^|\.)(utils?|misc|helpers?|common)$", name)]


def test_every_module_begins_with_what_it_is() -> None:
    trees = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
    bare = [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)]
    assert not bare, bare


def test_suite_knows_no_method_by_name() -> None:
    """No string in bench/ is a method's name, but for words that are also something else and the default of `-m`."""
    words = {"pgd", "standard", "ibp", "crown", "crown_ibp"}  # an attack, an adjective, names of certificates
    names = set(registry.names()) - words
    found = [
        f"{module}: {node.value}"
        for module, path in MODULES.items()
        if root_of(module) == "bench" and not within(module, ("bench.cli",))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found, found


# --- without torch ----------------------------------------------------------------------------------------------------


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]


def test_torch_free_rooms_import_where_there_is_no_torch() -> None:
    rooms = [name for name in TORCH_FREE if name in MODULES]
    rooms += [name for name in MODULES if within(name, ("bench.report",))]
    run(
        "import sys, importlib; sys.modules['torch'] = None\n"
        f"for name in {rooms!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: sys.exit(f'{name}: {error}')\n"
    )


def test_import_of_the_contract_costs_no_torch_until_a_name_is_used() -> None:
    run("import sys, bench; assert 'torch' not in sys.modules; bench.Eps; assert 'torch' not in sys.modules")


def test_import_of_the_command_line_costs_no_heavy_package() -> None:
    run(
        "import sys, bench.cli; heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'seaborn', 'sklearn'}; "
        "found = heavy & set(sys.modules); assert not found, found"
    )


def test_unknown_name_of_the_contract_is_an_attribute_error() -> None:
    import bench

    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'Metod'"):
        _ = bench.Metod
    assert all(getattr(bench, name) is not None for name in bench.__all__)
