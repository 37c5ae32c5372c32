"""A record held against its own arrays, and against what attacks found out about it later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import record
from ..reattack import Reattack
from ..record import Record

KINDS = ("correct", "robust", "certified")


@dataclass(frozen=True)
class Checked:
    """A record with its flags in memory, or the reason why none of its numbers may be shown."""

    record: Record
    flags: dict[str, np.ndarray]
    broken: str | None
    later: tuple[Reattack, ...] = ()  # attacks on the whole split after the fact; what they broke is not robust

    def count(self, kind: str) -> int:
        """Examples that are `correct`, `robust` or `certified`, after every attack there was."""
        return int(self.flags[kind].sum()) if self.later else int(getattr(self.record, f"n_{kind}"))


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
