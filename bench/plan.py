"""What `bench run` is asked for, and what is known of it before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cell import Missing, Planned
from .child import Slot
from .errors import UsageError
from .estimate import Estimate
from .executor import Executor
from .options import Options
from .progress import duration
from .record import Record
from .study import Selection, Study

DEFAULT_RESULTS = "results/measured"
TUNING_RESULTS = "results/tuning"  # never committed, never reported


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
    def is_elsewhere(self) -> bool:
        """Cells run on machines that are not this one, of which nothing is known here."""
        return self.executor is not None and self.executor.engine != "local"

    @property
    def results_dir(self) -> Path:
        """Tuning runs do not lie among the results unless told so."""
        if self.results is not None:
            return Path(self.results)
        return Path(TUNING_RESULTS if self.split == "val" else DEFAULT_RESULTS)


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
    absent: tuple[str, ...] = ()  # data sets of open cells that are not on this machine

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
        if any("epochs" in dict(p.cell.overrides) for p in self.open):
            out.append("epochs are set by hand: schedules that count epochs stay as they are (--show-config, --set)")
        for name in self.absent:
            fate = "and --offline forbids a download" if self.request.offline else "a download is tried"
            out.append(f"{name}: not on this machine, {fate} (`bench list datasets`)")
        if self.open:
            each = f"{len(self.slots)} workers" if len(self.slots) > 1 else "one worker"
            threads = f"{self.slots[0].threads} thread{'s' if self.slots[0].threads > 1 else ''}"
            where = ", ".join(dict.fromkeys(s.device for s in self.slots))
            out.append(f"{each} with {threads} on {where}" + (f"; times from {next(iter(hows))}" if hows else ""))
        return out

    def _fate(self, planned: Planned) -> str:
        cell = planned.cell
        if cell.id in self.done:
            changed = ""
            if _is_outdated(self.done[cell.id]):
                changed = "; its source has changed since; --fresh replaces it, --results DIR keeps both"
            part = self.done[cell.id].data["data"]["subset"]
            some = f" on {part['classes']} classes only (--fresh takes the data that is here now)" if part else ""
            return f"finished before{some}: {accuracies(self.done[cell.id])}{changed}"
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
        more = "; AutoAttack comes on top, not estimated" if self.request.autoattack else ""
        return f"{at}about {total} ({parts}{more})"


def _is_outdated(record: Record) -> bool:
    """A plugin's file is not what trained this record. Built-ins have version control for that."""
    from . import registry
    from .environment import method_sha256

    trained = [code.get("method_sha256") for code in record.trained_by]
    return bool(trained) and trained[-1] is not None and trained[-1] != method_sha256(registry.get(record.method))


def accuracies(record: Record) -> str:
    """`clean 97.22, robust 90.00, certified 88.61 % (class D)`; robust is an upper bound by attacks."""
    cls = f" (class {record.certificate_class})" if record.certificate_class else ""
    return f"clean {record.clean:.2f}, robust {record.robust:.2f}, certified {record.certified:.2f} %{cls}"


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
