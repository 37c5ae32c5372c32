"""`bench run`: from selectors to a plan that is shown, and from the plan to results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import cell as cells
from .cell import Missing, Planned
from .child import EXIT_INTERRUPTED, EXIT_USAGE, Outcome, Slot, Task
from .environment import cache_home, default_threads, gpu_count, resolve_device
from .errors import UsageError
from .estimate import estimate
from .files import check_writable
from .launch import exit_code, launch, slots_for
from .options import Options
from .overview import Board
from .plan import Plan, Request, accuracies
from .progress import duration
from .summary import show_dry, summarise

JOB_THREADS = 4  # CPU cores of a Slurm job that is not told --threads: those of this machine say nothing


def select(request: Request, device: str) -> tuple[list[Planned], list[Missing]]:
    """The cells asked for, each once, in the order asked for; and what has no recipe.

    Raises:
        UsageError, ValueError: something is asked for that does not exist.
    """
    planned: dict[str, Planned] = {}
    missing: list[Missing] = []
    for entry in request.selections:
        found, gaps = cells.plan(
            entry.methods,
            entry.datasets,
            eps=entry.eps,
            presets=entry.presets,
            seeds=entry.seeds,
            changes=entry.changes,
            split=request.split,
            device_type=device.partition(":")[0],
        )
        for one in found:
            planned.setdefault(one.cell.id, one)
        missing += [] if entry.open and found else gaps
    share = request.shard
    kept = list(planned.values())
    return (kept[share.number - 1 :: share.of] if share else kept), missing


def make_plan(request: Request, plugins: Sequence[str], say: Callable[[str], None] = lambda text: None) -> Plan:
    """Resolve the selectors and look at what is there already; nothing is trained.

    Args:
        say: called with one line before what may take seconds.

    Raises:
        UsageError, ValueError: something is asked for that does not exist.
        FileError: a folder cannot be written.
    """
    from .data.catalogue import names as known_datasets
    from .listing import is_here
    from .run import finished, progress_of

    if request.autoattack:
        from .autoattack import require

        require()  # now, not after hours of training
    device = _device(request)
    planned, missing = select(request, device)
    runs_dir = Path(request.runs_dir) if request.runs_dir else cache_home() / "runs"
    gpus = gpu_count() if request.device == "auto" and device != "cpu" and len(planned) > 1 else 0
    jobs = min(request.jobs, max(1, len(planned))) if request.jobs else None
    slots = slots_for(device, jobs=jobs, gpus=gpus, threads=request.threads, cores=default_threads)
    if request.executor is not None:  # each job is a machine of its own, or a share of this one
        cores = JOB_THREADS if request.is_elsewhere else default_threads(request.executor.jobs_at_once(len(planned)))
        slots = [Slot(device, request.threads or cores)]
    made = Plan(request, planned, missing, device, slots, runs_dir)
    for one in planned:
        if request.fresh:
            continue
        if record := finished(one.cell, request.results_dir, runs_dir, autoattack=request.autoattack):
            made.done[one.cell.id] = record
        elif (share := progress_of(one.cell, runs_dir)) is not None:
            made.begun[one.cell.id] = share
    for folder, option in ((request.results_dir, "--results"), (runs_dir, "--runs-dir")):
        if made.open and not request.dry_run:
            check_writable(folder, option)
        elif folder.exists() and not folder.is_dir():  # a dry run makes no folders, but it says what it can see
            raise UsageError(f"{folder} is no folder; choose another one with {option}")
    if not request.is_elsewhere:
        root = Path(request.data_root) if request.data_root else None
        wanted = dict.fromkeys(p.cell.dataset for p in made.open)
        made.absent = tuple(name for name in wanted if name in known_datasets() and not is_here(name, root))
    timed = [p.cell for p in made.open if made.begun.get(p.cell.id, 0.0) < 1.0 and not request.is_elsewhere]
    if timed and (request.dry_run or not request.quiet or paper_on_cpu(made)):
        say("timing a few training steps for the plan")
        made.estimates = estimate(timed, device=device, threads=slots[0].threads, plugins=plugins)
    return made


def _device(request: Request) -> str:
    """Where cells run, as far as it is known here.

    Raises:
        UsageError: there is no such device, or the preset would depend on a machine that is not this one.
    """
    if not request.is_elsewhere:
        return resolve_device(request.device)
    if not all(entry.presets for entry in request.selections):
        raise UsageError("--executor slurm: name a --preset; its default depends on the device, which is not here")
    return request.device


def paper_on_cpu(plan: Plan) -> list[str]:
    """Lines of advice if a paper's recipe would start on a CPU without having been asked for by name; else none."""
    request = plan.request
    heavy = [p for p in plan.open if p.cell.preset == "paper" and p.cell.id not in plan.begun]
    if plan.device != "cpu" or all(entry.presets for entry in request.selections) or not heavy:
        return []
    from . import registry

    lines = []
    for one in heavy:
        cell = one.cell
        have = [
            r.preset
            for r in registry.recipes(registry.get(cell.method))
            if r.dataset == cell.dataset and str(r.eps) == cell.eps and r.preset != "paper"
        ]
        guess = plan.estimates.get(cell.id)
        time = "too long to be timed"
        if guess and guess.total_s is not None:
            time = f"{'more than' if guess.at_least else 'about'} {duration(guess.total_s)}"
        cheaper = ", ".join(f"--preset {p}" for p in dict.fromkeys(have)) or "none for this eps"
        lines.append(f"{cell.label}: {time} on this CPU; cheaper: {cheaper}; as published: --preset paper")
    return lines


