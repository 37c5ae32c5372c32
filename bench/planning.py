"""`bench run`: from selectors to a plan that is shown, and from the plan to results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import cell as cells
from .cell import Missing, Planned
from .child import EXIT_INTERRUPTED, EXIT_USAGE, Outcome, Slot, Task
from .environment import cache_home, default_threads, gpu_count, resolve_device
from .errors import UsageError
from .estimate import Estimate, estimate
from .executor import Executor
from .files import check_writable
from .launch import exit_code, launch, slots_for
from .options import Options
from .overview import Board
from .progress import duration
from .record import Record
from .study import Selection, Study
from .summary import DEFAULT_RESULTS, accuracies, show_dry, summarise


@dataclass(frozen=True)
class Shard:
    """Every `of`-th cell, from the `number`-th on (1 <= number <= of)."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/3`: the second of three shares.

        Raises:
            UsageError: anything else.
        """
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(f"--shard {text}: write I/N with 1 <= I <= N, as in --shard 2/3")
        return cls(int(number), int(of))


@dataclass(frozen=True)
class Request:
    """What a `bench run` command line asks for; with a study its entries take the place of the selectors."""

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    eps: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    changes: Mapping[str, str] = field(default_factory=dict)
    split: str = "test"
    device: str = "auto"
    data_root: str | None = None
    results: str | None = None
    runs_dir: str | None = None
    dry_run: bool = False
    time_limit_s: float | None = None
    fresh: bool = False
    offline: bool = False
    jobs: int | None = None
    threads: int | None = None
    save_every_s: float = Options.save_every_s
    autoattack: bool = False
    quiet: bool = False
    as_json: bool = False
    study: Study | None = None
    shard: Shard | None = None
    executor: Executor | None = None

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What is asked for, entry by entry."""
        if self.study is not None:
            return self.study.selections
        return (Selection(self.methods, self.datasets, self.eps, self.presets, self.seeds, self.changes),)

    @property
    def results_dir(self) -> Path:
        """Tuning runs do not lie among the results unless told so."""
        if self.results is not None:
            return Path(self.results)
        return Path(DEFAULT_RESULTS, "tuning") if self.split == "val" else Path(DEFAULT_RESULTS)


@dataclass
class Plan:
    """Cells with what is known about each before it runs."""

    request: Request
    planned: list[Planned]
    missing: list[Missing]
    device: str
    slots: list[Slot]
    runs_dir: Path
    done: dict[str, Record] = field(default_factory=dict)  # cell id -> finished record
    begun: dict[str, float] = field(default_factory=dict)  # cell id -> share of the training on disk
    estimates: dict[str, Estimate] = field(default_factory=dict)

    @property
    def open(self) -> list[Planned]:
        """Those that have to run."""
        return [p for p in self.planned if p.cell.id not in self.done]

    def lines(self) -> list[str]:
        """The plan as text."""
        width = max(map(len, [*(p.cell.label for p in self.planned), *(m.label for m in self.missing)]))
        out = [f"{p.cell.label.ljust(width)}  {self._fate(p)}" for p in self.planned]
        out += [f"{m.label.ljust(width)}  skipped: {m.reason}" for m in self.missing]
        hows = dict.fromkeys(e.how for e in self.estimates.values() if e.train_s is not None)
        if self.open:
            each = f"{len(self.slots)} workers" if len(self.slots) > 1 else "one worker"
            threads = f"{self.slots[0].threads} thread{'s' if self.slots[0].threads > 1 else ''}"
            where = ", ".join(dict.fromkeys(s.device for s in self.slots))
            out.append(f"{each} with {threads} on {where}" + (f"; times from {next(iter(hows))}" if hows else ""))
        return out

    def _fate(self, planned: Planned) -> str:
        cell = planned.cell
        if cell.id in self.done:
            return f"finished before: {accuracies(self.done[cell.id])}"
        share = self.begun.get(cell.id)
        guess = self.estimates.get(cell.id)
        if share == 1.0:
            return "trained before, only the evaluation is left"
        at = f"continues at {100 * share:.0f} %, " if share is not None else ""
        if guess is None:
            return f"{at}time not estimated".strip()
        if guess.train_s is None or guess.eval_s is None:
            return f"{at}{guess.how}"
        left = guess.train_s * (1 - (share or 0.0))
        if guess.at_least:
            return f"{at}more than {duration(left)}"
        total, parts = duration(left + guess.eval_s), f"training {duration(left)}, evaluation {duration(guess.eval_s)}"
        return f"{at}about {total} ({parts})"


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
    from .run import finished, progress_of

    if request.autoattack:
        from .autoattack import require

        require()  # now, not after hours of training
    device = resolve_device(request.device)
    planned, missing = select(request, device)
    runs_dir = Path(request.runs_dir) if request.runs_dir else cache_home() / "runs"
    gpus = gpu_count() if request.device == "auto" and device != "cpu" and len(planned) > 1 else 0
    jobs = min(request.jobs, max(1, len(planned))) if request.jobs else None
    slots = slots_for(device, jobs=jobs, gpus=gpus, threads=request.threads, cores=default_threads)
    made = Plan(request, planned, missing, device, slots, runs_dir)
    for one in planned:
        if request.fresh:
            continue
        if record := finished(one.cell, request.results_dir, runs_dir, autoattack=request.autoattack):
            made.done[one.cell.id] = record
        elif (share := progress_of(one.cell, runs_dir)) is not None:
            made.begun[one.cell.id] = share
    if made.open and not request.dry_run:
        check_writable(request.results_dir, "--results")
        check_writable(runs_dir, "--runs-dir")
    timed = [p.cell for p in made.open if made.begun.get(p.cell.id, 0.0) < 1.0]
    if timed and (request.dry_run or not request.quiet or paper_on_cpu(made)):
        say("timing a few training steps for the plan")
        made.estimates = estimate(timed, device=device, threads=slots[0].threads, plugins=plugins)
    return made


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

    try:
        if request.executor is not None:
            return request.executor.run(
                tasks, plan.slots[0].threads, device=request.device, on_outcome=ended, say=board.say
            )
        return launch(tasks, plan.slots, progress=board.progress, on_outcome=ended)
    finally:
        board.close()


def as_changes(pairs: Sequence[str]) -> dict[str, str]:
    """`--set` arguments as a mapping.

    Raises:
        UsageError: one without `=`, or a field set twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {pair}: write --set FIELD=VALUE, as in --set lr=1e-3")
        if name.strip() in found:
            raise UsageError(f"--set {name.strip()}: given twice")
        found[name.strip()] = value.strip()
    return found


def show_config(request: Request) -> None:
    """The resolved cells and every field of their recipes, as JSON; nothing is run."""
    from .recipe import as_dict

    device = resolve_device(request.device)
    planned, missing = select(request, device)
    if not planned:
        raise UsageError("; ".join(f"{m.label}: {m.reason}" for m in missing))
    print(json.dumps([{"cell": p.cell.as_record(), "recipe": as_dict(p.recipe)} for p in planned], indent=1))
