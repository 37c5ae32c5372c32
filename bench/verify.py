"""`bench verify`: does a record hold together (level 0), and does its net still do what the record says (1, 2)?

Level 0 needs the record only, no torch. Level 1 needs the weights: it replays a sample of examples and then tries to
break certified ones inside their own radius, where a certificate claims most. Level 2 tries a thousand times as many
points, certifies and attacks every example again and, if it is installed, sets AutoAttack on certified ones. A tie
counts as broken. Whatever it does not find is no proof; what it finds is. (trust.md 2.6, P2, P4)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from . import record_arrays, record_check
from .certify import eps_float32_down
from .eps import Eps
from .record import Record, RecordError, identity

if TYPE_CHECKING:
    from torch import nn

    from .attack import AttackConfig
    from .cascade import Images, Watcher
    from .contract import DataSpec, Method
    from .data import Split

EXAMPLES, POINTS = 64, 100  # replayed and attacked examples; random points of each kind per certified example
FULL_POINTS = 100_000  # ... at level 2
RIGOROUS = ("D", "F32")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `bad` of `checked` items failed; ok means none did."""

    check: str
    checked: int
    bad: int
    message: str

    @property
    def ok(self) -> bool:
        return self.bad == 0


# --- level 0: the record alone ----------------------------------------------------------------------------------------


def verify_record(record: Record) -> list[Finding]:
    """Static checks: schema, hashes, counts against arrays, the order per example, radii, classes, attacks."""
    data = record.data
    found = [
        said("id", None if identity(data) == data["id"] else "the id is not the hash of the content: it was edited"),
        said("schema", record_check.validate(data)),
    ]
    if not found[1].ok:
        return found  # what follows takes the fields for granted
    found += [
        said("private", record_check.private(data)),
        said("recipe hash", _recipe_hash(data)),
        said("cell id", _cell_id(data)),
        said("examples", _examples(data)),
    ]
    try:
        arrays = record.arrays()
    except RecordError as error:
        return [*found, Finding("arrays", 1, 1, str(error))]
    found.append(said("counts and order", record_arrays.check(data["evaluation"], arrays), len(arrays["label"])))
    if found[-1].ok:
        found += _attack_counts(data["evaluation"], arrays)
        found += _certificates(data["evaluation"], arrays)
        found += _radii(Eps(data["evaluation"]["eps"]), data["evaluation"], arrays)
        found.append(said("switches", _switches(data)))
    return found


def said(check: str, problem: str | None, checked: int = 1) -> Finding:
    return Finding(check, checked, int(problem is not None), problem or "holds")


def counted(check: str, bad: np.ndarray, index: np.ndarray, what: str) -> Finding:
    """A per-example check; the message names the first offender."""
    n = int(bad.sum())
    return Finding(check, len(bad), n, f"{what}: the first is index {int(index[bad][0])}" if n else "holds")


def _equal(check: str, stated: int, counted: int) -> Finding:
    return said(check, None if stated == counted else f"the record states {stated} but its arrays hold {counted}")


def _recipe_hash(data: Mapping[str, Any]) -> str | None:
    content = {k: _number(v) for k, v in data["recipe"]["fields"].items() if k != "source"}
    right = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return None if right == data["recipe"]["hash"] else "recipe.hash is not the hash of recipe.fields"


def _number(value: Any) -> Any:
    """A record writes an infinite number as a word."""
    if isinstance(value, list):
        return [_number(v) for v in value]
    return math.inf if value == "inf" else value


def _cell_id(data: Mapping[str, Any]) -> str | None:
    from .cell import Cell

    cell = data["cell"]
    overrides = tuple(sorted((k, _number(v)) for k, v in cell["overrides"].items()))
    own = {k: cell[k] for k in ("method", "dataset", "eps", "preset", "seed", "split")}
    made = Cell(**own, overrides=overrides, recipe_hash=data["recipe"]["hash"])
    return None if made.id == cell["id"] else f"cell.id = {cell['id']} but these fields make {made.id}"


def _examples(data: Mapping[str, Any]) -> str | None:
    evaluation, split = data["evaluation"], data["cell"]["split"]
    n = data["data"][f"n_{split}"]
    return None if evaluation["n"] == n else f"evaluation.n = {evaluation['n']} but the {split} split has {n} examples"


