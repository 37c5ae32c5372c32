"""What is found out about a record later lies beside it: JSON that carries its own hash, and arrays. Torch-free.

A record is immutable, so a further certificate (`certification.py`) or attack (`reattack.py`) is a pair of files of its
own, NAME.json and NAME.npz in the record's folder; both go when the run is repeated. The JSON is canonical, names the
record and the weights it speaks about, and is checked against its arrays whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from . import record_arrays, record_check
from .errors import BenchError
from .files import remove, write_atomic
from .record import Problem, Record, canonical, identity

_KEYS: dict[str, type | tuple[type, ...]] = {
    "version": int, "id": str, "record": str, "weights_sha256": str, "trained_with": dict, "eps": str, "split": str,
    "n": int, "n_test": int, "counts": dict, "seconds": (int, float), "environment": dict, "code": dict, "notes": list,
    "arrays": str, "finished": str,
}  # fmt: skip
# What `write` fills in.
_FILLED = {"version", "id", "record", "weights_sha256", "trained_with", "eps", "split", "n", "n_test", "arrays"}
_TRAINED_WITH = ("method", "preset", "seed")


@dataclass(frozen=True)
class Beside:
    """One checked result: its JSON, its arrays [n] by name, its file."""

    data: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    path: Path

    @property
    def n(self) -> int:
        return int(self.data["n"])

    @property
    def index(self) -> np.ndarray:
        """Positions in the official split."""
        return self.arrays["index"]

    @property
    def is_subset(self) -> bool:
        """Not the whole split of the record."""
        return self.n < int(self.data["n_test"])

    def count(self, key: str) -> int:
        """Examples counted under this key."""
        return int(self.data["counts"][key])


B = TypeVar("B", bound=Beside)


@dataclass(frozen=True)
class Kind(Generic[B]):
    """One kind of such results.

    made: the class of a result. names: file names. command: what makes them again. counts: the keys of `counts`.
    keys: further keys and their types. inner: keys that an object among them must have. arrays: name -> dtype, [n]
    each, `index` among them. contradiction: what is wrong between JSON, arrays and the rows of the record that they
    speak about, or None.
    """

    word: str
    made: type[B]
    names: re.Pattern[str]
    command: str
    version: int
    counts: tuple[str, ...]
    keys: Mapping[str, type | tuple[type, ...]]
    inner: Mapping[str, tuple[str, ...]]
    arrays: Mapping[str, str]
    contradiction: Callable[[Mapping[str, Any], Mapping[str, np.ndarray], Record, np.ndarray], str | None]


def write(kind: Kind[B], record: Record, stem: str, payload: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> B:
    """Store a result beside its record; an older one of the same name is replaced.

    Args:
        stem: file name without its ending.
        payload: every key but version, id, record, weights_sha256, trained_with, eps, split, n, n_test and arrays.
        arrays: name -> [n], those of the kind.

    Raises:
        BenchError: it contradicts the record, holds what no record may hold, or the folder cannot be written.
    """
    stored = {name: np.ascontiguousarray(arrays[name], dtype) for name, dtype in kind.arrays.items()}
    packed = record_arrays.archived(stored)
    data = record_check.plain(
        {
            **payload,
            "version": kind.version,
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
    problem = _fault(kind, data, record) or _contradiction(kind, data, stored, record)
    problem = problem or record_check.private({**data, "cell": record.data["cell"]})
    if problem:
        raise BenchError(f"{kind.word} of record {record.short}: {problem}")
    path = record.path / f"{stem}.json"
    remove(path)  # a crash between the two files leaves none, not a mixture
    write_atomic(path.with_suffix(".npz"), packed)
    write_atomic(path, canonical(data))
    return kind.made(data, stored, path)


def carry(kind: Kind[B], found: B, record: Record, counts: Mapping[str, int]) -> B:
    """The same result beside a newer record of the very same weights, where it counts `counts`.

    Raises:
        BenchError: it contradicts that record, or the folder cannot be written.
    """
    payload = {k: v for k, v in found.data.items() if k not in _FILLED} | {"counts": dict(counts)}
    return write(kind, record, found.path.stem, payload, found.arrays)


def of_record(kind: Kind[B], record: Record) -> tuple[list[B], list[Problem]]:
    """What lies beside a record, by name; what cannot be used is a Problem, never an exception."""
    found, problems = [], []
    for path in sorted(p for p in record.path.glob("*.json") if kind.names.fullmatch(p.name)):
        try:
            found.append(_read(kind, path, record))
        except (OSError, ValueError, RecursionError, BenchError) as error:  # BenchError: the record is damaged
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
            problems.append(Problem(path, f"{reason}; repeat {kind.command}, or delete it"))
    return found, problems


def stem_of(name: str, n: int, n_all: int) -> str:
    """The stem of a result's files: a part of the split says how many examples it has."""
    return name + (f"-n{n}" if n < n_all else "")


def own_count(record: Record, index: np.ndarray, flag: str) -> int:
    """How many of these examples the record itself counts as `correct`, `robust` or `certified`."""
    theirs = record.arrays("index", flag)
    return int(theirs[flag][np.isin(theirs["index"], index)].sum())


def _read(kind: Kind[B], path: Path, record: Record) -> B:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if fault := _fault(kind, data, record):
        raise ValueError(fault)
    if identity(data) != data["id"]:
        raise ValueError("its id is not the hash of its content: it was edited after it was written")
    raw = path.with_suffix(".npz").read_bytes()
    if hashlib.sha256(raw).hexdigest() != data["arrays"]:
        raise ValueError("its arrays are not those that were written (sha256 differs)")
    arrays = record_arrays.unpack(raw, sorted(kind.arrays), data["n"], kind.arrays)
    if fault := _contradiction(kind, data, arrays, record):
        raise ValueError(fault)
    return kind.made(data, arrays, path)


def _fault(kind: Kind[Any], data: Mapping[str, Any], record: Record) -> str | None:
    """What is missing, malformed, or speaks about another net."""
    if data.get("version") != kind.version:
        return f"version {data.get('version')!r}; this suite reads {kind.version}"
    for key, of in {**_KEYS, **kind.keys}.items():
        value = data.get(key)
        if not isinstance(value, of) or (isinstance(value, bool) and of is not bool):
            return f"{key} is missing or of the wrong type"
    for key, inner in {"trained_with": _TRAINED_WITH, **kind.inner}.items():
        if missing := [name for name in inner if name not in data[key]]:
            return f"{key}.{missing[0]} is missing"
    if sorted(data["counts"]) != sorted(kind.counts):
        return f"counts must name {', '.join(kind.counts)}"
    if data["record"] != record.id or data["weights_sha256"] != record.data["weights_sha256"]:
        return f"it speaks about record {data['record'][:8]}, not about {record.short} beside it"
    return None


def _contradiction(kind: Kind, data: Mapping[str, Any], arrays: Mapping[str, np.ndarray], record: Record) -> str | None:
    theirs = record.arrays("index")["index"]
    place = {int(at): row for row, at in enumerate(theirs)}
    rows = [place.get(int(at), -1) for at in arrays["index"]]
    if -1 in rows or len(set(rows)) != len(rows):
        return "its examples are not examples of the record, or one stands twice"
    return kind.contradiction(data, arrays, record, np.array(rows, dtype=np.intp))
