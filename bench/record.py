"""Records: what a finished run leaves behind, one folder with `record.json` and `arrays.npz`, immutable, torch-free.

The JSON is canonical (sorted keys, indent 1, no NaN) and carries its own hash as `id`, so an edited record is found by
reading it. The arrays hold one value per test example; every count in the JSON is checked against them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import record_arrays, record_check
from .eps import Eps
from .errors import BenchError
from .files import replace_folder

SCHEMA = 1
FILE, ARRAYS = "record.json", "arrays.npz"
_LARGEST = 64 << 20  # bytes of JSON; the longest published schedule with all its scalars takes under 2 MB
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}  # version -> function to the next version
_ID_LINE = re.compile(rb'\n "id": "([0-9a-f]{64})",')  # top level only: deeper keys are indented further


_eps = cache(Eps)  # tables ask for it ten times per record


class RecordError(BenchError):
    """A record that cannot be written or read; names the record and the field."""


@dataclass(frozen=True)
class Problem:
    """A record on disk that cannot be used: where it lies and why, in one line."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Record:
    """A validated record. `data` is the JSON as a dict, `path` its folder; arrays are read when asked for."""

    data: Mapping[str, Any]
    path: Path

    def arrays(self, *names: str) -> dict[str, np.ndarray]:
        """The per-example arrays, [n] each; only `names`, if given.

        Raises:
            RecordError: the file is missing, altered or lacks a field.
        """
        spec = self.data["arrays"]
        try:
            raw = (self.path / ARRAYS).read_bytes()
            if hashlib.sha256(raw).hexdigest() != spec["sha256"]:
                raise ValueError("its bytes are not those that were written (sha256 differs)")
            return record_arrays.unpack(raw, list(names) or sorted(spec["fields"]), self.n)
        except (OSError, ValueError) as error:
            raise RecordError(f"record {self.short}: {ARRAYS}: {_reason(error)}; repeat the run") from error

    def check_arrays(self) -> str | None:
        """Why arrays and counts contradict each other, or None: certified => robust => correct, per example."""
        try:
            return record_arrays.check(self.data["evaluation"], self.arrays())
        except RecordError as error:
            return str(error)

    @property
    def id(self) -> str:
        """sha256 of the canonical JSON without the id itself, 64 hex digits."""
        return str(self.data["id"])

    @property
    def short(self) -> str:
        """The first 8 hex digits of the id: what messages print."""
        return self.id[:8]

    @property
    def cell_id(self) -> str:
        return str(self.data["cell"]["id"])

    @property
    def method(self) -> str:
        return str(self.data["cell"]["method"])

    @property
    def title(self) -> str:
        """The method as tables print it."""
        return str(self.data["method"]["title"])

    @property
    def dataset(self) -> str:
        return str(self.data["cell"]["dataset"])

    @property
    def eps(self) -> Eps:
        return _eps(self.data["cell"]["eps"])

    @property
    def norm(self) -> str:
        return str(self.data["method"]["norm"])

    @property
    def preset(self) -> str:
        return str(self.data["cell"]["preset"])

    @property
    def seed(self) -> int:
        return int(self.data["cell"]["seed"])

    @property
    def split(self) -> str:
        return str(self.data["cell"]["split"])

    @property
    def n(self) -> int:
        return int(self.data["evaluation"]["n"])

    @property
    def n_correct(self) -> int:
        return int(self.data["evaluation"]["n_correct"])

    @property
    def n_robust(self) -> int:
        return int(self.data["evaluation"]["n_robust"])

    @property
    def n_certified(self) -> int:
        return int(self.data["evaluation"]["n_certified"])

    @property
    def clean(self) -> float:
        """Percent of the n examples."""
        return 100.0 * self.n_correct / self.n

    @property
    def robust(self) -> float:
        """Percent of the n examples that survived every listed attack."""
        return 100.0 * self.n_robust / self.n

    @property
    def certified(self) -> float:
        """Percent of the n examples certified at eps."""
        return 100.0 * self.n_certified / self.n

    @property
    def headline(self) -> Mapping[str, Any]:
        """The certificate that counts: {"name", "cls", ...}."""
        certificates = self.data["evaluation"]["certificates"]
        return next((c for c in certificates if c["headline"]), {"name": None, "cls": None})

    @property
    def certificate_class(self) -> str | None:
        """D, F32, R, or None for a method without a certificate."""
        return self.headline["cls"]

    @property
    def train_s(self) -> float:
        return float(self.data["training"]["train_s"])

    @property
    def s_per_epoch(self) -> float | None:
        """Mean over the run: epochs of one run may differ tenfold (bounds only after a warm-up, p at infinity)."""
        epochs = int(self.data["training"]["epochs"])
        return self.train_s / epochs if epochs else None

    @property
    def device(self) -> str:
        """What trained it and timed its costs; all of them where a run went on elsewhere."""
        return self.machine[0]

    @property
    def machine(self) -> tuple[str, int]:
        """Device and threads: only times of one machine may be compared, and those of a run on several with none."""
        last = self.data["environment"]
        ran = [*self.data["training"].get("machines", []), last, self.data["cost"].get("machine", last)]
        names = list(dict.fromkeys(str(one["device"]) for one in ran))
        counts = sorted({int(one["threads"]) for one in ran})
        also = f" (also {counts[0]} thread{'s' * (counts[0] > 1)})" if len(counts) > 1 else ""
        return " + ".join(names) + also, counts[-1]

    @property
    def is_subset(self) -> bool:
        """Not the whole official test split: a few classes, or fewer examples."""
        return self.data["data"]["subset"] is not None or self.n < self.data["data"]["n_test"]

    @property
    def is_dirty(self) -> bool:
        """The working tree had uncommitted changes, when it was evaluated or while it was trained."""
        return any(code["dirty"] for code in (self.data["code"], *self.trained_by))

    @property
    def trained_by(self) -> list[dict[str, Any]]:
        """Every code that trained it, in order; empty for records from before this was kept."""
        return list(self.data["training"].get("code", []))

    @property
    def is_modified(self) -> bool:
        """Some field of the recipe was overridden."""
        return bool(self.data["recipe"]["modified"]) or bool(self.data["cell"]["overrides"])

    def row(self) -> dict[str, Any]:
        """The flat object of `bench list runs --json`."""
        keys = ("id", "method", "dataset", "preset", "seed", "split", "n", "clean", "robust", "certified")
        more = ("certificate_class", "train_s", "device")
        flat = {**{k: getattr(self, k) for k in keys}, "eps": str(self.eps), **{k: getattr(self, k) for k in more}}
        changed = self.data["cell"]["overrides"]
        return {**flat, "overrides": " ".join(f"{k}={changed[k]}" for k in sorted(changed))}