def _attack_counts(evaluation: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Finding]:
    """The cascade: what an attack broke, its array shows; no example falls twice; robust is what is left."""
    correct, index = arrays["correct"], arrays["index"]
    standing, twice = correct.copy(), np.zeros_like(correct)
    wrong = []
    for attack in evaluation["attacks"]:
        broken = ~arrays[f"survived_{attack['name']}"]
        twice |= broken & ~standing
        if attack["n_broken"] != int(broken.sum()) or attack["n_attacked"] > int(standing.sum()):
            wrong.append(attack["name"])
        standing &= ~broken
    bad = arrays["robust"] != standing
    return [
        Finding("attack counts", len(evaluation["attacks"]), len(wrong), ", ".join(wrong) or "hold"),
        counted("cascade", twice, index, "broken although wrong or broken before"),
        counted("robust", bad, index, "robust is not correct and unbroken"),
    ]


def _certificates(evaluation: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Finding]:
    """Verdicts follow from bounds; a rigorous bound is never above the margin it bounds."""
    found = []
    for certificate in evaluation["certificates"]:
        name, bound = certificate["name"], arrays[f"bound_{certificate['name']}"]
        rigorous = certificate["cls"] in RIGOROUS
        claimed = arrays["correct"] & (bound > 0)
        stands = claimed if rigorous else claimed & arrays["robust"]
        n = int(stands.sum())
        found.append(_equal(f"{name} count", certificate["n_certified"], n))
        if certificate["headline"]:
            differ = arrays["certified"] != stands
            found.append(counted("certified", differ, arrays["index"], "the verdict differs from the bound's"))
            found.append(_equal("contradicted", evaluation.get("n_contradicted", 0), int((claimed & ~stands).sum())))
        if rigorous:
            above = bound > arrays["margin"]
            found.append(counted(f"{name} below margin", above, arrays["index"], "bound above the clean margin"))
    return found


def _radii(eps: Eps, evaluation: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Finding]:
    """Certified at eps iff the radius reaches eps, as far as a float32 rounded down can say it."""
    radius, certified, index = arrays["radius"], arrays["certified"], arrays["index"]
    at = eps_float32_down(eps)
    short = certified & (radius < at)
    exact = Fraction(float(at)) == eps.fraction
    stated = evaluation.get("eps_float32")
    long = ~certified & arrays["correct"] & ((radius >= at) if exact else (radius > at))
    return [
        counted("radius of certified", short, index, "certified with a radius below eps"),
        counted("radius of others", long, index, "not certified with a radius of eps or more"),
        counted("radius range", ~((radius >= 0) & (radius <= 1)), index, "radius outside [0, 1]"),
        said("eps_float32", None if stated in (None, eps.float32_up) else f"{stated} is not the float32 above {eps}"),
    ]


def _switches(data: Mapping[str, Any]) -> str | None:
    """A class D or F32 certificate must not have been issued under reduced precision or, for F32, flush-to-zero."""
    classes = {c["cls"] for c in data["evaluation"]["certificates"]} & set(RIGOROUS)
    switches = data["environment"].get("switches", {})
    if "F32" in classes and data["evaluation"].get("ftz"):
        return "a class F32 certificate was issued with flush-to-zero on"
    on = [f"{name} = {value}" for name, value in switches.items() if _reduces(name, value)]
    if classes and on:
        return f"class {' and '.join(sorted(classes))} certificates were issued with {', '.join(sorted(on))}"
    return None


def _reduces(name: str, value: Any) -> bool:
    """Whether a switch of the environment lets float32 work be done in less than float32."""
    if name.endswith("fp32_precision"):
        return value != "ieee"
    if name == "matmul_precision":
        return value != "highest"
    return value is True and any(word in name for word in ("tf32", "autocast", "reduced", "fp16"))


# --- level 1: the net -------------------------------------------------------------------------------------------------


