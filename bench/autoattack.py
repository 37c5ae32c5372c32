"""AutoAttack, standard version, as four attacks of the cascade: APGD-CE, APGD-T, FAB-T and Square.

The code is the library's (pyautoattack, an optional extra; Croce and Hein, arXiv 2003.01690); its verdicts are not
used. What it returns is clamped into the exact ball and judged by the deployed net, as with every other attack. Its
warnings are kept: a flag in the record says that the robust accuracy may be too high. Its random numbers depend on the
batch an example comes in, so another chunk size may break other examples; every break is a break all the same.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .attack import Ball, Outcome, judged, weights_frozen
from .errors import BenchError
from .seeding import seed_of

LIBRARY = "pyautoattack"
PARTS = {"aa_apgd_ce": "apgd-ce", "aa_apgd_t": "apgd-t", "aa_fab_t": "fab-t", "aa_square": "square"}
TARGETS, STEPS, QUERIES = 9, 100, 5000  # of the standard version
SQUARE_GAIN = 0.002  # share of all examples that Square may add before the library doubts the other three
_FLAGS = {  # the library's warning -> our name for it
    "randomized defense": "randomized",
    "probability distribution": "probabilities",
    "zero gradient": "zero_gradient",
    "dynamic defense": "dynamic",
    "not possible to use": "few_classes",
    "more target classes": "few_classes",
}
_COUNT = re.compile(r"there are (\d+) points")


def require() -> str:
    """The library's name and version.

    Raises:
        BenchError: it is not installed; one line with the mend.
    """
    try:
        import pyautoattack  # noqa: F401
    except ImportError as error:
        raise BenchError(
            f"AutoAttack is not installed ({error}): pip install pyautoattack==0.2.0, or leave --autoattack out"
        ) from error
    return f"{LIBRARY} {importlib.metadata.version(LIBRARY)}"


@dataclass
class Part:
    """One of the four. `flags`: warnings so far, name -> how often (zero_gradient: of how many starting points)."""

    name: str
    classes: int
    library: str
    flags: dict[str, int] = field(default_factory=dict)

    def settings(self, seed: int) -> dict[str, Any]:
        """Its line in the record."""
        targets = "" if self.name in ("aa_apgd_ce", "aa_square") else f", {min(TARGETS, self.classes - 1)} targets"
        loss = {"aa_apgd_ce": "cross-entropy", "aa_apgd_t": "DLR", "aa_square": "margin"}.get(self.name)
        return {
            "name": self.name,
            "steps": QUERIES if self.name == "aa_square" else STEPS,
            "restarts": 1,
            "step": f"AutoAttack standard{targets}",
            "loss": loss,
            "surrogate": None,
            "seed": seed,
            "library": self.library,
            "flags": dict(sorted(self.flags.items())),
        }

    def against(self, net: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, index: Tensor, seed: int) -> Outcome:
        """Attack a batch; arguments and result as of `attack.run`, the reach must be one for all.

        Raises:
            BenchError: the net answers differently to the same images.
        """
        from pyautoattack import AutoAttack

        nothing = torch.zeros((), device=x.device)
        if not len(x) or not bool((ball.upper > ball.lower).any()):
            return Outcome(torch.zeros(len(x), dtype=torch.bool, device=x.device), x.clone(), nothing)
        start = seed_of(seed, "attack", self.name) % 2**31
        with _heard() as said, _tracing_kept(), weights_frozen(net):
            made = AutoAttack(net, norm="Linf", eps=float(ball.reach), version="standard", device=x.device, seed=start)
            made.attacks_to_run = [PARTS[self.name]]
            made.verbose = False
            made.apgd_targeted.n_target_classes = made.fab.n_target_classes = min(TARGETS, self.classes - 1)
            found, _ = made.run_standard_evaluation(x, y, batch_size=len(x))
        self._note(said)
        found = torch.where(torch.isnan(found), x, found)
        points = torch.minimum(torch.maximum(found, ball.lower), ball.upper)
        broken = judged(net, points, y, (points != x).flatten(1).any(dim=1))
        points = torch.where(broken.reshape(-1, 1, 1, 1), points, x)
        return Outcome(broken, points, nothing)

    def concluded(self, n_broken: int, n: int) -> None:
        """Told at the end what it broke of n examples: a Square that gains much makes the other three doubtful."""
        if self.name == "aa_square" and n_broken > SQUARE_GAIN * n:
            self.flags["square_gain"] = n_broken

    def _note(self, said: list[str]) -> None:
        for text in said:
            flag = next((name for words, name in _FLAGS.items() if words in text), "other")
            if flag == "randomized":
                raise BenchError(
                    "AutoAttack: the net gives other logits each time it is asked (a randomized defence), which its "
                    "standard version and a certificate both exclude"
                )
            counted = _COUNT.search(text)
            self.flags[flag] = self.flags.get(flag, 0) + (int(counted[1]) if counted else 1)


def parts(classes: int) -> list[Part]:
    """The four in their order; with fewer than four classes APGD-T, whose loss needs four, is left out and flagged.

    Raises:
        BenchError: the library is not there.
    """
    library = require()
    made = [Part(name, classes, library) for name in PARTS if classes >= 4 or name != "aa_apgd_t"]
    if classes < 4:
        made[0].flags["few_classes"] = 1
    return made


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What the library says to its logger, instead of printing it."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, ear = logging.getLogger("auto-attack"), Ear(logging.WARNING)
    before = logger.propagate, logger.level
    logger.addHandler(ear)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield said
    finally:
        logger.removeHandler(ear)
        logger.propagate = before[0]
        logger.setLevel(before[1])


@contextmanager
def _tracing_kept() -> Iterator[None]:
    """Its check for dynamic defences counts calls in a global that it never clears, and ends everybody's tracing."""
    from pyautoattack import checks

    before = sys.gettrace()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        sys.settrace(before)
