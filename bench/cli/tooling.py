"""Methods, machines and costs: `bench check`, `new-method`, `doctor`, `kernels`, `time`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import (
    check_names,
    data_option,
    device_option,
    json_option,
    plugin_files,
    plugin_option,
    print_json,
    results_option,
    say,
    threads_option,
)


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--limit", default="2m", show_default=True, metavar="SPAN", help="Time after which the check is ended.")
@json_option
@plugin_option
def check(name: str, limit: str, as_json: bool) -> None:
    """Does a method keep the contract? Eleven checks, in a process of their own."""
    from .. import conformance
    from ..text import parse_span

    found = conformance.run_check(name, plugins=[Path(p) for p in plugin_files()], limit_s=parse_span(limit))
    if as_json:
        print_json([vars(outcome) for outcome in found])
    else:
        click.echo("\n".join(conformance.lines(name, found)))
    sys.exit(1 if conformance.failed(found) else 0)


@click.command("new-method")
@click.argument("name", metavar="NAME")
@click.option("--into", metavar="DIR", default=".", show_default=True, help="Folder that gets the new folder.")
def new_method(name: str, into: str) -> None:
    """Write a working method of about 40 lines, its packaging and its test."""
    from .. import scaffold

    for path in scaffold.new_method(name, Path(into)):
        click.echo(str(path))
    say(scaffold.advice(name))


@click.command()
@results_option
@data_option
@json_option
def doctor(results: str, data_root: str | None, as_json: bool) -> None:
    """What this machine has and lacks, and what would mend it."""
    from ..doctor import as_json as plain
    from ..doctor import facts

    found = []
    for fact in facts(Path(results), Path(data_root) if data_root else None):
        found.append(fact)
        if not as_json:
            click.echo(fact.line)
    if as_json:
        print_json(plain(found))
    sys.exit(1 if any(f.ok is False for f in found) else 0)


@click.command()
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=60.0, show_default=True, help="About how long.")
@click.option("--matmul", is_flag=True, help="The matrix products of training instead: error, guard, time.")
@device_option
@threads_option
@json_option
def kernels(seconds: float, matmul: bool, device: str, threads: int | None, as_json: bool) -> None:
    """Which kernels are in use and how fast they are here."""
    import torch

    from ..environment import default_threads, kernel_modules, kernels_in_use, resolve_device
    from ..errors import UsageError, printable
    from ..text import columns

    torch.set_num_threads(threads or default_threads())
    where = resolve_device(device)
    modules = kernel_modules(load=True)
    rows: list[dict[str, Any]] = []
    for module in modules:
        name = "benchmark_matmul" if matmul else "benchmark"
        benchmark: Callable[..., list[dict[str, Any]]] | None = getattr(module, name, None)
        if benchmark is None:
            say(f"{module.__name__} has no {name}")
            continue
        try:
            rows += benchmark(seconds=seconds / len(modules), device=where)
        except RuntimeError as error:
            raise UsageError(f"bench kernels --device {where}: {printable(str(error), 300)}") from error
    if as_json:
        print_json({"kernels": kernels_in_use(), "benchmark": rows})
        return
    for owner, info in kernels_in_use().items():
        click.echo(f"{owner}: " + ", ".join(f"{key} {value}" for key, value in info.items() if value not in ("", None)))
    if rows:
        click.echo(columns(rows, list(dict.fromkeys(key for row in rows for key in row))))
    if rows and matmul:
        click.echo("flagged: share of pairs the guard has computed directly; ratio_to_direct: times faster than direct")
        if where == "cpu":
            click.echo("on a CPU the products are emulated: seconds and ratio_to_direct mean nothing here")


@click.command()
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
    check_names([dataset])
    import torch

    from ..cell import DEFAULT_EPS, FALLBACK_EPS
    from ..environment import default_threads, resolve_device
    from ..progress import Progress
    from ..text import columns, parse_span
    from ..timetable import COLUMNS, timetable

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
        print_json(rows)
    elif rows:
        click.echo(columns(rows, COLUMNS))
        first = rows[0]
        count = f"{first['threads']} thread" + "s" * (first["threads"] != 1)
        click.echo(f"{dataset} {radius} on {first['device']}, {count}; relative: in epochs of {first['relative_to']}")
        for how in dict.fromkeys(row["how"] for row in rows):
            names = ", ".join(row["method"] for row in rows if row["how"] == how)
            click.echo(f"{names}: seconds per epoch are extrapolated from {how}")
        click.echo("lowest and highest: of those points; a multiply-accumulate or one |x - w| counts 1")
    for line in problems:
        say(f"error: {line}")
    sys.exit(2 if not rows else 1 if problems else 0)
