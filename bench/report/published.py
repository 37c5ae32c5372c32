"""Published numbers: one TOML file per paper in results/published, every cell with its source.

    schema = 1
    [source]    citekey, paper, venue, year, id (arXiv or other), repo
    [[cell]]    dataset, eps (exact string), norm (linf | l2), method, tag (paper | repo | log | secondary), where;
                optional: eps_used (if the paper rounded), label, architecture, clean, robust, certified (percent),
                attack, certifier, flops ("82.7M"), seconds_per_epoch, n_test, note
    [[gain]]    differences without absolute numbers; kept, never tabulated

An absent key means: not reported, or not verified. Nothing here is remembered; `where` says where each number stands.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import BenchError
from . import toml

TAGS = ("paper", "repo", "log", "secondary")  # best first
_NUMBERS = ("clean", "robust", "certified", "seconds_per_epoch")
_SOURCE_KEYS = {"citekey", "paper", "venue", "year", "id", "repo"}
_NEEDED = {"dataset", "eps", "norm", "method", "tag", "where"}
_CELL_KEYS = _NEEDED | {
    "eps_used", "label", "architecture", "clean", "robust", "certified", "attack", "certifier", "flops",
    "seconds_per_epoch", "n_test", "note",
}  # fmt: skip
_GAIN_KEYS = {"dataset", "norm", "clean_gain", "certified_gain", "tag", "where", "note"}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_VERIFIER = re.compile(r"\b(MIP|MILP|BaB|complete)\b")
_AS_GOOD = Decimal("0.05")  # points of certified accuracy
_FLOPS = re.compile(r"(\d+(?:\.\d+)?)([MG])")


class PublishedError(BenchError):
    """A published number that breaks the schema; names file and cell."""


@dataclass(frozen=True)
class Source:
    """A paper."""

    citekey: str
    paper: str
    venue: str
    year: int
    id: str
    repo: str

    @property
    def url(self) -> str | None:
        """Where the paper is read, if it has an arXiv number."""
        found = _ARXIV.search(self.id)
        return f"https://arxiv.org/abs/{found.group(1)}" if found else None

    @property
    def short(self) -> str:
        """`ICML 2021`."""
        return self.venue if re.search(r"\d{4}", self.venue) else f"{self.venue} {self.year}"


@dataclass(frozen=True)
class Cell:
    """One published result. Percentages keep the digits of the file (Decimal), None: not reported."""

    source: Source
    number: int  # position in its file, from 1
    dataset: str
    eps: str
    norm: str
    method: str
    tag: str
    where: str
    eps_used: str | None = None
    label: str | None = None
    architecture: str | None = None
    clean: Decimal | None = None
    robust: Decimal | None = None
    certified: Decimal | None = None
    attack: str | None = None
    certifier: str | None = None
    flops: str | None = None
    seconds_per_epoch: Decimal | None = None
    n_test: int | None = None
    note: str | None = None

    @cached_property
    def key(self) -> str:
        """`zhang2021linf#5`: how provenance points here."""
        return f"{self.source.citekey}#{self.number}"

    @cached_property
    def eps_fraction(self) -> Fraction:
        """The exact radius of the setting."""
        return Fraction(self.eps)

    @property
    def has_accuracy(self) -> bool:
        """Some accuracy, not only a time."""
        return self.clean is not None or self.robust is not None or self.certified is not None

    @property
    def is_verified(self) -> bool:
        """Certified by a complete verifier or a solver, which prove more of the same net than bounds do."""
        return _VERIFIER.search(self.certifier or "") is not None

    @property
    def ops(self) -> int | None:
        """`flops` as a number."""
        found = _FLOPS.fullmatch(self.flops or "")
        return int(Decimal(found[1]) * {"M": 10**6, "G": 10**9}[found[2]]) if found else None


def folder() -> Path:
    """Where the published numbers lie: the checkout, else what the installed wheel brought along.

    Raises:
        PublishedError: neither is there.
    """
    checkout = Path(__file__).resolve().parents[2] / "results" / "published"
    if checkout.is_dir():
        return checkout
    try:
        files = importlib.metadata.files("certbench") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-2:-1] == ("published",) and file.suffix == ".toml":
            return Path(str(file.locate())).resolve().parent
    raise PublishedError("no published numbers found: reinstall certbench, or run in a checkout with results/published")


def load(published_dir: Path | None = None) -> list[Cell]:
    """Every cell of every file, files by name, cells in order.

    Raises:
        PublishedError: a file or cell breaks the schema.
    """
    where = folder() if published_dir is None else Path(published_dir)
    return [cell for file in sorted(where.glob("*.toml")) for cell in read(file)]


def read(file: Path) -> list[Cell]:
    """The cells of one file, checked."""
    try:
        data = toml.read(file, parse_float=Decimal)
    except (OSError, ValueError) as error:
        raise PublishedError(f"{file.name}: {' '.join(str(error).split())}") from error
    try:
        if data.get("schema") != 1:
            raise ValueError(f"schema = {data.get('schema')!r}; this suite reads 1")
        _known("top level", data, {"schema", "source", "cell", "gain"}, {"source"})
        _known("[source]", data["source"], _SOURCE_KEYS, _SOURCE_KEYS)
        source = Source(**data["source"])
        if source.citekey != file.stem:
            raise ValueError(f"citekey = {source.citekey!r} must equal the file's name")
        for gain in data.get("gain", []):
            _known("[[gain]]", gain, _GAIN_KEYS, {"tag", "where"})
        return [_cell(source, number, entry) for number, entry in enumerate(data.get("cell", []), 1)]
    except (ValueError, TypeError) as error:
        raise PublishedError(f"{file.name}: {error}") from error


def headline(cells: Sequence[Cell], own: str | None = None) -> Cell | None:
    """The one cell of a setting and method to print; None if no cell has an accuracy.

    A certified accuracy on the whole test split if there is one; what the paper `own` or its authors give, also where a
    later source quotes it, before what others report of the method; bounds before complete verifiers, which certify
    more of the same net; results before logs of single runs; of these the most certified, but the fuller triple if it
    is as good to a twentieth of a point.
    """
    usable = [cell for cell in cells if cell.has_accuracy]
    results = {cell.source.citekey for cell in usable if cell.tag in ("paper", "repo")}

    def rank(cell: Cell) -> tuple[bool, ...]:
        small = (cell.n_test or 10_000) < 1000
        log = cell.tag == "log" and cell.source.citekey in results
        return cell.certified is None, small, cell.source.citekey != own, cell.is_verified, log

    if not usable:
        return None
    best = min(usable, key=lambda cell: (rank(cell), fullest(cell)))
    as_good = [c for c in usable if rank(c) == rank(best) and (best.certified or 0) - (c.certified or 0) <= _AS_GOOD]
    return min(as_good, key=lambda cell: (_missing(cell), fullest(cell)))


def fullest(cell: Cell) -> tuple[Any, ...]:
    """Sort key: the most certified, then the fullest triple, then the best tag."""
    return -(cell.certified or 0), _missing(cell), TAGS.index(cell.tag), cell.key


def _missing(cell: Cell) -> int:
    return sum(value is None for value in (cell.clean, cell.robust, cell.certified))


def _cell(source: Source, number: int, entry: dict[str, Any]) -> Cell:
    where = f"cell {number} ({entry.get('dataset')} {entry.get('eps')} {entry.get('method')})"
    _known(where, entry, _CELL_KEYS, _NEEDED)
    values = dict(entry)
    for key in sorted(set(entry) - set(_NUMBERS) - {"n_test"}):
        if not isinstance(entry[key], str):
            raise ValueError(f"{where}: {key} = {entry[key]!r} must be a word in quotes")
    for key in _NUMBERS:
        if key in values:
            value = values[key]
            if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or not Decimal(value).is_finite():
                raise ValueError(f"{where}: {key} = {value!r} is no number")
            values[key] = Decimal(value)
            if value < 0 or (key != "seconds_per_epoch" and value > 100):
                raise ValueError(f"{where}: {key} = {value} lies outside [0, 100] percent")
    cell = Cell(source=source, number=number, **values)
    if cell.tag not in TAGS:
        raise ValueError(f"{where}: tag = {cell.tag!r} is not one of {', '.join(TAGS)}")
    if cell.norm not in ("linf", "l2"):
        raise ValueError(f"{where}: norm = {cell.norm!r} is not linf or l2")
    if not cell.where.strip():
        raise ValueError(f"{where}: `where` is empty; a number without a source is not printed")
    for key in ("eps", "eps_used"):
        _radius(where, key, getattr(cell, key))
    if cell.flops is not None and cell.ops is None:
        raise ValueError(f"{where}: flops = {cell.flops!r} is not written like 82.7M or 5.22G")
    if not cell.has_accuracy and cell.seconds_per_epoch is None:
        raise ValueError(f"{where}: neither an accuracy nor a time")
    order = [v for v in (cell.certified, cell.robust, cell.clean) if v is not None]
    if order != sorted(order):
        raise ValueError(f"{where}: certified <= robust <= clean does not hold: {', '.join(map(str, order))}")
    return cell


def _known(where: str, entry: dict[str, Any], known: set[str], needed: set[str]) -> None:
    if missing := sorted(needed - set(entry)):
        raise ValueError(f"{where}: {missing[0]} is missing")
    if extra := sorted(set(entry) - known):
        raise ValueError(f"{where}: {extra[0]} is no key of the schema")


def _radius(where: str, key: str, text: str | None) -> None:
    # Not `Eps`: a paper may really have used 0.007, which Eps takes for a rounded 2/255.
    try:
        ok = text is None or 0 < Fraction(text) <= 1
    except (ValueError, ZeroDivisionError, TypeError):
        ok = False
    if not ok:
        raise ValueError(f"{where}: {key} = {text!r} is no radius in (0, 1]")