def verify_run(
    record: Record,
    method: Method,
    net: nn.Module,
    split: Images,
    *,
    spec: DataSpec,
    recipe: Any,
    examples: int = EXAMPLES,
    points: int = POINTS,
    seed: int = 1,
    attacks: AttackConfig | None = None,
    progress: Watcher | None = None,
) -> list[Finding]:
    """Replay a sample of a record on its weights and look for broken certificates.

    Args:
        net: with the run's weights. split: the one the record speaks about, whole.
        examples: how many are replayed, and how many certified ones are attacked (all, if there are fewer).
        points: uniform points and vertices tried inside the radius of each certified example.
        seed: of the sample and of the attacks' starts; another one than the run's looks elsewhere.
        attacks: on the certified sample, at each example's own radius; default: the default budget, 2 restarts.
    """
    from .replay import Replay  # torch

    return Replay(record, method, net, split, spec, recipe, seed).findings(examples, points, attacks, progress)


# --- level 2: everything once more ------------------------------------------------------------------------------------


def verify_full(
    record: Record,
    method: Method,
    net: nn.Module,
    split: Images,
    *,
    spec: DataSpec,
    recipe: Any,
    seed: int = 1,
    attacks: AttackConfig | None = None,
    progress: Watcher | None = None,
) -> list[Finding]:
    """Certify and attack every example again, the attacks from other random starts, and compare.

    Arguments as of `verify_run`. An example that falls only now is no fault of the record, whose robust accuracy is an
    upper bound; it is counted in the message. Bounds may differ by rounding where their class is not D.
    """
    from .evaluate import evaluate
    from .guards import R_SLACK, Violation

    then = record.arrays()
    try:
        again = evaluate(
            method, recipe, net, split, spec=spec, eps=record.eps, seed=seed, attacks=attacks, progress=progress
        )
    except Violation as error:
        return [said("certified under a new attack", str(error), record.n)]
    now = again.arrays
    if not np.array_equal(now["index"], then["index"]):
        return [said("split", "the examples differ from those of the record")]
    index = then["index"]
    slack = R_SLACK * np.maximum(1.0, np.abs(then["margin"]))
    found = []
    for certificate in record.data["evaluation"]["certificates"]:
        name = f"bound_{certificate['name']}"
        if name not in now:
            found.append(said(name, "this certificate no longer exists"))
            continue
        differ = np.abs(now[name] - then[name])
        differ = np.where(now[name] == then[name], 0.0, differ)  # both -inf
        bad = differ > (0.0 if certificate["cls"] == "D" else slack)
        found.append(counted(f"recertified {certificate['name']}", bad, index, "bounds differ"))
    broken = then["certified"] & ~now["robust"]
    found.append(counted("certified under a new attack", broken, index, "certified examples fall"))
    fell = int((then["robust"] & ~now["robust"]).sum())
    found.append(Finding("robust under a new attack", record.n, 0, f"{fell} more examples fall from other starts"))
    return found


def verify_certified(
    record: Record,
    method: Method,
    net: nn.Module,
    split: Split,
    *,
    spec: DataSpec,
    recipe: Any,
    examples: int = EXAMPLES,
    seed: int = 1,
    progress: Watcher | None = None,
) -> list[Finding]:
    """AutoAttack on a sample of the certified examples, at the record's eps; a line that says so where it is absent.

    Arguments as of `verify_run`.
    """
    import torch

    from .attack import AttackConfig
    from .autoattack import require
    from .errors import BenchError
    from .evaluate import evaluate
    from .guards import Violation
    from .replay import sample

    try:
        library = require()
    except BenchError as error:
        return [Finding("AutoAttack on certified", 0, 0, f"not run: {error}")]
    rows = sample(record.arrays("certified")["certified"], examples, seed)
    if not len(rows):
        return [Finding("AutoAttack on certified", 0, 0, "nothing is certified")]
    config = AttackConfig(steps=0, surrogates=0, autoattack=True)
    try:
        found = evaluate(
            method,
            recipe,
            net,
            split.subset(torch.from_numpy(rows).to(split.labels.device)),
            spec=spec,
            eps=record.eps,
            seed=seed,
            attacks=config,
            progress=progress,
            radii=False,
        )
    except Violation as error:
        return [said("AutoAttack on certified", str(error), len(rows))]
    fallen = ~found.arrays["robust"]
    return [counted("AutoAttack on certified", fallen, found.arrays["index"], f"{library}: certified examples fall")]