# --- writing ----------------------------------------------------------------------------------------------------------


def folder_name(cell: Mapping[str, Any]) -> str:
    """`<dataset>/<method>-<dataset>-<eps>-<preset>-s<seed>-<cell id>`, below the results folder."""
    eps = str(cell["eps"]).replace("/", "_")
    name = f"{cell['method']}-{cell['dataset']}-{eps}-{cell['preset']}-s{cell['seed']}-{cell['id']}"
    return f"{cell['dataset']}/{name}"


def write(results_dir: Path, payload: Mapping[str, Any], arrays: Mapping[str, Any]) -> Record:
    """Validate a finished run and store it, whole or not at all; an older record of the same cell is replaced.

    Args:
        results_dir: created if missing.
        payload: every key of the schema but `schema`, `id` and `arrays`, which are filled in here.
        arrays: name -> [n]; see `record_arrays.DTYPES`, plus `bound_<certificate>` and `survived_<attack>`.

    Raises:
        RecordError: a field is missing, malformed or private (an absolute path, a host or user name), an array
            contradicts a count, some example is certified but not robust, or the folder cannot be written.
    """
    name = _name_of(payload)
    try:
        data = record_check.plain({**payload, "schema": SCHEMA})
        packed, fields = record_arrays.pack(arrays)
    except ValueError as error:
        raise RecordError(f"record {name}: {error}") from error
    data["arrays"] = {"file": ARRAYS, "sha256": hashlib.sha256(packed).hexdigest(), "fields": fields}
    data["id"] = ""
    data["id"] = identity(data)
    problem = record_check.validate(data) or record_check.private(data)
    if problem is None:
        problem = record_arrays.check(data["evaluation"], record_arrays.unpack(packed, sorted(fields), None))
    if problem:
        raise RecordError(f"record {name}: {problem}")
    target = results_dir / folder_name(data["cell"])
    try:
        replace_folder(target, {ARRAYS: packed, FILE: canonical(data)})
    except OSError as error:
        raise RecordError(f"cannot write {target}: {_reason(error)}; choose another folder with --results") from error
    return Record(data, target)


