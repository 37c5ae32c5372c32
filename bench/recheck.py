"""`bench verify`, `bench attack`, `bench certify`: a finished run looked at again, with its weights where they are."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import autoattack, certification, reattack
from . import record as records
from .attack import AttackConfig
from .certification import OUTCOMES, Certification
from .data import Split, load
from .environment import code_version, environment
from .errors import BenchError, UsageError
from .evaluate import evaluate
from .files import check_writable, locked, remove
from .kept import Kept, parts_key
from .posthoc import certify_with
from .progress import Progress
from .reattack import Reattack
from .record import Record
from .seeding import seed_of
from .trained import WEIGHTS, Trained, of_record
from .verify import EXAMPLES, FULL_POINTS, POINTS, Finding, verify_certified, verify_full, verify_record, verify_run


@dataclass(frozen=True)
class Again:
    """Where a run's parts are, and on what to look at them."""

    runs_dir: Path
    device: str = "cpu"
    threads: int = 1
    data_root: Path | None = None
    offline: bool = False

    def has_weights(self, record: Record) -> bool:
        """Whether the run's folder still holds its weights."""
        return (self.runs_dir / record.path.name / WEIGHTS).exists()

    def open(self, record: Record) -> tuple[Trained, Split]:
        """The net and the split a record speaks about, both checked to be the very ones.

        Raises:
            StateError, DataError, BenchError: they are gone or differ.
        """
        torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        trained = of_record(record, self.runs_dir, device)
        data = load(record.dataset, data_root=self.data_root, offline=self.offline, device=device)
        if data.info["checksum"] != record.data["data"]["checksum"]:
            raise BenchError(
                f"{record.dataset}: these images are not those of record {record.short} (checksum differs)"
            )
        return trained, data.test() if record.split == "test" else data.val

    @contextlib.contextmanager
    def parts(self, record: Record, trained: Trained, split: Split, about: dict[str, Any]) -> Iterator[Kept]:
        """Where the finished parts of a work on a record lie until it is done; a stopped one goes on from them.

        about: what is done, as JSON. Each work has a folder of its own, which one process at a time may hold.

        Raises:
            FileError: another process does the very same.
        """
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        folder = self.runs_dir / record.path.name / "again" / name
        weights, eps = record.data["weights_sha256"], record.data["cell"]["eps"]
        key = parts_key(trained.method, weights, split.index, eps, torch.device(self.device))
        with locked(folder):
            yield Kept(folder, key | {"work": about})
        remove(folder)


def verify(
    record: Record,
    again: Again,
    *,
    level: int,
    progress: Progress,
    examples: int = EXAMPLES,
    points: int | None = None,
) -> list[Finding]:
    """Level 0 looks at the record alone, level 1 replays a sample on the weights, level 2 does everything again.

    examples: replayed, and attacked inside their own radius. points: tried there, of each kind; default by level.
    """
    found = verify_record(record)
    if level == 0 or not all(f.ok for f in found):
        return found
    trained, split = again.open(record)
    run = (record, trained.method, trained.net, split)
    points = points or (FULL_POINTS if level > 1 else POINTS)
    about: dict[str, Any] = {"spec": trained.spec, "recipe": trained.recipe, "progress": progress}
    found += verify_run(*run, examples=examples, points=points, **about)
    if level > 1:
        found += verify_full(*run, **about)
        found += verify_certified(*run, examples=examples, **about)
    return found


def attack(
    record: Record,
    again: Again,
    config: AttackConfig,
    *,
    seed: int,
    progress: Progress,
    examples: int | None = None,
) -> Reattack:
    """Put the record's net under another attack and leave what survives beside the record.

    examples: a seeded sample of so many of the split; None: all.

    Raises:
        Violation: it broke a class D or F32 certificate; the evidence is in the run's folder.
        BenchError: the same attacks lie there and attacked more, or the record was replaced by one of another net.
    """
    if config.autoattack:
        autoattack.require()
    named = attacked_with(config, seed)
    if stronger := reattack.stronger(record, named, examples, certified_too=config.attack_certified):
        raise BenchError(
            f"{stronger.path} is kept: the same attacks, and on {stronger.n_certified_attacked} certified examples too;"
            " leave --skip-certified out, or delete it"
        )
    check_writable(record.path, "--results")  # now, not after hours of attacks
    trained, split = again.open(record)
    if examples is not None and examples < len(split):
        order = np.random.default_rng(seed_of(seed, "attack", "examples")).permutation(len(split))
        split = split.subset(torch.from_numpy(np.sort(order[:examples])).to(split.labels.device))
    about = {"attack": dataclasses.asdict(config), "seed": seed, "examples": len(split)}
    with again.parts(record, trained, split, about) as keep:
        found = evaluate(
            trained.method,
            trained.recipe,
            trained.net,
            split,
            spec=trained.spec,
            eps=record.eps,
            seed=seed,
            attacks=config,
            progress=progress,
            bundle_dir=again.runs_dir / record.path.name,
            radii=False,
            keep=keep,
        )
        index, robust = found.arrays["index"], found.arrays["robust"]
        record = _now(record)
        if not np.isin(index, record.arrays("index")["index"]).all():
            raise BenchError(f"the examples attacked are not those of record {record.short}")
        payload: dict[str, Any] = {
            "attacked_with": named,
            "attacks": found.summary["attacks"],
            "counts": reattack.counts(record, index, robust),
            "seconds": round(keep.elapsed, 3),
            "notes": found.summary["notes"],
            **_circumstances(again),
        }
        return reattack.write(record, payload, {"index": index, "robust": robust})


