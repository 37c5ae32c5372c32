"""What there is and how it compares: `bench list`, `bench report`, `bench compare`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from .options import check_names, data_option, json_option, plugin_option, print_json, results_option

REPORTS = "reports"  # where the committed tables and figures go


@click.command("list")
@click.argument("what", type=click.Choice(["methods", "datasets", "recipes", "runs"]))
@click.option(
    "--method", "-m", "methods", multiple=True, metavar="NAME", help="Recipes or runs of this one only; repeatable."
)
@click.option("--dataset", "-d", "datasets", multiple=True, metavar="NAME", help="The same for data sets.")
@click.option("--preset", "presets", multiple=True, metavar="PRESET", help="The same for presets.")
@results_option
@data_option
@json_option
@plugin_option
def list_(
    what: str,
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    presets: tuple[str, ...],
    results: str,
    data_root: str | None,
    as_json: bool,
) -> None:
    """What there is: methods, datasets, recipes or runs."""
    from .. import listing
    from ..errors import UsageError
    from ..text import columns

    problems: list[str] = []
    check_names(datasets)
    if what in ("methods", "datasets") and (methods or datasets or presets):
        raise UsageError(f"-m, -d and --preset choose recipes or runs; `bench list {what}` shows all")
    if what == "methods":
        rows = listing.methods()
        problems = listing.broken_lines(rows)
    elif what == "datasets":
        rows = listing.datasets(Path(data_root) if data_root else None)
    elif what == "recipes":
        rows = list(listing.recipes(methods, datasets, presets))
        if not rows and presets:
            _check_presets(listing.recipes(methods, datasets), presets)
    else:
        _check_there(results)
        _check_selected(methods, presets)
        rows, problems = listing.runs(Path(results), methods, datasets, presets)
    if as_json:
        print_json(rows)
    else:
        names = listing.COLUMNS[what]
        click.echo(columns([{**r, "error": "broken"} if r.get("error") else r for r in rows], names) if rows else
                   f"no {what}" + (f" in {results}" if what == "runs" else ""))  # fmt: skip
    for line in problems:
        click.secho(line, fg="red", err=True)


@click.command()
@click.option("--results", metavar="DIR", default="results/measured", show_default=True, help="Folder of records.")
@click.option("--out", metavar="DIR", default=REPORTS, show_default=True, help="Where tables and figures go.")
@click.option("--published", metavar="DIR", help="Published numbers (default: those of the suite).")
@click.option(
    "--readme",
    metavar="FILE",
    help="Fill the marked blocks of this file [default: README.md if it has them, with the default --out].",
)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the files differ from what the records give.")
@json_option
def report(results: str, out: str, published: str | None, readme: str | None, check: bool, as_json: bool) -> None:
    """Regenerate every table and figure from the records."""
    from ..errors import UsageError
    from ..report import build

    _check_there(results)
    if published and not Path(published).is_dir():
        raise UsageError(f"--published {published}: there is no such folder")
    if readme and not _has_blocks(Path(readme)):
        raise UsageError(f"--readme {readme}: no file with a block to fill (<!-- bench:begin headline -->)")
    done = build(
        Path(results),
        Path(out),
        published_dir=Path(published) if published else None,
        check=check,
        readme=Path(readme) if readme else _marked_readme() if out == REPORTS else None,
    )
    if as_json:
        print_json({"records": done.records, "page": str(done.page), "exit_code": done.exit_code, "lines": done.lines})
    else:
        click.echo("\n".join(done.lines))
    sys.exit(done.exit_code)


def _check_presets(recipes: Iterable[dict[str, Any]], presets: tuple[str, ...]) -> None:
    """A mistyped preset is a mistake and not an empty list."""
    from ..errors import UsageError

    known = dict.fromkeys(row["preset"] for row in recipes)
    if known and not known.keys() & set(presets):
        raise UsageError(f"--preset {', '.join(presets)}: no such recipe here; there are {', '.join(known)}")


def _check_selected(methods: tuple[str, ...], presets: tuple[str, ...]) -> None:
    """A mistyped name is a mistake and not an empty list; a method without runs is one."""
    from .. import registry
    from ..errors import UsageError
    from ..recipe import PRESETS

    for option, wanted, known in (("-m", methods, registry.names()), ("--preset", presets, PRESETS)):
        for name in wanted:
            if name not in known:
                raise UsageError(f"{option} {name}: there is none of that name; there are {', '.join(known)}")


def _check_there(results: str) -> None:
    """A mistyped folder is a mistake and not zero records: reports made of nothing would replace the real ones."""
    from ..errors import UsageError
    from ..plan import DEFAULT_RESULTS

    if results != DEFAULT_RESULTS and not Path(results).is_dir():
        raise UsageError(f"--results {results}: there is no such folder")


def _marked_readme() -> Path | None:
    """README.md of the folder the user stands in, if it has blocks for us."""
    path = Path("README.md")
    return path if _has_blocks(path) else None


def _has_blocks(path: Path) -> bool:
    try:
        return "<!-- bench:" in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--fail-if-worse", type=float, metavar="POINTS", help="Exit 1 if B's certified accuracy is so much worse."
)
@results_option
@json_option
def compare(first: str, second: str, fail_if_worse: float | None, results: str, as_json: bool) -> None:
    """Two runs, or two folders of records cell by cell; refuses to compare what may not be compared.

    Accuracies are compared on the same images, with an exact paired test.
    """
    from .. import record
    from ..errors import UsageError
    from ..report import compare as comparing

    found: list[tuple[str, Any]]
    if all(Path(side).is_dir() and not (Path(side) / record.FILE).exists() for side in (first, second)):
        found = comparing.folders(record.scan(Path(first))[0], record.scan(Path(second))[0])
    else:
        found = [("", comparing.compare(*(record.find(Path(results), side) for side in (first, second))))]
    if as_json:
        print_json([{"cell": name, **(one.as_dict() if one else {"only": name})} for name, one in found])
    else:
        blocks = [[name] * bool(name) + (one.text() if one else []) for name, one in found]
        click.echo("\n\n".join("\n".join(lines) for lines in blocks) if blocks else "no records in either folder")
    if fail_if_worse is not None and not any(one for _, one in found):
        raise UsageError("--fail-if-worse: the folders have no cell in common, so nothing was compared")
    sys.exit(max((one.exit_code(fail_if_worse) for _, one in found if one), default=0))
