"""Attacks on a finished run's net after the fact, harder than its record's own or by another library. Torch-free.

What `bench attack` finds lies beside the record, `attacked-<suite>-<steps>x<restarts>-s<seed>[-n<N>].json` and .npz,
with the examples that were right and survived these attacks (`beside.py`). The record keeps its numbers: an upper bound
of the same nets' robust accuracy on the same examples is the union, right and broken by none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import beside
from .beside import Beside, Kind
from .record import Problem, Record

# of the examples attacked: by the record, by these attacks alone, by both; certified by the record
COUNTS = ("correct", "robust_before", "robust_now", "robust_both", "newly_broken", "certified")


class Reattack(Beside):
    """A checked one; arrays: index int32, robust uint8 (right and not broken by these attacks), [n] each."""

    @property
    def suite(self) -> str:
        """`pgd` or `autoattack`."""
        return str(self.data["attacked_with"]["suite"])

    @property
    def n_certified_attacked(self) -> int:
        """How many examples with a certificate were attacked too; 0 where they were left out."""
        attacks = self.data["attacks"]
        open_before = self.count("correct") - self.count("certified")
        return max(0, int(attacks[0]["n_attacked"]) - open_before) if attacks else 0

    def percent(self, key: str) -> float:
        return 100.0 * self.count(key) / self.n

    def row(self) -> dict[str, Any]:
        """The flat object that `bench attack --json` prints."""
        flat = {k: self.data[k] for k in ("record", "eps", "split", "n", "n_test", "seconds", "attacks", "notes")}
        return {**self.data["trained_with"], **self.data["attacked_with"], **flat, **self.data["counts"],
                "file": self.path.name}  # fmt: skip


def counts(record: Record, index: np.ndarray, robust: np.ndarray) -> dict[str, int]:
    """What the record's attacks and these leave together, on these examples."""
    theirs = record.arrays("index", "correct", "robust", "certified")
    place = {int(at): row for row, at in enumerate(theirs["index"])}
    rows = np.array([place[int(at)] for at in index], dtype=np.intp)
    return _counts({k: theirs[k][rows] for k in ("correct", "robust", "certified")}, robust)


def _counts(theirs: Mapping[str, np.ndarray], robust: np.ndarray) -> dict[str, int]:
    now, before = robust.astype(bool), theirs["robust"].astype(bool)
    return {
        "correct": int(theirs["correct"].sum()),
        "robust_before": int(before.sum()),
        "robust_now": int(now.sum()),
        "robust_both": int((now & before).sum()),
        "newly_broken": int((before & ~now).sum()),
        "certified": int(theirs["certified"].sum()),
    }


def newly_broken(record: Record, found: Sequence[Reattack]) -> np.ndarray:
    """Positions in the official split of examples that the record's attacks left standing and one of these broke."""
    theirs = record.arrays("index", "robust")
    standing = theirs["index"][theirs["robust"].astype(bool)]
    gone = [one.index[~one.arrays["robust"].astype(bool)] for one in found]
    return np.intersect1d(standing, np.concatenate(gone)) if gone else np.empty(0, np.int32)


def n_open(record: Record, one: Reattack) -> int:
    """Examples of an attack that nothing has broken and the record does not certify."""
    theirs = record.arrays("index", "robust", "certified")
    standing = np.intersect1d(
        theirs["index"][theirs["robust"].astype(bool)], one.index[one.arrays["robust"].astype(bool)]
    )
    return len(np.setdiff1d(standing, theirs["index"][theirs["certified"].astype(bool)]))


def _contradiction(
    data: Mapping[str, Any], arrays: Mapping[str, np.ndarray], record: Record, rows: np.ndarray
) -> str | None:
    theirs = {k: v[rows] for k, v in record.arrays("correct", "robust", "certified").items()}
    found = _counts(theirs, arrays["robust"])
    for key in COUNTS:
        if data["counts"][key] != found[key]:
            return f"counts.{key} = {data['counts'][key]} but the arrays give {found[key]}"
    proved = record.certificate_class in ("D", "F32")  # class R leaves rounding open, so an attack may contradict it
    if proved and (theirs["certified"].astype(bool) & ~arrays["robust"].astype(bool)).any():
        return f"an example is broken that the record certifies with class {record.certificate_class}"
    return None


KIND = Kind(
    word="attack",
    made=Reattack,
    names=re.compile(r"attacked-[a-z]+(-[0-9]+x[0-9]+-s[0-9]+)?(-n[0-9]+)?\.json"),
    command="bench attack",
    version=1,
    counts=COUNTS,
    keys={"attacked_with": dict, "attacks": list},
    inner={"attacked_with": ("suite", "steps", "restarts", "seed")},
    arrays={"index": "int32", "robust": "uint8"},
    contradiction=_contradiction,
)


def name_of(attacked_with: Mapping[str, Any], n: int, n_all: int) -> str:
    """The stem of its files: attacks of other strength or another seed stand side by side, and all of them count."""
    suite, steps, restarts, seed = (attacked_with[k] for k in ("suite", "steps", "restarts", "seed"))
    return beside.stem_of(f"attacked-{suite}-{steps}x{restarts}-s{seed}", n, n_all)


def write(record: Record, payload: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Reattack:
    """Store attacks beside their record; an older result of the same attacks, seed and size is replaced.

    Raises:
        BenchError: it contradicts the record, holds what no record may hold, or the folder cannot be written.
    """
    stem = name_of(payload["attacked_with"], len(arrays["index"]), record.n)
    return beside.write(KIND, record, stem, payload, arrays)


def as_strong(
    record: Record, attacked_with: Mapping[str, Any], examples: int | None, *, certified_too: bool
) -> Reattack | None:
    """One beside the record with the same suite, steps, restarts and seed on at least so many examples (None: all).

    certified_too: it must not have left out the examples that are certified.
    """
    for one in of_record(record)[0]:
        same = all(one.data["attacked_with"].get(k) == v for k, v in attacked_with.items())
        enough = one.n >= min(examples or record.n, record.n)
        if same and enough and (not certified_too or one.n_certified_attacked == one.count("certified")):
            return one
    return None


def stronger(
    record: Record, attacked_with: Mapping[str, Any], examples: int | None, *, certified_too: bool
) -> Reattack | None:
    """The one that `write` would replace, if it attacked certified examples and the new one is not going to."""
    stem = name_of(attacked_with, min(examples or record.n, record.n), record.n)
    same = (one for one in of_record(record)[0] if one.path.stem == stem and not certified_too)
    return next((one for one in same if one.n_certified_attacked), None)


def carry(found: Reattack, record: Record) -> Reattack:
    """The same attacks beside a newer record of the same weights; see `beside.carry`."""
    return beside.carry(KIND, found, record, counts(record, found.index, found.arrays["robust"]))


def of_record(record: Record) -> tuple[list[Reattack], list[Problem]]:
    """What lies beside a record, by name; what cannot be used is a Problem, never an exception."""
    return beside.of_record(KIND, record)
