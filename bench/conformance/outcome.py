"""What a check found, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

TITLES = {
    1: "builds for every data set it claims",
    2: "loss is finite and has gradients",
    3: "ten steps lower the loss",
    4: "deterministic, resumes bit for bit",
    5: "margin bound is sound",
    6: "radius agrees with the margin bound",
    7: "evaluation has no side effects",
    8: "flops and parameters are counted",
    9: "recipes are valid",
    10: "state survives safetensors",
    11: "wrong inputs are refused",
}


@dataclass(frozen=True)
class Outcome:
    """One check's result. ok: True, False, or None where it does not apply or was not reached; detail: one line."""

    number: int
    title: str
    ok: bool | None
    detail: str
    seconds: float


def failed(outcomes: Iterable[Outcome]) -> bool:
    """Whether any check failed."""
    return any(outcome.ok is False for outcome in outcomes)


def lines(name: str, outcomes: Iterable[Outcome]) -> list[str]:
    """One line per check, each with the plugin's name, and a last one with the verdict."""
    words = {True: "ok", False: "FAILED", None: "-"}
    found = list(outcomes)
    shown = [f"{name}  {o.number:2d} {words[o.ok]:6s}  {o.title}: {o.detail}  ({o.seconds:.1f} s)" for o in found]
    bad = [str(o.number) for o in found if o.ok is False]
    passed, idle = (sum(o.ok is ok for o in found) for ok in (True, None))
    counts = [f"{passed} passed", f"{len(bad)} failed" * bool(bad), f"{idle} without a verdict" * bool(idle)]
    verdict = f"breaks the contract: check {', '.join(bad)}" if bad else "keeps the contract"
    return [*shown, f"{name}  {verdict} ({', '.join(filter(None, counts))}; {sum(o.seconds for o in found):.0f} s)"]
