"""Certificates added to a record after the fact: trained with one method, certified with another. Torch-free.

What `bench certify` finds lies beside the record, `certified-<certifier>[-n<N>].json` and .npz, with the outcome of
every example (`beside.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import beside
from .beside import Beside, Kind, own_count
from .errors import BenchError
from .record import Problem, Record

OUTCOMES = ("misclassified", "certified", "unknown", "unsound", "timeout", "out_of_memory")  # `outcome` counts into it

UNDECIDED = ("timeout", "out_of_memory")  # outcomes that more time or memory would change

__all__ = ["OUTCOMES", "Certification", "carry", "name_of", "of_record", "own_count", "write"]


class Certification(Beside):
    """A checked certification; arrays: index int32, outcome int8, bound float64, seconds float32, [n] each."""

    @property
    def outcome(self) -> np.ndarray:
        return self.arrays["outcome"]

    @property
    def certifier(self) -> str:
        return str(self.data["certified_with"]["certifier"])

    def row(self) -> dict[str, Any]:
        """The flat object that `bench certify --json` prints."""
        flat = {k: self.data[k] for k in ("record", "eps", "split", "n", "n_test", "n_borderline", "seconds", "notes")}
        with_ = self.data["certified_with"]
        return {**self.data["trained_with"], **with_, **flat, **self.data["counts"], "file": self.path.name}


def _contradiction(
    data: Mapping[str, Any], arrays: Mapping[str, np.ndarray], record: Record, rows: np.ndarray
) -> str | None:
    """Counts against outcomes, outcomes against the record's own examples."""
    outcome = arrays["outcome"]
    for code, name in enumerate(OUTCOMES):
        if data["counts"][name] != int((outcome == code).sum()):
            return f"counts.{name} = {data['counts'][name]} but the array holds {int((outcome == code).sum())}"
    certified = outcome == OUTCOMES.index("certified")
    if (certified & ~record.arrays("robust")["robust"][rows]).any():
        return "an example is certified that the record's attacks broke"
    if (certified & ~(arrays["bound"] > 0)).any():
        return "an example is certified with a bound of 0 or less"
    return None


KIND = Kind(
    word="certification",
    made=Certification,
    names=re.compile(r"certified-[a-z_]+(-n[0-9]+)?\.json"),
    command="bench certify",
    version=1,
    counts=OUTCOMES,
    keys={"certified_with": dict, "n_borderline": int, "limits": dict},
    inner={"certified_with": ("certifier", "cls", "engine")},
    arrays={"index": "int32", "outcome": "int8", "bound": "float64", "seconds": "float32"},
    contradiction=_contradiction,
)


def name_of(certifier: str, n: int, n_all: int) -> str:
    """The stem of its files."""
    return beside.stem_of(f"certified-{certifier}", n, n_all)


def write(record: Record, payload: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Certification:
    """Store a certification beside its record; an older one of the same certifier and size is replaced.

    Raises:
        BenchError: it contradicts the record, holds what no record may hold, or the folder cannot be written.
    """
    stem = name_of(payload["certified_with"]["certifier"], len(arrays["index"]), record.n)
    for older in (one for one in of_record(record)[0] if one.path.stem == stem):
        left, now = (sum(int(counts[k]) for k in UNDECIDED) for counts in (older.data["counts"], payload["counts"]))
        if left < now and older.count("certified") > payload["counts"]["certified"]:
            raise BenchError(
                f"{older.path} is kept: it certifies {older.count('certified')} examples and left {left} open, this "
                f"run {payload['counts']['certified']} and {now} at its limits; delete it to have the new one"
            )
    return beside.write(KIND, record, stem, payload, arrays)


def carry(found: Certification, record: Record) -> Certification:
    """The same outcomes beside a newer record of the same weights; see `beside.carry`."""
    return beside.carry(KIND, found, record, found.data["counts"])


def of_record(record: Record) -> tuple[list[Certification], list[Problem]]:
    """What lies beside a record, by name; what cannot be used is a Problem, never an exception."""
    return beside.of_record(KIND, record)
