"""`bench compare`: two runs on the same images, paired; says what differs by more than chance, and refuses the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .. import reattack
from ..record import Record, RecordError
from . import fmt, stats, styles
from .cells import ACCURACIES, KIND_OF
from .checked import Checked, check
from .detail import changes_of

ALPHA = 0.05
_COSTS = (("s per epoch", "s_per_epoch"), ("train s", "train_s"), ("ms per certificate", "certify_ms"))


@dataclass(frozen=True)
class Line:
    """One metric: values, B minus A, discordant counts, exact McNemar p, verdict about B."""

    metric: str
    a: float | None
    b: float | None
    delta: float | None  # points for accuracies, the ratio B / A for costs
    only_a: int | None
    only_b: int | None
    p: float | None
    verdict: str
    text: tuple[str, str, str]  # a, b and delta as printed


@dataclass(frozen=True)
class Comparison:
    """Everything `bench compare A B` prints or returns as JSON."""

    one: Checked
    two: Checked
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def a(self) -> Record:
        """The first record, as it was written."""
        return self.one.record

    @property
    def b(self) -> Record:
        """The second one."""
        return self.two.record

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        keep = [{k: v for k, v in asdict(line).items() if k != "text"} for line in self.lines]
        return {"a": self.one.row(), "b": self.two.row(), "metrics": keep, "notes": list(self.notes)}

    def text(self) -> list[str]:
        """Aligned lines for a terminal."""
        head = ("metric", f"A {self.a.method}", f"B {self.b.method}", "delta", "only A / only B", "p", "verdict")
        table = [head]
        for line in self.lines:
            pair = "" if line.only_a is None else f"{line.only_a} / {line.only_b}"
            p = "" if line.p is None else fmt.p_value(line.p)
            table.append((line.metric, *line.text, pair, p, line.verdict))
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        out = [f"A {_describe(self.a)}", f"B {_describe(self.b)}", ""]
        for row in table:
            cells = [t.rjust(w) if 0 < i < 6 else t.ljust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))]
            out.append("  ".join(cells).rstrip())
        return [*out, "", *self.notes]

    def exit_code(self, fail_if_worse: float | None = None) -> int:
        """1 if certified accuracy of B is lower by more than `fail_if_worse` points, and not by chance."""
        line = next(item for item in self.lines if item.metric == "certified")
        if fail_if_worse is None:
            return 0
        if line.delta is None or line.p is None:
            return 1  # a gate that cannot compare does not open
        return 1 if -line.delta > fail_if_worse and line.p < ALPHA else 0


def compare(a: Record, b: Record) -> Comparison:
    """Compare two records.

    Raises:
        RecordError: arrays of a record are missing, altered, or contradict its counts.
    """
    one, two = _checked(a), _checked(b)
    lines = tuple(_accuracy(one, two, key) for key in ACCURACIES) + tuple(_cost(a, b, *c) for c in _COSTS)
    notes = ["B against A: delta in points for accuracies, B / A for costs; p: exact McNemar on the same images."]
    if one.later or two.later:
        notes.append("Robust: after later attacks on the whole split (`bench attack`) too.")
    if a.id == b.id:
        notes.append("A and B are the same record.")
    elif any(line.p is not None for line in lines):
        notes.append("One run on each side: this speaks of these two runs only, not of the methods.")
    return Comparison(one, two, lines, tuple(notes))


def obstacle(one: Checked, two: Checked, key: str) -> str | None:
    """Why two numbers may not be compared (trust.md 2.5), or None."""
    a, b = one.record, two.record
    for name, mine, theirs in (
        ("data", a.dataset, b.dataset),
        ("data checksum", a.data["data"]["checksum"], b.data["data"]["checksum"]),
        ("split", a.split, b.split),
        ("n", a.n, b.n),
        ("norm", a.norm, b.norm),
    ):
        if mine != theirs:
            return f"other {name}" if len(str(mine)) > 12 else f"{name} {mine} and {theirs}"
    if key != "clean" and a.eps != b.eps:
        return f"eps {a.eps} and {b.eps}"
    if a.preset != b.preset:
        return f"preset {a.preset} and {b.preset}"
    if key == "robust" and suite(one) != suite(two):
        return "other attacks"
    if key == "certified" and (a.certificate_class is None or b.certificate_class is None):
        return "no certificate"
    return None


def suite(r: Checked) -> list[tuple[Any, ...]]:
    """What must be equal for two robust accuracies to mean the same; surrogates belong to the method and may differ."""
    keys = ("name", "steps", "restarts", "step", "loss")
    attacks = [*r.record.data["evaluation"]["attacks"], *(x for later in r.later for x in later.data["attacks"])]
    return [tuple(x.get(k) for k in keys) for x in attacks if not x.get("surrogate")]


def _checked(r: Record) -> Checked:
    """A record after every later attack on its whole split: the numbers that reports print."""
    checked = check(r, reattack.of_record(r)[0])
    if checked.broken:
        raise RecordError(checked.broken)
    return checked


def _accuracy(a: Checked, b: Checked, key: str) -> Line:
    kind = KIND_OF[key]
    values = [c.percent(kind) for c in (a, b)]
    places = fmt.decimals(min(a.record.n, b.record.n))
    delta = values[1] - values[0]
    printed = (fmt.fixed(values[0], places), fmt.fixed(values[1], places), fmt.points(delta, places))
    one, two = float(values[0]), float(values[1])
    reason = obstacle(a, b, key)
    if reason:
        return Line(key, one, two, None, None, None, None, f"not comparable: {reason}", (*printed[:2], ""))
    flags = [_flags(c, kind) for c in (a, b)]
    if not np.array_equal(flags[0][0], flags[1][0]):
        text = (*printed[:2], "")
        return Line(key, one, two, None, None, None, None, "not comparable: other images", text)
    only_a = int((flags[0][1] & ~flags[1][1]).sum())
    only_b = int((flags[1][1] & ~flags[0][1]).sum())
    p = stats.mcnemar(only_a, only_b)
    verdict = "same within noise" if p >= ALPHA else "better" if only_b > only_a else "worse"
    classes = [c.record.certificate_class for c in (a, b)]
    if key == "certified" and classes[0] != classes[1]:
        verdict += f" (class {classes[0]} and {classes[1]})"
    return Line(key, one, two, float(delta), only_a, only_b, p, verdict, printed)


def _flags(c: Checked, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Index and flags of every example, by index."""
    order = np.argsort(c.index, kind="stable")
    return c.index[order], c.flags[kind][order]


