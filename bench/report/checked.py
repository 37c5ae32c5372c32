"""A record held against its own arrays, and against what attacks found out about it later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from .. import record
from ..reattack import Reattack
from ..record import Record

KINDS = ("correct", "robust", "certified")
STANDARD_STEPS, STANDARD_RESTARTS = 40, 2  # of the PGD every record is meant to carry


@dataclass(frozen=True)
class Checked:
    """A record with its flags in memory, or the reason why none of its numbers may be shown."""

    record: Record
    flags: dict[str, np.ndarray]
    broken: str | None
    later: tuple[Reattack, ...] = ()  # attacks on the whole split after the fact; what they broke is not robust

    @property
    def n_contradicted(self) -> int:
        """Class R certificates that an attack broke, the record's own or a later one."""
        own = int(self.record.data["evaluation"].get("n_contradicted", 0))
        return own + self.record.n_certified - self.count("certified")

    @property
    def is_standard(self) -> bool:
        """Attacked with at least the standard PGD, and by nothing that warned it may have been fooled.

        A robust accuracy that the certificates reach is exact, whatever attacked.
        """
        if self.count("robust") == self.count("certified"):
            return True
        attacks = [*self.record.data["evaluation"]["attacks"], *(a for x in self.later for a in x.data["attacks"])]
        strong = any(
            (a.get("steps") or 0) >= STANDARD_STEPS and (a.get("restarts") or 0) >= STANDARD_RESTARTS for a in attacks
        )
        return strong and not any(a.get("flags") for a in attacks)

    @property
    def met_autoattack(self) -> bool:
        """All its images that were still standing met AutoAttack, in the record or later."""
        own = any(attack["name"].startswith("aa_") for attack in self.record.data["evaluation"]["attacks"])
        return own or any(attack.suite == "autoattack" for attack in self.later)

    @cached_property
    def index(self) -> np.ndarray:
        """Which official image each example is, [n]; empty if the arrays cannot be read."""
        try:
            return self.record.arrays("index")["index"]
        except record.RecordError:
            return np.empty(0, np.int32)

    def count(self, kind: str) -> int:
        """Examples that are `correct`, `robust` or `certified`, after every attack there was."""
        return int(self.flags[kind].sum()) if self.later else int(getattr(self.record, f"n_{kind}"))

    def percent(self, kind: str) -> Fraction:
        """`count` of all examples."""
        return Fraction(100 * self.count(kind), self.record.n)

    def row(self) -> dict[str, Any]:
        """`Record.row` with the numbers that tables print: after later attacks too, which `later_attacks` names."""
        after = {kind: float(self.percent(kind)) for kind in ("robust", "certified")} if self.later else {}
        return {**self.record.row(), **after, "later_attacks": ", ".join(attack.suite for attack in self.later)}


def check(one: Record, later: Sequence[Reattack] = ()) -> Checked:
    """Read the three flags of every example and hold them against the record's counts and their order.

    later: attacks after the fact. Those on the whole split count; one on a sample would bias a share of the split.
    """
    try:
        flags = one.arrays(*KINDS)
    except record.RecordError as error:
        return Checked(one, {}, str(error))
    counts = {"correct": one.n_correct, "robust": one.n_robust, "certified": one.n_certified}
    for kind, count in counts.items():
        if int(flags[kind].sum()) != count:
            return Checked(one, {}, f"record {one.short}: {count} {kind} in the record, {int(flags[kind].sum())} flags")
    if (flags["certified"] & ~flags["robust"]).any() or (flags["robust"] & ~flags["correct"]).any():
        return Checked(one, {}, f"record {one.short}: certified => robust => correct is broken for some example")
    whole = tuple(attack for attack in later if not attack.is_subset)
    for attack in whole:
        robust = flags["robust"] & _survived(one, attack)
        flags = {**flags, "robust": robust, "certified": flags["certified"] & robust}  # class R may be contradicted
    return Checked(one, flags, None, whole)


def _survived(one: Record, attack: Reattack) -> np.ndarray:
    """Which examples a whole-split attack left standing, in the record's order."""
    where = np.argsort(attack.index)
    at = where[np.searchsorted(attack.index, one.arrays("index")["index"], sorter=where)]
    return np.asarray(attack.arrays["robust"][at].astype(bool))


def suite_of(members: Sequence[Checked]) -> str:
    """`pgd 40x2 + pgd_p30 20x1 + later autoattack`: name, steps x restarts; later attacks are those on the whole split.

    Of several seeds the first speaks for what was in the records; a later suite says which share of them it met.
    """
    parts = []
    for attack in members[0].record.data["evaluation"]["attacks"]:
        size = "\u00d7".join(str(attack[k]) for k in ("steps", "restarts") if attack.get(k) is not None)
        parts.append(f"{attack['name']} {size}".strip())
    later = [suite for m in members for suite in {attack.suite for attack in m.later}]
    for suite in sorted(set(later)):
        some = "" if later.count(suite) == len(members) else f" ({later.count(suite)} of {len(members)} seeds)"
        parts.append(f"later {suite}{some}")
    return " + ".join(parts) or "no attack"
