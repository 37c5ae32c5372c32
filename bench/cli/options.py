"""What several commands share: options, how mistakes are told, how things are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..errors import BenchError, Interrupted


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A user's mistake becomes one line on stderr and an exit code; $BENCH_TRACEBACK=1 shows where it was raised."""
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted", Interrupted.exit_code)
    except BrokenPipeError:  # `bench list recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except BenchError as error:
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        fail(str(error), error.exit_code)
    except OSError as error:  # a file that cannot be read or written, where nobody thought of it
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        fail(f"{error.filename or 'a file'}: {error.strerror or error}; $BENCH_TRACEBACK=1 shows where", 1)
    except ValueError as error:  # Eps, recipes and spans of time say what is wrong with what was typed
        if os.environ.get("BENCH_TRACEBACK"):
            raise
        fail(str(error), 2)


def fail(message: str, code: int) -> None:
    """Say it on stderr and exit."""
    click.echo("error: " + " ".join(message.split()), err=True)
    raise SystemExit(code)


def say(text: str) -> None:
    """Commentary, on stderr: stdout is for results."""
    click.echo(text, err=True)


def plugins(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Make the methods of --plugin files known, wherever on the line the option stands."""
    if value:
        from .. import registry

        with one_line_errors():
            for path in value:
                registry.add_file(path)
    return value


def plugin_files() -> list[str]:
    """The --plugin files of this command, for child processes."""
    from .. import registry

    return [str(path) for path in registry.plugin_files()]


plugin_option = click.option(
    "--plugin",
    multiple=True,
    metavar="FILE",
    callback=plugins,
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
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 4096),
    help="CPU threads per worker [default: an equal share of the cores; 4 in a Slurm job].",
)


def finished_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every command takes that works again on a finished run's net."""
    options = (
        results_option, runs_option, device_option, data_option, offline_option, threads_option, json_option,
        plugin_option,
    )  # fmt: skip
    for option in reversed(options):  # as stacked decorators: the last one is applied first
        command = option(command)
    return command


def runs_dir(text: str | None) -> Path:
    """--runs-dir, or where runs go without it."""
    from ..environment import cache_home

    return Path(text) if text else cache_home() / "runs"


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(value, indent=1))


def check_names(datasets: Sequence[str]) -> None:
    """Unknown data sets, before anything heavy is imported."""
    from ..data.catalogue import entry

    for name in datasets:
        entry(name)
