"""One pass over a split: clean, certified, radius, attacked; every number of a record's `evaluation` and its arrays.

The split comes in from outside, nothing is opened here. Everything runs under `exact_eval`. Per example, certified
implies robust implies correct; an example of a class D or F32 certificate that an attack breaks is a bug of the suite
or the method, ends the evaluation and leaves a bundle with the point. (trust.md 2.1)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .attack import AttackConfig
from .cascade import Cascade, Certificate, Images, Silent, Watcher, batch
from .certify import ROUNDS, grid_radii, reconcile
from .chunks import Chunks
from .contract import Bound, DataSpec, Method, margin
from .eps import Eps
from .errors import BenchError
from .exact import EvalState, exact_eval
from .guards import R_SLACK, Violation, check_bound, check_logits, check_radius
from .kept import NOTHING, Kept


@dataclass(frozen=True)
class Evaluation:
    """`summary`: the record's "evaluation" section; `arrays`: its per-example arrays; `switches`: what was forced.

    A violation of the order never gets here, it raises.
    """

    summary: dict[str, Any]
    arrays: dict[str, np.ndarray]
    switches: dict[str, Any]


def evaluate(
    method: Method,
    recipe: Any,
    net: nn.Module,
    split: Images,
    *,
    spec: DataSpec,
    eps: Eps,
    seed: int,
    attacks: AttackConfig | None = None,
    progress: Watcher | None = None,
    batch_size: int | None = None,
    bundle_dir: Path | None = None,
    radii: bool = True,
    keep: Kept = NOTHING,
) -> Evaluation:
    """Evaluate a finished net on every example of a split.

    Args:
        recipe: gives the crop (`recipe.crop`); nothing else of it is read.
        split: images on the device of the net.
        spec: of the data set; `levels` is the grid the attacks' boxes are tabulated on.
        seed: of the run; seeds the attacks' random starts.
        attacks: the budget; `AttackConfig()` if None.
        batch_size: first chunk size; halved when memory runs out.
        bundle_dir: where a violated certificate leaves `violation-<index>.json`; usually the run's folder.
        radii: False leaves every radius 0, where only attacks are asked for: some methods have to search for theirs.
        keep: where finished parts lie, so that an evaluation that was stopped goes on.

    Raises:
        Violation: a D or F32 certificate contradicted by an attack or by its own clean margin.
        BenchError: the method broke its contract; the message names it.
    """
    attacks = attacks or AttackConfig()
    with exact_eval(net) as state:
        chunks = Chunks.fitting(split.labels.device, batch_size)
        job = _Job(method, recipe, net, split, spec, eps, state, chunks, progress or Silent())
        job.part(keep, "bounds", job.clean_and_bounds, ("pred", "margin", "scale"))
        if radii:
            job.part(keep, "radii", job.radii, ("radius",))
        cascade = Cascade(
            method,
            recipe,
            net,
            split,
            job.certificates,
            eps,
            spec,
            seed,
            state,
            chunks,
            job.progress,
            bundle_dir,
            keep,
        )
        cascade.run(attacks, job.correct, job.certified)
    # after the context, because its exit probes flush-to-zero once more and may still take a class away
    return job.result(cascade)


@dataclass
class _Job:
    """One evaluation in progress. Arrays are [N], in the split's order."""

    method: Method
    recipe: Any
    net: nn.Module
    split: Images
    spec: DataSpec
    eps: Eps
    state: EvalState
    chunks: Chunks
    progress: Watcher
    certificates: list[Certificate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.split)
        if n == 0:
            raise BenchError("the split is empty; there is nothing to evaluate")
        self.n = n
        self.label = self.split.labels.cpu().numpy().astype(np.int16)
        self.index = self.split.index.cpu().numpy().astype(np.int32)
        self.pred = np.zeros(n, np.int16)
        self.margin = np.zeros(n, np.float64)
        self.scale = np.zeros(n, np.float64)  # largest |logit|
        self.radius = np.zeros(n, np.float32)
        self.bound_s = 0.0
        self.searched = 0  # bounds asked for in the search for radii
        self.all_rows = torch.arange(n, device=self.split.labels.device)

    def part(self, keep: Kept, name: str, work: Callable[[], None], fields: Sequence[str]) -> None:
        """Do a pass that fills `fields` and may fill certificates and notes, or take what an earlier process left."""
        if found := keep.load(name):
            content, arrays = found
            self.state.take_over(content["state"])
            self.bound_s = content["bound_s"]
            self.notes += content["notes"]
            self.certificates = [Certificate(c, cls, arrays[f"bound_{c}"]) for c, cls in content["certificates"]]
            for field_name in fields:
                setattr(self, field_name, arrays[field_name])
            return
        before = len(self.notes)
        work()
        self.state.check()
        content = {
            "state": self.state.as_kept(),
            "bound_s": self.bound_s,
            "notes": self.notes[before:],
            "certificates": [[c.name, c.claimed] for c in self.certificates],
        }
        lowers = {f"bound_{c.name}": c.lower for c in self.certificates}
        keep.save(name, content, {**{f: getattr(self, f) for f in fields}, **lowers})

    # --- pass 1: clean and certified ----------------------------------------------------------------------------------

    def clean_and_bounds(self) -> None:
        """Fill pred, margin and every certificate's lower bounds."""
        self.progress.phase("certify", self.n)
        done = [0]

        def work(rows: Tensor) -> None:
            x, y = batch(self.split, self.recipe, rows)
            logits = check_logits(self.method.name, self.net(x), len(x), self.spec.classes)
            clean = margin(logits, y)
            began, version = time.perf_counter(), x._version
            bounds = self.method.margin_bounds(self.net, x, y, self.eps)
            if x._version != version:
                raise BenchError(f"method {self.method.name}: margin_bounds changed the images it was given")
            found = [check_bound(self.method.name, b, clean, logits) for b in bounds]
            self.bound_s += time.perf_counter() - began
            self._keep(bounds, found, rows)
            at = rows.cpu().numpy()
            self.pred[at] = logits.argmax(dim=1).cpu().numpy()
            self.margin[at] = clean.cpu().numpy()
            self.scale[at] = logits.abs().amax(dim=1).double().cpu().numpy()
            done[0] += len(rows)
            self.progress.update(done[0], clean_acc=float((self.margin > 0).sum()) / done[0])

        self.chunks.run(self.all_rows, work)

    def _keep(self, bounds: Sequence[Bound], found: list[np.ndarray], rows: Tensor) -> None:
        names = [(b.certificate, b.cls) for b in bounds]
        if not names or len({name for name, _ in names}) < len(names):
            raise BenchError(
                f"method {self.method.name}: margin_bounds needs one certificate or more, of different names"
            )
        if not self.certificates:
            self.certificates = [Certificate(name, cls, np.full(self.n, -np.inf)) for name, cls in names]
        if [(c.name, c.claimed) for c in self.certificates] != names:
            raise BenchError(f"method {self.method.name}: its certificates change from batch to batch")
        at = rows.cpu().numpy()
        for certificate, lower in zip(self.certificates, found, strict=True):
            certificate.lower[at] = lower

    @property
    def correct(self) -> np.ndarray:
        """Strictly: a tie is wrong."""
        return np.asarray(self.margin > 0)

    @property
    def certified(self) -> np.ndarray:
        """By the headline certificate, before any contradiction."""
        return self.correct & (self.certificates[0].lower > 0)

    # --- pass 2: radii ------------------------------------------------------------------------------------------------

    def radii(self) -> None:
        """Fill `radius` in closed form, or by search over the headline bound."""
        right = torch.from_numpy(np.flatnonzero(self.correct)).to(self.all_rows.device)
        found = np.zeros(self.n, np.float64)
        closed = True
        self.progress.phase("radius", len(right))
        done = [0]

        def work(rows: Tensor) -> None:
            nonlocal closed
            x, y = batch(self.split, self.recipe, rows)
            radius = self.method.radius(self.net, x, y)
            if radius is None:
                closed = False
                return
            found[rows.cpu().numpy()] = check_radius(self.method.name, radius, len(rows))
            done[0] += len(rows)
            self.progress.update(done[0])

        self.chunks.run(right[:1], work)  # whether there is a closed form is asked once
        if closed:
            self.chunks.run(right[1:], work)
        else:
            self.progress.phase("radius search", ROUNDS * len(right))
            found = grid_radii(self._holds, self.correct, self.certified, self.eps)
        self.radius, off = reconcile(found, self.correct, self.certified, self.eps)
        if off:
            self.notes.append(f"the radius of {off} examples disagreed with the bound at eps; the bound decided")

    def _holds(self, at: np.ndarray, eps: Eps) -> np.ndarray:
        held = np.zeros(len(at), bool)
        rows = torch.from_numpy(at).to(self.all_rows.device)

        def work(part: Tensor) -> None:
            x, y = batch(self.split, self.recipe, rows[part])
            lower = self.method.margin_bound(self.net, x, y, eps).lower
            held[part.cpu().numpy()] = (lower > 0).cpu().numpy()
            self.searched += len(part)
            self.progress.update(self.searched)

        self.chunks.run(torch.arange(len(at), device=rows.device), work)
        return held

    # --- the result ---------------------------------------------------------------------------------------------------

    def result(self, cascade: Cascade) -> Evaluation:
        """Assemble the summary and the arrays, and assert the order per example."""
        classes = [self.state.effective(c.claimed) for c in self.certificates]
        refuted = cascade.contradicted
        certified = self.certified & ~refuted
        robust = self.correct & ~cascade.broken
        self.radius[refuted] = 0.0  # what is wrong at eps deserves no belief below it
        wrong = (certified & ~robust) | (robust & ~self.correct)
        if wrong.any():
            raise Violation(
                f"method {self.method.name}: {int(wrong.sum())} examples violate certified => robust => correct "
                f"although no attack reported one; the first is index {self.index[wrong][0]}"
            )
        near = certified & (self.certificates[0].lower <= R_SLACK * np.maximum(1.0, self.scale))
        self.notes += cascade.notes
        if refuted.any():
            self.notes.append(f"class R certificate contradicted on {int(refuted.sum())} examples, which do not count")
        if self.chunks.halved:
            self.notes.append(f"out of memory at {max(self.chunks.halved)} images, went on with {self.chunks.size}")
        self.notes += [f"certificate class lowered: {reason}" for reason in self.state.downgrade]
        summary = {
            "n": self.n,
            "n_correct": int(self.correct.sum()),
            "n_robust": int(robust.sum()),
            "n_certified": int(certified.sum()),
            "n_contradicted": int(refuted.sum()),
            "n_borderline": int(near.sum()) if classes[0] == "R" else 0,
            "certificates": [
                {
                    "name": c.name,
                    "cls": cls,
                    "n_certified": int((robust & (c.lower > 0)).sum()),
                    "seconds": round(self.bound_s, 3),  # of the joint call, which a method may compute in one go
                    "headline": i == 0,
                }
                for i, (c, cls) in enumerate(zip(self.certificates, classes, strict=True))
            ],
            "attacks": cascade.lines,
            "eps": str(self.eps),
            "eps_float32": self.eps.float32_up,
            "ftz": self.state.switches.get("flush_to_zero") != "off",
            "notes": self.notes,
        }
        arrays: dict[str, np.ndarray] = {
            "label": self.label,
            "index": self.index,
            "pred": self.pred,
            "margin": self.margin,
            "radius": self.radius,
            **{f"bound_{c.name}": c.lower for c in self.certificates},
            **{f"survived_{name}": kept for name, kept in cascade.survived.items()},
            "correct": self.correct,
            "robust": robust,
            "certified": certified,
        }
        return Evaluation(summary, arrays, self.state.switches)