def canonical(data: Mapping[str, Any]) -> bytes:
    """The one byte form of a record: sorted keys, indent 1, UTF-8, no NaN, one newline at the end."""
    text = json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def identity(data: Mapping[str, Any]) -> str:
    """The id: sha256 of the canonical JSON without the id."""
    return hashlib.sha256(canonical({k: v for k, v in data.items() if k != "id"})).hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Record:
    """Read and validate one record; `path` is its folder or its record.json. Older schemas are migrated.

    Raises:
        RecordError: missing, damaged, edited, or written by a newer version.
    """
    path = Path(path)
    file = path if path.name == FILE else path / FILE
    try:
        return _read(file)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"record {file}: {_reason(error)}") from error


def scan(results_dir: Path) -> tuple[list[Record], list[Problem]]:
    """Every record below a folder, sorted by path; one that cannot be read is a Problem, never an exception."""
    records: list[Record] = []
    problems: list[Problem] = []
    for file in _files(Path(results_dir)):
        try:
            records.append(_read(file))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(Problem(file, _reason(error)))
    return records, problems


def find(results_dir: Path, selector: str) -> Record:
    """The one record that a record id, a cell id (both may be cut short), a folder name or a path selects.

    Raises:
        RecordError: none, or more than one.
    """
    path = Path(selector)
    if (path / FILE).is_file() or path.name == FILE:
        return read(path)
    records, problems = scan(results_dir)
    exact = [r for r in records if r.path.name == selector]
    hits = exact or [r for r in records if selector and (r.id.startswith(selector) or r.cell_id.startswith(selector))]
    if len(hits) == 1:
        return hits[0]
    if hits:
        names = ", ".join(f"{r.short} ({r.path.name})" for r in hits[:4])
        raise RecordError(f'"{selector}" selects {len(hits)} records: {names}; write more digits')
    broken = f" and {len(problems)} that cannot be read" if problems else ""
    raise RecordError(
        f'no record "{selector}" in {results_dir}; it holds {len(records)}{broken}, `bench list runs` shows them'
    )


def _files(results_dir: Path) -> Iterator[Path]:
    """Every record.json below a folder, sorted; hidden folders are unfinished writes."""
    for folder, subfolders, names in os.walk(results_dir):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        if FILE in names:
            yield Path(folder, FILE)


def _read(file: Path) -> Record:
    """Parse, check the hash, migrate, check the schema. Raises ValueError or OSError with the reason."""
    size = file.stat().st_size
    if size > _LARGEST:
        raise ValueError(f"{size} bytes; a record is smaller than {_LARGEST}")
    raw = file.read_bytes()
    data = json.loads(
        raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_whole, parse_float=_real
    )
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    _check_identity(raw, data)
    data = migrate(data)
    problem = record_check.first_error(record_check.schema(), data) or record_check.semantics(data)
    if problem:
        raise ValueError(problem)
    return Record(data, file.parent)


def _check_identity(raw: bytes, data: dict[str, Any]) -> None:
    # The file is canonical, so its hash is that of its own bytes without the id line: no second serialisation.
    line = _ID_LINE.search(raw)
    if line and hashlib.sha256(raw[: line.start()] + raw[line.end() :]).hexdigest().encode() == line.group(1):
        return
    if data.get("id") != identity(data):  # other white space, e.g. line ends changed by a checkout, is no edit
        raise ValueError("its id is not the hash of its content: it was edited after it was written")


def migrate(data: dict[str, Any]) -> dict[str, Any]:
    """Bring a record of an older schema to the current one, step by step; the id stays that of the file.

    Raises:
        ValueError: written by a newer version, or no version at all.
    """
    version = data.get("schema")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"schema = {version!r} is no schema version; is this a record of this suite?")
    if version > SCHEMA:
        raise ValueError(f"schema {version} is newer than this suite reads ({SCHEMA}): pip install -U certbench")
    while version < SCHEMA:
        data = _MIGRATIONS[version](data)
        version += 1
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not a number JSON knows")


def _whole(text: str) -> int:
    if len(text) > 19:  # what follows computes with floats and 64-bit integers
        raise ValueError(f"{text[:12]}... ({len(text)} digits) is too large a number for a record")
    return int(text)


def _real(text: str) -> float:
    if abs(value := float(text)) == float("inf"):
        raise ValueError(f"{text[:24]} is too large a number for a record")
    return value


def _name_of(data: Mapping[str, Any]) -> str:
    cell = data.get("cell")
    return str(cell["id"]) if isinstance(cell, Mapping) and "id" in cell else "without cell.id"


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} in line {error.lineno}; the file was cut or damaged"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text; the file was damaged"
    if isinstance(error, RecursionError):
        return "nested too deeply to be a record"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return " ".join(str(error).split())
