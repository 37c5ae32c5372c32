"""A finished run looked at again: `bench verify`, `bench attack`, `bench certify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import finished_run_options, print_json, runs_dir, say

if TYPE_CHECKING:
    from ..reattack import Reattack
    from ..record import Problem, Record

NOT_REPLAYED = "replay"  # the check that could not be made, for want of weights, data or a method


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every record in the results folder.")
@click.option(
    "--level",
    type=click.IntRange(0, 2),
    help="0: the record alone; 1: also its weights [default: 1 if there]; 2: everything again (minutes).",
)
@click.option(
    "--examples", type=click.IntRange(1), default=64, show_default=True, help="Replayed and attacked, levels 1 and 2."
)
@click.option(
    "--points",
    type=click.IntRange(1),
    help="Random points, and vertices, tried inside each one's own radius [default: 100; 100000 at level 2].",
)
@finished_run_options
def verify(
    runs: tuple[str, ...],
    every: bool,
    level: int | None,
    examples: int,
    points: int | None,
    results: str,
    as_json: bool,
    **where: Any,
) -> None:
    """Does a record hold together, and does its net still do what it says?"""
    from .. import verify as verifying

    chosen, damaged = _chosen(results, runs, every=every)
    report = [_told(p.path.parent.name, "", [_cannot(p.reason)], as_json) for p in damaged]
    for one in chosen:
        try:
            found = verifying.verify_record(one) if level == 0 else _verified(one, level, examples, points, where)
        except Exception as error:  # its weights are gone, say: the records after it are looked at all the same
            found = [_cannot(_line(error), NOT_REPLAYED)]
        report.append(_told(one.path.name, one.short, found, as_json))
    if as_json:
        print_json(report)
    sys.exit(0 if all(line["ok"] for line in report) else 1)


def _chosen(results: str, runs: tuple[str, ...], *, every: bool) -> tuple[list[Record], list[Problem]]:
    """The records named, or all of a folder and what cannot be read there.

    Raises:
        UsageError: neither a name nor --all, or nothing is there. BenchError: no such record.
    """
    from .. import record
    from ..errors import UsageError

    if bool(runs) == every:
        raise UsageError("name a run (`bench list runs`), or give --all" + " and no names" * every)
    if not every:
        return [record.find(Path(results), name) for name in runs], []
    chosen, damaged = record.scan(Path(results))
    if not chosen and not damaged:
        raise UsageError(f"no records in {results}; choose another folder with --results")
    return chosen, damaged


def _line(error: Exception) -> str:
    """In one line; ours are made so."""
    from ..errors import BenchError, one_line

    return str(error) if isinstance(error, BenchError) else one_line(error)


def _cannot(reason: str, check: str = "read") -> Any:
    from ..verify import Finding

    return Finding(check, 1, 1, reason)


def _told(name: str, short: str, found: list[Any], as_json: bool) -> dict[str, Any]:
    """Print what was found about one record, or keep it for --json."""
    broken = [f for f in found if not f.ok]
    if not as_json:
        looked = f", {sum(f.checked for f in found)} things looked at"
        verdict = f"FAILED{looked}" if broken else f"holds{looked}"
        if [f.check for f in found] == [NOT_REPLAYED]:
            verdict = "cannot be replayed here (--level 0 looks at the record alone)"
        click.echo(f"{short} {name}: {verdict}".strip())
        for f in broken if broken else found:
            click.echo(f"  {'ok ' if f.ok else 'BAD'} {f.check}: {f.message} ({f.checked} checked)")
    return {"run": short or name, "ok": not broken, "findings": [vars(f) for f in found]}


def _again(device: str, data_root: str | None, offline: bool, threads: int | None, **where: str | None) -> Any:
    from ..environment import default_threads, resolve_device
    from ..recheck import Again

    return Again(
        runs_dir(where["runs_dir"]),
        resolve_device(device),
        threads or default_threads(),
        Path(data_root) if data_root else None,
        offline,
    )


def _verified(record: Any, level: int | None, examples: int, points: int | None, where: dict[str, Any]) -> Any:
    from ..progress import Progress
    from ..recheck import verify as verify_again

    again = _again(**where)
    if level is None and not again.has_weights(record):
        say(f"{record.short}: no weights in {again.runs_dir}, so only the record itself is looked at (level 0)")
        level = 0
    progress = Progress()
    try:
        level = 1 if level is None else level
        return verify_again(record, again, level=level, progress=progress, examples=examples, points=points)
    finally:
        progress.close()


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every record in the results folder not attacked so before.")
@click.option("--steps", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Gradient steps.")
@click.option("--restarts", type=click.IntRange(1, 1000), default=3, show_default=True, help="Random restarts.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the starting points.")
@click.option("--autoattack", is_flag=True, help="Also AutoAttack, standard version (slow; needs pyautoattack).")
@click.option("--examples", type=click.IntRange(1), metavar="N", help="A seeded sample of the split [default: all].")
@click.option("--skip-certified", is_flag=True, help="Leave out what has a class D or F32 certificate.")
@finished_run_options
def attack(
    runs: tuple[str, ...],
    every: bool,
    steps: int,
    restarts: int,
    seed: int,
    autoattack: bool,
    examples: int | None,
    skip_certified: bool,
    results: str,
    as_json: bool,
    **where: Any,
) -> None:
    """Attack finished runs' nets harder than their records did; what survives lies beside the record, reports show it.

    The union of both can only be lower than the record's robust accuracy.
    """
    chosen, damaged = _chosen(results, runs, every=every)
    again = _again(**where)
    from .. import reattack, recheck
    from ..attack import AttackConfig
    from ..autoattack import require
    from ..progress import Progress

    if autoattack:
        require()
    failed = [f"{p.path.parent.name}: {p.reason}" for p in damaged]
    rows: list[dict[str, Any]] = []
    for record in chosen:
        config = AttackConfig(
            steps=steps,
            restarts=restarts,
            surrogates=100,
            surrogate_steps=steps,
            surrogate_restarts=restarts,
            autoattack=autoattack,
            attack_certified=not (skip_certified and record.certificate_class in ("D", "F32")),
        )
        label = record.path.name if len(chosen) > 1 else ""
        done = None
        if every:
            wanted = recheck.attacked_with(config, seed)
            done = reattack.as_strong(record, wanted, examples, certified_too=config.attack_certified)
        progress = Progress(label=label)
        try:
            told = done or recheck.attack(record, again, config, seed=seed, progress=progress, examples=examples)
        except Exception as error:
            if not label:
                raise
            failed.append(f"{record.path.name}: {_line(error)}")
            continue
        finally:
            progress.close()
        rows.append(told.row())
        if not as_json:
            _show_attack(told, f"{label}: " * bool(label) + "attacked before, " * bool(done), in_full=not label)
    if as_json:
        print_json(rows[0] if len(runs) == 1 else rows)
    for line in failed:
        click.secho(f"error: {line}", fg="red", err=True)
    sys.exit(1 if failed else 0)


def _show_attack(told: Reattack, label: str, *, in_full: bool) -> None:
    """What an attack left, with its parts where it is the only one."""
    from ..text import columns

    if in_full:
        click.echo(columns(told.data["attacks"], ("name", "steps", "restarts", "n_attacked", "n_broken", "seconds")))
    for note in told.data["notes"] if in_full else ():
        click.echo(f"note: {note}")
    click.echo(
        f"{label}{told.n} examples; robust: {told.percent('robust_before'):.2f} % by the record, "
        f"{told.percent('robust_now'):.2f} % by these attacks, {told.percent('robust_both'):.2f} % by both "
        f"({told.count('newly_broken')} newly broken); certified {told.percent('certified'):.2f} %"
    )
    if in_full:
        say(f"kept beside the record: {told.path.name}")


@click.command()
@click.argument("name", metavar="RUN")
@click.option(
    "--certifier",
    metavar="NAME",
    required=True,
    help="ibp, crown_ibp, crown or alpha_crown, cheap to expensive; the last two need auto_LiRPA.",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar="auto|own|auto_lirpa",
    help="Whose code; auto takes the method's own bound where there is one.",
)
@click.option("--n", type=click.IntRange(1), metavar="N", help="Only the first N examples of the split [default: all].")
@click.option("--iterations", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Of alpha_crown.")
@click.option("--time-limit", metavar="25m", help="For the whole split; what is not reached counts as timeout.")
@click.option(
    "--example-limit", metavar="30s", help="For one example (its share of a call); a slower one counts as timeout."
)
@finished_run_options
def certify(
    name: str,
    certifier: str,
    engine: str,
    n: int | None,
    iterations: int,
    time_limit: str | None,
    example_limit: str | None,
    results: str,
    as_json: bool,
    **where: Any,
) -> None:
    """Certify a finished run's net with another certifier; the outcome lies beside its record, reports show it.

    Unknown (the bound fails), unsound (a point contradicts it), timeout and out of memory are different answers; none
    counts as certified.
    """
    from ..text import parse_span

    limits = [parse_span(text) if text else None for text in (time_limit, example_limit)]
    from .. import record

    found = record.find(Path(results), name)
    again = _again(**where)
    from .. import recheck
    from ..progress import Progress

    options = recheck.CertifyOptions(certifier, engine, n, iterations, *limits)
    progress = Progress()
    try:
        told = recheck.certify(found, again, options, progress=progress)
    finally:
        progress.close()
    row = told.row()
    if as_json:
        print_json(row)
        return
    from ..certification import OUTCOMES, own_count
    from ..text import columns

    click.echo(columns([row], ("method", "certifier", "cls", "engine", "eps", "n", *OUTCOMES, "seconds")))
    part = f" on the first {told.n} of {found.n} examples" if told.is_subset else ""
    own = own_count(found, told.index, "certified")
    click.echo(
        f"{found.short}: trained with {found.method}, certified with {certifier}: "
        f"{100 * told.count('certified') / told.n:.2f} % certified{part}; "
        f"{100 * own / told.n:.2f} % by the record's own certificate ({found.headline['name'] or 'none'})"
    )
    for note in told.data["notes"]:
        say(f"note: {note}")
