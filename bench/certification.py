"""Certificates added to a record after the fact: trained with one method, certified with another. Torch-free.

A record is immutable, so what `bench certify` finds lies beside it, `certified-<certifier>[-n<N>].json` with the
outcome of every example in an .npz of the same name; both go when the run is repeated. The JSON is canonical and
carries its own hash, names the record and the weights it speaks about, and its counts are checked against the arrays.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import record_arrays, record_check
from .errors import BenchError
from .files import write_atomic
from .record import Problem, Record, canonical, identity

VERSION = 1
OUTCOMES = ("misclassified", "certified", "unknown", "unsound", "timeout", "out_of_memory")
ARRAYS = {"index": "int32", "outcome": "int8", "bound": "float64", "seconds": "float32"}  # outcome: into OUTCOMES
_NAME = re.compile(r"certified-[a-z_]+(-n[0-9]+)?\.json")
_KEYS = {
    "version": int, "id": str, "record": str, "weights_sha256": str, "trained_with": dict, "certified_with": dict,
    "eps": str, "split": str, "n": int, "n_test": int, "counts": dict, "n_borderline": int, "limits": dict,
    "seconds": (int, float), "environment": dict, "code": dict, "notes": list, "arrays": str, "finished": str,
}  # fmt: skip
_INNER = {"trained_with": ("method", "preset", "seed"), "certified_with": ("certifier", "cls", "engine")}


@dataclass(frozen=True)
class Certification:
    """A checked certification: its JSON, its outcomes and positions [n] (the official split's), its file."""

    data: Mapping[str, Any]
    index: np.ndarray
    outcome: np.ndarray
    path: Path

    @property
    def n(self) -> int:
        return int(self.data["n"])

    @property
    def certifier(self) -> str:
        return str(self.data["certified_with"]["certifier"])

    @property
    def is_subset(self) -> bool:
        """Not the whole split of the record."""
        return self.n < int(self.data["n_test"])

    def count(self, outcome: str) -> int:
        """Examples with this outcome."""
        return int(self.data["counts"][outcome])

    def row(self) -> dict[str, Any]:
        """The flat object that `bench certify --json` prints."""
        flat = {k: self.data[k] for k in ("record", "eps", "split", "n", "n_test", "n_borderline", "seconds", "notes")}
        with_ = self.data["certified_with"]
        return {**self.data["trained_with"], **with_, **flat, **self.data["counts"], "file": self.path.name}


def name_of(certifier: str, n: int, n_all: int) -> str:
    """The stem of its files."""
    return f"certified-{certifier}" + (f"-n{n}" if n < n_all else "")


def write(record: Record, payload: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Certification:
    """Store a certification beside its record; an older one of the same certifier and size is replaced.

    Args:
        payload: every key but version, id, record, weights_sha256, trained_with, eps, split, n, n_test and arrays.
        arrays: name -> [n], those of `ARRAYS`.

    Raises:
        BenchError: it contradicts the record, holds what no record may hold, or the folder cannot be written.
    """
    stored = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in ARRAYS.items()}
    packed = record_arrays.archived(stored)
    data = record_check.plain(
        {
            **payload,
            "version": VERSION,
            "record": record.id,
            "weights_sha256": record.data["weights_sha256"],
            "trained_with": {"method": record.method, "preset": record.preset, "seed": record.seed},
            "eps": str(record.eps),
            "split": record.split,
            "n": len(stored["index"]),
            "n_test": record.n,
            "arrays": hashlib.sha256(packed).hexdigest(),
        }
    )
    data["id"] = identity(data)
    problem = _fault(data, record) or _contradiction(data, stored, record)
    problem = problem or record_check.private({**data, "cell": record.data["cell"]})
    if problem:
        raise BenchError(f"certification of record {record.short}: {problem}")
    path = record.path / f"{name_of(data['certified_with']['certifier'], data['n'], record.n)}.json"
    path.unlink(missing_ok=True)  # a crash between the two files leaves none, not a mixture
    write_atomic(path.with_suffix(".npz"), packed)
    write_atomic(path, canonical(data))
    return Certification(data, stored["index"], stored["outcome"], path)


def of_record(record: Record) -> tuple[list[Certification], list[Problem]]:
    """What lies beside a record, by name; what cannot be used is a Problem, never an exception."""
    found, problems = [], []
    for path in sorted(p for p in record.path.glob("certified-*.json") if _NAME.fullmatch(p.name)):
        try:
            found.append(_read(path, record))
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
            problems.append(Problem(path, f"{reason}; repeat bench certify, or delete it"))
    return found, problems


def of_records(records: Iterable[Record]) -> tuple[list[tuple[Record, Certification]], list[Problem]]:
    """The same for many."""
    found: list[tuple[Record, Certification]] = []
    problems: list[Problem] = []
    for record in records:
        mine, bad = of_record(record)
        found += [(record, one) for one in mine]
        problems += bad
    return found, problems


def _read(path: Path, record: Record) -> Certification:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if fault := _fault(data, record):
        raise ValueError(fault)
    if identity(data) != data["id"]:
        raise ValueError("its id is not the hash of its content: it was edited after it was written")
    raw = path.with_suffix(".npz").read_bytes()
    if hashlib.sha256(raw).hexdigest() != data["arrays"]:
        raise ValueError("its arrays are not those that were written (sha256 differs)")
    arrays = record_arrays.unpack(raw, sorted(ARRAYS), data["n"], ARRAYS)
    if fault := _contradiction(data, arrays, record):
        raise ValueError(fault)
    return Certification(data, arrays["index"], arrays["outcome"], path)


def _fault(data: Mapping[str, Any], record: Record) -> str | None:
    """What is missing, malformed, or speaks about another net."""
    if data.get("version") != VERSION:
        return f"version {data.get('version')!r}; this suite reads {VERSION}"
    for key, kind in _KEYS.items():
        value = data.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
            return f"{key} is missing or of the wrong type"
    for key, inner in _INNER.items():
        if missing := [name for name in inner if name not in data[key]]:
            return f"{key}.{missing[0]} is missing"
    if sorted(data["counts"]) != sorted(OUTCOMES):
        return f"counts must name {', '.join(OUTCOMES)}"
    if data["record"] != record.id or data["weights_sha256"] != record.data["weights_sha256"]:
        return f"it speaks about record {data['record'][:8]}, not about {record.short} beside it"
    return None


def _contradiction(data: Mapping[str, Any], arrays: Mapping[str, np.ndarray], record: Record) -> str | None:
    """Counts against outcomes, outcomes against the record's own examples."""
    outcome = arrays["outcome"]
    for code, name in enumerate(OUTCOMES):
        if data["counts"][name] != int((outcome == code).sum()):
            return f"counts.{name} = {data['counts'][name]} but the array holds {int((outcome == code).sum())}"
    theirs = record.arrays("index", "robust")
    place = {int(at): row for row, at in enumerate(theirs["index"])}
    rows = [place.get(int(at), -1) for at in arrays["index"]]
    if -1 in rows or len(set(rows)) != len(rows):
        return "its examples are not examples of the record, or one stands twice"
    certified = outcome == OUTCOMES.index("certified")
    if (certified & ~theirs["robust"][rows]).any():
        return "an example is certified that the record's attacks broke"
    if (certified & ~(arrays["bound"] > 0)).any():
        return "an example is certified with a bound of 0 or less"
    return None


def own_count(record: Record, index: Sequence[int] | np.ndarray, kind: str) -> int:
    """How many of these examples the record itself counts as `correct`, `robust` or `certified`."""
    theirs = record.arrays("index", kind)
    return int(theirs[kind][np.isin(theirs["index"], index)].sum())