def execute(
    request: Request, *, plugins: Sequence[str], say: Callable[[str], None], ask: Callable[[str], bool] | None
) -> int:
    """Plan, show, run, summarise; returns the exit code.

    Args:
        say: prints one line of commentary (stderr). Results go to stdout here.
        ask: a yes-no question on a terminal; None where nobody can answer.
    """
    plan = make_plan(request, plugins, say if sys.stderr.isatty() and not request.quiet else lambda text: None)
    if not plan.planned and request.shard and not plan.missing:
        say(f"--shard {request.shard.number}/{request.shard.of}: there are fewer cells, none is left for this share")
        return 0
    if not plan.planned:
        raise UsageError("; ".join(f"{m.label}: {m.reason}" for m in plan.missing) + " (`bench list recipes`)")
    if request.dry_run:
        show_dry(plan)
        return 0
    if not request.quiet:
        for line in plan.lines():
            say(line)
    if advice := paper_on_cpu(plan):
        for line in advice:
            say(line)
        if ask is None:
            raise UsageError("a paper's recipe on a CPU is not started unasked; choose a preset from the line above")
        if not ask("Run the paper's recipe on this CPU all the same?"):
            return EXIT_USAGE
    outcomes, stopped = _launch(plan, plugins, say)
    summarise(plan, outcomes, say)
    return exit_code(outcomes, stopped=stopped)


def _launch(plan: Plan, plugins: Sequence[str], say: Callable[[str], None]) -> tuple[list[Outcome], bool]:
    request = plan.request
    options = Options(
        results=str(request.results_dir),
        runs_dir=str(plan.runs_dir),
        data_root=request.data_root,
        offline=request.offline,
        fresh=request.fresh,
        save_every_s=request.save_every_s,
        autoattack=request.autoattack,
    )
    tasks = [Task(p.cell, options, p.cell.label, tuple(plugins), request.time_limit_s) for p in plan.open]
    board = Board(len(tasks), many=len(plan.slots) > 1, quiet=request.quiet)

    def ended(outcome: Outcome) -> None:
        board.ended(outcome.code)
        if outcome.record is None:
            line = f"{'error: ' if outcome.code != EXIT_INTERRUPTED else ''}{outcome.task.label}: {outcome.message}"
            board.say(line, always=True)
        else:
            took = duration(outcome.seconds)
            board.say(f"finished {outcome.task.label}: {accuracies(outcome.record)} in {took}")
            if refuted := outcome.record.data["evaluation"].get("n_contradicted", 0):
                board.say(
                    f"warning: {outcome.task.label}: attacks broke {refuted} certified images, which do not count; "
                    "a certificate that fails so is unsound, or fails by rounding, which class R leaves open",
                    always=True,
                )

    try:
        if request.executor is not None:
            return request.executor.run(
                tasks, plan.slots[0].threads, device=request.device, on_outcome=ended, say=board.say
            )
        return launch(tasks, plan.slots, progress=board.progress, on_outcome=ended)
    finally:
        board.close()


def show_config(request: Request) -> None:
    """The resolved cells and every field of their recipes, as JSON; nothing is run."""
    from .recipe import as_dict

    device = resolve_device(request.device)
    planned, missing = select(request, device)
    if not planned:
        raise UsageError("; ".join(f"{m.label}: {m.reason}" for m in missing))
    print(json.dumps([{"cell": p.cell.as_record(), "recipe": as_dict(p.recipe)} for p in planned], indent=1))