def _cost(a: Record, b: Record, name: str, key: str) -> Line:
    one, two = (r.s_per_epoch if key == "s_per_epoch" else r.data["cost"].get(key) for r in (a, b))
    text = tuple("" if v is None else fmt.significant(v, 3) for v in (one, two))
    reason = _cost_obstacle(a, b)
    if one is None or two is None:
        reason = "not measured"
    if reason or not one or two is None:
        return Line(
            name, one, two, None, None, None, None, f"not comparable: {reason or 'zero'}", (text[0], text[1], "")
        )
    ratio = two / one
    verdict = "same within 10 %" if 0.9 <= ratio <= 1.1 else "faster" if ratio < 1 else "slower"
    return Line(
        name, one, two, ratio, None, None, None, verdict, (text[0], text[1], f"\u00d7{fmt.significant(ratio, 3)}")
    )


def _cost_obstacle(a: Record, b: Record) -> str | None:
    if a.dataset != b.dataset:
        return "other data"
    for key in ("device", "threads"):
        if a.data["environment"][key] != b.data["environment"][key]:
            return f"other {key}"
    return None


def _describe(r: Record) -> str:
    seed = f"seed {r.seed}"
    where = f"{styles.dataset_title(r.dataset)}, eps {r.eps}, preset {r.preset}, {seed}, n = {r.n}"
    changed = "".join(f", {change}" for change in changes_of(r))
    return fmt.printable(f"{r.short}  {r.title}; {where}{changed}; {r.headline['name']} (class {r.certificate_class})")


def folders(a: Sequence[Record], b: Sequence[Record]) -> list[tuple[str, Comparison | None]]:
    """Two results folders, cell by cell: (what, comparison), None where a side is missing; `what` says new or gone."""

    def keyed(records: Sequence[Record]) -> dict[tuple[Any, ...], Record]:
        found = {}
        for r in records:
            changed = tuple(sorted((k, str(v)) for k, v in r.data["cell"]["overrides"].items()))
            found[(r.dataset, r.eps.fraction, r.method, r.preset, r.seed, r.split, changed)] = r
        return found

    one, two = keyed(a), keyed(b)
    lines: list[tuple[str, Comparison | None]] = []
    for key in sorted(one.keys() | two.keys(), key=str):
        r = one.get(key) or two[key]
        name = " ".join([f"{r.method} {r.dataset} {r.eps} {r.preset} seed {r.seed}", *changes_of(r)])
        if key in one and key in two:
            lines.append((name, compare(one[key], two[key])))
        else:
            lines.append((f"{name}: {'gone' if key in one else 'new'}", None))
    return lines