def _now(record: Record) -> Record:
    """The record as it lies there after hours of work: the same net may have been evaluated again meanwhile.

    Raises:
        BenchError: it is gone, or of another net.
    """
    found = records.read(record.path)
    if found.data["weights_sha256"] != record.data["weights_sha256"]:
        raise BenchError(f"record {record.short} was replaced meanwhile by one of another net; repeat this on that one")
    return found


def attacked_with(config: AttackConfig, seed: int) -> dict[str, Any]:
    """What names an attack: its suite, strength and seed."""
    suite = "autoattack" if config.autoattack else "pgd"
    return {"suite": suite, "steps": config.steps, "restarts": config.restarts, "seed": seed}


def _circumstances(again: Again) -> dict[str, Any]:
    return {
        "environment": environment(torch.device(again.device)),
        "code": code_version(),
        "finished": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


@dataclass(frozen=True)
class CertifyOptions:
    """How to certify: see `posthoc.certify_with`. n: the first so many examples of the split, None: all."""

    certifier: str
    engine: str = "auto"
    n: int | None = None
    iterations: int = 20
    limit_s: float | None = None
    example_limit_s: float | None = None


def certify(record: Record, again: Again, options: CertifyOptions, *, progress: Progress) -> Certification:
    """Certify the record's net with another certifier and leave the outcomes beside the record.

    An example that the record's own attacks broke and that is certified now is `unsound`: one of the two is wrong, and
    the attack holds the evidence.

    Raises:
        UsageError: unknown certifier or engine, or more examples than there are.
        StateError, DataError, BenchError: the weights or images are gone or differ.
        lirpa.LirpaUnavailable, lirpa.Unsupported: auto_LiRPA is needed and missing, or cannot bound this network.
    """
    if options.n is not None and options.n > record.n:
        raise UsageError(f"--n {options.n}: record {record.short} has {record.n} examples")
    check_writable(record.path, "--results")
    trained, split = again.open(record)
    count = options.n or record.n
    part = split.subset(torch.arange(count, device=split.labels.device))
    with again.parts(record, trained, part, {"certify": dataclasses.asdict(options), "examples": count}) as keep:
        found = certify_with(
            trained.net,
            part,
            options.certifier,
            eps=record.eps,
            levels=trained.spec.levels,
            method=trained.method,
            recipe=trained.recipe,
            engine=options.engine,
            iterations=options.iterations,
            limit_s=options.limit_s,
            example_limit_s=options.example_limit_s,
            progress=progress,
            keep=keep,
        )
        record = _now(record)
        index = part.index.cpu().numpy().astype(np.int32)
        outcome, notes = _against_record(record, index, found.outcome)
        told = found.summary
        details = {k: told[k] for k in ("bound_dtype", "conv_mode", "iterations") if k in told}
        shown = {k: told[k] for k in ("certifier", "certificate", "cls", "engine")}
        payload: dict[str, Any] = {
            "certified_with": {**shown, **details},
            "counts": {name: int((outcome == code).sum()) for code, name in enumerate(OUTCOMES)},
            "n_borderline": told["n_borderline"],
            "limits": {"all_s": options.limit_s, "example_s": options.example_limit_s},
            "seconds": told["seconds"],
            "notes": [*told["notes"], *notes],
            **_circumstances(again),
        }
        arrays = {"index": index, "outcome": outcome, "bound": found.lower, "seconds": found.seconds}
        return certification.write(record, payload, arrays)


def _against_record(record: Record, index: np.ndarray, outcome: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Outcomes that agree with what the record knows about the same examples."""
    theirs = record.arrays("index", "correct", "robust")
    order = np.argsort(theirs["index"])
    rows = order[np.searchsorted(theirs["index"], index, sorter=order)]
    certified = outcome == OUTCOMES.index("certified")
    turned = certified & ~theirs["correct"][rows]  # a margin near 0 may have another sign on another machine
    broken = certified & theirs["correct"][rows] & ~theirs["robust"][rows]
    outcome = np.where(turned, OUTCOMES.index("misclassified"), outcome)
    outcome = np.where(broken, OUTCOMES.index("unsound"), outcome).astype(np.int8)
    notes = []
    if turned.any():
        notes.append(f"{int(turned.sum())} examples are right here and wrong in the record; they count as wrong")
    if broken.any():
        notes.append(f"{int(broken.sum())} certified examples were broken by the record's attacks; they are unsound")
    return outcome, notes
