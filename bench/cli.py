"""The `bench` command. Every command imports what it needs when it is called: `bench --help` imports no torch."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import BenchError, Interrupted

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
EPILOG = "First steps: bench run (trains and certifies a net on digits in minutes), bench list methods, bench doctor."
REPORTS = "reports"  # where the committed tables and figures go


class _Group(click.Group):
    """Commands in the order of use, not of the alphabet; a user's mistake is one line, never a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line_errors():
            return super().invoke(ctx)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted", Interrupted.exit_code)
    except BrokenPipeError:  # `bench list recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except BenchError as error:
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        _fail(str(error), error.exit_code)
    except ValueError as error:  # Eps, recipes and spans of time say what is wrong with what was typed
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        _fail(str(error), 2)


def _fail(message: str, code: int) -> None:
    click.echo("error: " + " ".join(message.split()), err=True)
    raise SystemExit(code)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _plugins(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Make the methods of --plugin files known, wherever on the line the option stands."""
    if value:
        from . import registry

        with _one_line_errors():
            for path in value:
                registry.add_file(path)
    return value


def _plugin_files() -> list[str]:
    from . import registry

    return [str(path) for path in registry.plugin_files()]


plugin_option = click.option(
    "--plugin",
    multiple=True,
    metavar="FILE",
    callback=_plugins,
    expose_value=False,
    help="Load methods from a Python file too (repeatable).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output on stdout.")
device_option = click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N", help="Where.")
data_option = click.option("--data-root", metavar="DIR", help="Folder with data sets, searched first ($BENCH_DATA).")
offline_option = click.option("--offline", is_flag=True, help="Never download.")
results_option = click.option(
    "--results", metavar="DIR", default="results/measured", show_default=True, help="Folder of records."
)
runs_option = click.option(
    "--runs-dir", metavar="DIR", help="Folder of states and weights (default: runs in $BENCH_HOME, ~/.cache/certbench)."
)
threads_option = click.option("--threads", type=click.IntRange(1, 4096), help="CPU threads per worker.")


def _runs_dir(text: str | None) -> Path:
    from .environment import cache_home

    return Path(text) if text else cache_home() / "runs"


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))


@click.group(cls=_Group, context_settings=CONTEXT, epilog=EPILOG)
@click.version_option(__version__, prog_name="certbench")
@plugin_option
def main() -> None:
    """Train, certify, attack, time and compare certifiably robust classifiers."""


@main.command()
@click.option(
    "--method", "-m", "methods", multiple=True, metavar="NAME", help="Method; repeatable [default: linf_dist]."
)
@click.option(
    "--dataset", "-d", "datasets", multiple=True, metavar="NAME", help="Data set; repeatable [default: digits]."
)
@click.option(
    "--eps", multiple=True, metavar="EPS", help='Radius, "0.3" or "8/255"; repeatable [default: per data set].'
)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(["paper", "short", "hour", "quick"]),
    help="Recipe; repeatable [default: quick on a CPU, paper on a GPU and for the big data sets].",
)
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0), help="Seed; repeatable [default: 0].")
@click.option(
    "--set", "pairs", multiple=True, metavar="FIELD=VALUE", help="Override a field of the recipe; repeatable."
)
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    default="test",
    help="val is for tuning: validation images are held out and evaluated, the test split stays closed.",
)
@device_option
@data_option
@click.option("--results", metavar="DIR", help="Folder of records [default: results/measured, its tuning/ for val].")
@runs_option
@click.option("--dry-run", is_flag=True, help="Show the plan with times, run nothing.")
@click.option("--show-config", is_flag=True, help="Print the resolved recipes as JSON, run nothing.")
@click.option("--time-limit", metavar="25m", help="Per cell; when it is reached the state is saved (exit code 4).")
@click.option("--fresh", is_flag=True, help="Start over, whatever is there.")
@offline_option
@click.option("--jobs", type=click.IntRange(1, 1024), help="Cells at a time [default: one per GPU, or one].")
@threads_option
@click.option("--save-every", default="60s", show_default=True, metavar="SPAN", help="Between saved states.")
@click.option("--quiet", "-q", is_flag=True, help="No plan, no progress.")
@json_option
@plugin_option
def run(
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    pairs: tuple[str, ...],
    time_limit: str | None,
    save_every: str,
    show_config: bool,
    seeds: tuple[int, ...],
    **options: Any,
) -> None:
    """Train, certify and attack; leave records.

    Selectors that are given several times are multiplied: -m ibp -m linf_dist -d digits -d mnist are four cells. Each
    runs in a process of its own; a finished one is only printed, an interrupted one continues where it was.

    Exit codes: 0 all done, 1 a cell failed, 2 usage, 3 training diverged, 4 stopped and resumable.
    """
    from .text import parse_span

    limit = parse_span(time_limit) if time_limit else None
    from . import planning

    request = planning.Request(
        methods=methods or ("linf_dist",),
        datasets=datasets,
        seeds=seeds or (0,),
        changes=planning.as_changes(pairs),
        time_limit_s=limit,
        save_every_s=parse_span(save_every),
        **options,
    )
    _check_names(datasets)
    if show_config:
        planning.show_config(request)
        return
    ask = functools.partial(click.confirm, err=True) if sys.stdin.isatty() and sys.stderr.isatty() else None
    sys.exit(planning.execute(request, plugins=_plugin_files(), say=_say, ask=ask))


def _check_names(datasets: Sequence[str]) -> None:
    """Unknown data sets, before anything heavy is imported."""
    from .data.catalogue import entry

    for name in datasets:
        entry(name)


@main.command("list")
@click.argument("what", type=click.Choice(["methods", "datasets", "recipes", "runs"]))
@click.option(
    "--method", "-m", "methods", multiple=True, metavar="NAME", help="Recipes of this method only; repeatable."
)
@click.option("--dataset", "-d", "datasets", multiple=True, metavar="NAME", help="Recipes for this data set only.")
@click.option("--preset", "presets", multiple=True, metavar="PRESET", help="Recipes of this preset only.")
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
    from . import listing
    from .text import columns

    problems: list[str] = []
    _check_names(datasets)
    if what == "methods":
        rows = listing.methods()
        problems = listing.broken_lines(rows)
    elif what == "datasets":
        rows = listing.datasets(Path(data_root) if data_root else None)
    elif what == "recipes":
        rows = list(listing.recipes(methods, datasets, presets))
    else:
        rows, problems = listing.runs(Path(results))
    if as_json:
        _print_json(rows)
    else:
        names = listing.COLUMNS[what]
        click.echo(columns([{**r, "error": "broken"} if r.get("error") else r for r in rows], names) if rows else
                   f"no {what}" + (f" in {results}" if what == "runs" else ""))  # fmt: skip
    for line in problems:
        click.secho(line, fg="red", err=True)


@main.command()
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
    from .report import build

    done = build(
        Path(results),
        Path(out),
        published_dir=Path(published) if published else None,
        check=check,
        readme=Path(readme) if readme else _marked_readme() if out == REPORTS else None,
    )
    if as_json:
        _print_json({"records": done.records, "page": str(done.page), "exit_code": done.exit_code, "lines": done.lines})
    else:
        click.echo("\n".join(done.lines))
    sys.exit(done.exit_code)


def _marked_readme() -> Path | None:
    """README.md of the folder the user stands in, if it has blocks for us."""
    path = Path("README.md")
    try:
        return path if "<!-- bench:" in path.read_text(encoding="utf-8") else None
    except (OSError, UnicodeDecodeError):
        return None


@main.command()
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
    from . import record
    from .report import compare as comparing

    found: list[tuple[str, Any]]
    if all(Path(side).is_dir() and not (Path(side) / record.FILE).exists() for side in (first, second)):
        found = comparing.folders(record.scan(Path(first))[0], record.scan(Path(second))[0])
    else:
        found = [("", comparing.compare(*(record.find(Path(results), side) for side in (first, second))))]
    if as_json:
        _print_json([{"cell": name, **(one.as_dict() if one else {"only": name})} for name, one in found])
    else:
        blocks = [[name] * bool(name) + (one.text() if one else []) for name, one in found]
        click.echo("\n\n".join("\n".join(lines) for lines in blocks) if blocks else "no records in either folder")
    sys.exit(max((one.exit_code(fail_if_worse) for _, one in found if one), default=0))


@main.command()
@click.argument("runs", metavar="RUN...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every record in the results folder.")
@click.option(
    "--level", type=click.IntRange(0, 1), help="0: the record alone; 1: also its weights [default: 1 if there]."
)
@results_option
@runs_option
@device_option
@data_option
@offline_option
@threads_option
@json_option
@plugin_option
def verify(
    runs: tuple[str, ...],
    every: bool,
    level: int | None,
    results: str,
    as_json: bool,
    **where: Any,
) -> None:
    """Does a record hold together, and does its net still do what it says?"""
    from . import record
    from . import verify as verifying
    from .errors import UsageError

    if not runs and not every:
        raise UsageError("name a run (`bench list runs`), or give --all")
    chosen = record.scan(Path(results))[0] if every else [record.find(Path(results), name) for name in runs]
    bad = 0
    report = []
    for one in chosen:
        found = verifying.verify_record(one) if level == 0 else _verified(one, level, where)
        broken = [f for f in found if not f.ok]
        bad += bool(broken)
        report.append({"run": one.short, "ok": not broken, "findings": [vars(f) for f in found]})
        if as_json:
            continue
        verdict = "FAILED" if broken else "holds"
        click.echo(f"{one.short} {one.path.name}: {verdict}, {sum(f.checked for f in found)} things looked at")
        for f in broken if broken else found:
            click.echo(f"  {'ok ' if f.ok else 'BAD'} {f.check}: {f.message} ({f.checked} checked)")
    if as_json:
        _print_json(report)
    sys.exit(1 if bad else 0)


def _again(device: str, runs_dir: str | None, data_root: str | None, offline: bool, threads: int | None) -> Any:
    from .environment import default_threads, resolve_device
    from .recheck import Again

    return Again(
        _runs_dir(runs_dir),
        resolve_device(device),
        threads or default_threads(),
        Path(data_root) if data_root else None,
        offline,
    )


def _verified(record: Any, level: int | None, where: dict[str, Any]) -> Any:
    from .progress import Progress
    from .recheck import verify as verify_again

    again = _again(**where)
    if level is None and not again.has_weights(record):
        _say(f"{record.short}: no weights in {again.runs_dir}, so only the record itself is looked at (level 0)")
        level = 0
    progress = Progress()
    try:
        return verify_again(record, again, level=1 if level is None else level, progress=progress)
    finally:
        progress.close()


@main.command()
@click.argument("name", metavar="RUN")
@click.option("--steps", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Gradient steps.")
@click.option("--restarts", type=click.IntRange(1, 1000), default=3, show_default=True, help="Random restarts.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the starting points.")
@results_option
@runs_option
@device_option
@data_option
@offline_option
@threads_option
@json_option
@plugin_option
def attack(name: str, steps: int, restarts: int, seed: int, results: str, as_json: bool, **where: Any) -> None:
    """Attack a finished run's net harder than its record did; the union can only be lower."""
    from . import record

    found = record.find(Path(results), name)
    again = _again(**where)
    from . import recheck
    from .attack import AttackConfig
    from .progress import Progress

    config = AttackConfig(
        steps=steps, restarts=restarts, surrogates=100, surrogate_steps=steps, surrogate_restarts=restarts
    )
    progress = Progress()
    try:
        told = recheck.union(found, recheck.attack(found, again, config, seed=seed, progress=progress))
    finally:
        progress.close()
    if as_json:
        _print_json({"run": found.short, **told})
        return
    from .text import columns

    click.echo(columns(told["attacks"], ("name", "steps", "restarts", "n_attacked", "n_broken", "seconds")))
    click.echo(
        f"robust: {told['robust_before']:.2f} % by the record, {told['robust_now']:.2f} % by these attacks, "
        f"{told['robust_both']:.2f} % by both ({told['newly_broken']} newly broken); "
        f"certified {told['certified']:.2f} %"
    )


@main.command()
@click.argument("name", metavar="NAME")
@click.option("--limit", default="2m", show_default=True, metavar="SPAN", help="Time after which the check is ended.")
@json_option
@plugin_option
def check(name: str, limit: str, as_json: bool) -> None:
    """Does a method keep the contract? Eleven checks, in a process of their own."""
    from . import conformance
    from .text import parse_span

    found = conformance.run_check(name, plugins=[Path(p) for p in _plugin_files()], limit_s=parse_span(limit))
    if as_json:
        _print_json([vars(outcome) for outcome in found])
    else:
        click.echo("\n".join(conformance.lines(name, found)))
    sys.exit(1 if conformance.failed(found) else 0)


@main.command("new-method")
@click.argument("name", metavar="NAME")
@click.option("--into", metavar="DIR", default=".", show_default=True, help="Folder that gets the new folder.")
def new_method(name: str, into: str) -> None:
    """Write a working method of about 40 lines, its packaging and its test."""
    from . import scaffold

    for path in scaffold.new_method(name, Path(into)):
        click.echo(str(path))
    _say(scaffold.advice(name))


@main.command()
@results_option
@data_option
@json_option
def doctor(results: str, data_root: str | None, as_json: bool) -> None:
    """What this machine has and lacks, and what would mend it."""
    from .doctor import as_json as plain
    from .doctor import facts

    found = []
    for fact in facts(Path(results), Path(data_root) if data_root else None):
        found.append(fact)
        if not as_json:
            click.echo(fact.line)
    if as_json:
        _print_json(plain(found))
    sys.exit(1 if any(f.ok is False for f in found) else 0)


@main.command()
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=20.0, show_default=True, help="About how long.")
@device_option
@threads_option
@json_option
def kernels(seconds: float, device: str, threads: int | None, as_json: bool) -> None:
    """Which kernels are in use and how fast they are here."""
    import torch

    from .environment import default_threads, kernel_modules, kernels_in_use, resolve_device
    from .text import columns

    torch.set_num_threads(threads or default_threads())
    where = resolve_device(device)
    modules = kernel_modules(load=True)
    rows: list[dict[str, Any]] = []
    for module in modules:
        benchmark: Callable[..., list[dict[str, Any]]] | None = getattr(module, "benchmark", None)
        if benchmark is None:
            _say(f"{module.__name__} has no benchmark")
            continue
        rows += benchmark(seconds=seconds / len(modules), device=where)
    if as_json:
        _print_json({"kernels": kernels_in_use(), "benchmark": rows})
        return
    for owner, info in kernels_in_use().items():
        click.echo(f"{owner}: " + ", ".join(f"{key} {value}" for key, value in info.items() if value not in ("", None)))
    if rows:
        click.echo(columns(rows, list(dict.fromkeys(key for row in rows for key in row))))


