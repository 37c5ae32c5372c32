"""`bench run`."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .options import (
    check_names,
    data_option,
    device_option,
    json_option,
    offline_option,
    plugin_files,
    plugin_option,
    runs_option,
    say,
    threads_option,
)

if TYPE_CHECKING:
    from ..executor import Executor
    from ..study import Study

ENGINES = ("slurm", "local")
DEFAULT_METHOD = "linf_dist"  # the suite's own; a newcomer's first command needs no choice


@click.command()
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
@click.option(
    "--jobs", type=click.IntRange(1, 1024), help="Cells (--executor: jobs) at a time [default: one per GPU, or one]."
)
@threads_option
@click.option("--study", metavar="FILE", help="The cells of a study file (TOML) instead of selectors.")
@click.option("--shard", metavar="I/N", help="Only every N-th cell of the plan, from the I-th on.")
@click.option(
    "--executor",
    type=click.Choice(ENGINES),
    help="Hand the cells to Slurm, or to its stand-in on this machine, through submitit.",
)
@click.option(
    "--cells-per-job", type=click.IntRange(1), default=1, show_default=True, help="With --executor: cells of one job."
)
@click.option(
    "--job",
    "job_pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="With --executor: slurm_partition=gpu, ...; repeatable.",
)
@click.option("--save-every", default="60s", show_default=True, metavar="SPAN", help="Between saved states.")
@click.option("--autoattack", is_flag=True, help="Also AutoAttack, standard version (slow; needs pyautoattack).")
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
    study: str | None,
    shard: str | None,
    executor: str | None,
    cells_per_job: int,
    job_pairs: tuple[str, ...],
    **options: Any,
) -> None:
    """Train, certify and attack; leave records.

    Selectors that are given several times are multiplied: -m ibp -m linf_dist -d digits -d mnist are four cells. Each
    runs in a process of its own; a finished one is only printed, an interrupted one continues where it was.

    Exit codes: 0 all done, 1 a cell failed, 2 usage, 3 training diverged, 4 stopped and resumable.
    """
    from ..text import parse_span

    limit = parse_span(time_limit) if time_limit else None
    from .. import plan, planning

    request = plan.Request(
        methods=methods or (DEFAULT_METHOD,),
        datasets=datasets,
        seeds=seeds or (0,),
        changes=plan.as_changes(pairs),
        time_limit_s=limit,
        save_every_s=parse_span(save_every),
        study=_study(study, methods, datasets, pairs, seeds, options["eps"], options["presets"]),
        shard=plan.Shard.parse(shard) if shard else None,
        executor=_executor(executor, cells_per_job, options["jobs"], job_pairs),
        **options,
    )
    check_names([name for entry in request.selections for name in entry.datasets])
    if show_config:
        planning.show_config(request)
        return
    ask = functools.partial(click.confirm, err=True) if sys.stdin.isatty() and sys.stderr.isatty() else None
    sys.exit(planning.execute(request, plugins=plugin_files(), say=say, ask=ask))


def _study(path: str | None, *selectors: tuple[Any, ...]) -> Study | None:
    if path is None:
        return None
    if any(selectors):
        raise UsageError("--study names the cells; it goes with none of -m, -d, --eps, --preset, --seed and --set")
    from .. import study

    return study.read(Path(path))


def _executor(engine: str | None, cells_per_job: int, jobs: int | None, pairs: tuple[str, ...]) -> Executor | None:
    if engine is None:
        if pairs or cells_per_job != 1:
            raise UsageError("--job and --cells-per-job go with --executor slurm|local")
        return None
    from .. import executor

    return executor.Executor(engine, cells_per_job, jobs, executor.settings_of(pairs))