@main.command()
@click.option("--method", "-m", "methods", multiple=True, required=True, metavar="NAME", help="Method; repeatable.")
@click.option("--dataset", "-d", default="digits", show_default=True, metavar="NAME", help="Data set.")
@click.option("--eps", metavar="EPS", help="Radius [default: per data set].")
@click.option("--preset", default="quick", show_default=True, metavar="PRESET", help="Recipe.")
@click.option("--budget", default="15s", show_default=True, metavar="SPAN", help="Timed steps per method.")
@device_option
@threads_option
@json_option
@plugin_option
def time(
    methods: tuple[str, ...],
    dataset: str,
    eps: str | None,
    preset: str,
    budget: str,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """What methods cost on one data set: a few steps at six points of each schedule, in turns, extrapolated."""
    _check_names([dataset])
    import torch

    from .cell import DEFAULT_EPS, FALLBACK_EPS
    from .environment import default_threads, resolve_device
    from .progress import Progress
    from .text import columns, parse_span
    from .timetable import COLUMNS, timetable

    torch.set_num_threads(threads or default_threads())
    radius = eps or DEFAULT_EPS.get(dataset, FALLBACK_EPS)
    rows, problems = timetable(
        methods,
        dataset,
        radius,
        preset,
        device=resolve_device(device),
        budget_s=parse_span(budget),
        progress=Progress(),
    )
    if as_json:
        _print_json(rows)
    elif rows:
        click.echo(columns(rows, COLUMNS))
        click.echo(
            f"{dataset} {radius}, threads: {torch.get_num_threads()}, on {resolve_device(device)}; seconds per epoch are "
            f"extrapolated from {rows[0]['how']}, lowest and highest being its phases; a multiply-accumulate or one "
            "|x - w| counts 1"
        )
    for line in problems:
        _say(f"error: {line}")
    sys.exit(2 if not rows else 1 if problems else 0)


if __name__ == "__main__":
    main()
