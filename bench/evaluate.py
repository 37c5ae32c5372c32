"""One pass over a split: clean, certified, radius, attacked; every number of a record's `evaluation` and its arrays.

The split comes in from outside, nothing is opened here. Everything runs under `exact_eval`. Per example, certified
implies robust implies correct; an example of a class D or F32 certificate that an attack breaks is a bug of the suite
or the method, ends the evaluation and leaves a bundle with the point. (trust.md 2.1)
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from . import attack as attacking
from .attack import Attack, AttackConfig
from .certify import grid_radii, reconcile
from .chunks import Chunks
from .contract import Bound, DataSpec, Method, margin
from .eps import Eps
from .errors import BenchError
from .exact import EvalState, exact_eval

R_SLACK = 1e-4  # of max(1, |logits|): what a class R bound may be off by rounding (trust.md 1.9)
_CERTIFICATE = re.compile(r"[a-z0-9_]{1,40}")


class Images(Protocol):
    """What evaluation needs of a `bench.data.Split`."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def pixels(self, rows: Tensor) -> Tensor: ...


class Watcher(Protocol):
    """What evaluation needs of a `bench.progress.Progress`."""

    def phase(self, name: str, total: int) -> None: ...
    def update(self, done: int, **values: Any) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """`summary`: the record's "evaluation" section; `arrays`: its per-example arrays; `switches`: what was forced.

    A violation of the order never gets here, it raises.
    """

    summary: dict[str, Any]
    arrays: dict[str, np.ndarray]
    switches: dict[str, Any]


class Violation(BenchError):
    """A certificate of class D or F32 was broken by a point of its own ball."""


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

    Raises:
        Violation: a D or F32 certificate contradicted by an attack or by its own clean margin.
        BenchError: the method broke its contract; the message names it.
    """
    attacks = attacks or AttackConfig()
    with exact_eval(net) as state:
        job = _Job(method, recipe, net, split, spec, eps, seed, state, progress or _Silent(), bundle_dir)
        job.chunks = Chunks.fitting(split.labels.device, batch_size)
        job.clean_and_bounds()
        state.check()
        job.radii()
        state.check()
        job.attack_all(attacks)
    # after the context, because its exit probes flush-to-zero once more and may still take a class away
    return job.result(attacks)


class _Silent:
    def phase(self, name: str, total: int) -> None: ...
    def update(self, done: int, **values: Any) -> None: ...


@dataclass
class _Certificate:
    name: str
    claimed: str  # class the method states
    lower: np.ndarray  # [N] float64


@dataclass
class _Job:
    """One evaluation in progress. Arrays are [N], in the split's order."""

    method: Method
    recipe: Any
    net: nn.Module
    split: Images
    spec: DataSpec
    eps: Eps
    seed: int
    state: EvalState
    progress: Watcher
    bundle_dir: Path | None
    chunks: Chunks = field(default_factory=lambda: Chunks(1))
    certificates: list[_Certificate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)  # of the attacks

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
        self.survived: dict[str, np.ndarray] = {}
        self.broken = np.zeros(n, bool)
        self.contradicted = np.zeros(n, bool)
        self.bound_s = 0.0
        self.all_rows = torch.arange(n, device=self.split.labels.device)

    # --- pass 1: clean and certified ----------------------------------------------------------------------------------

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W] float32 as the net sees it, y [B] int64."""
        x = self.split.pixels(rows)
        side = getattr(self.recipe, "crop", 0)
        if side:
            from .data import center_crop

            x = center_crop(x, side)
        return x, self.split.labels[rows]

    def clean_and_bounds(self) -> None:
        """Fill pred, margin and every certificate's lower bounds."""
        self.progress.phase("certify", self.n)
        done = [0]

        def work(rows: Tensor) -> None:
            x, y = self.batch(rows)
            logits = self.logits(x)
            clean = margin(logits, y)
            began, version = time.perf_counter(), x._version
            bounds = self.method.margin_bounds(self.net, x, y, self.eps)
            if x._version != version:
                raise BenchError(f"method {self.method.name}: margin_bounds changed the images it was given")
            found = [self._bound(b, clean, logits) for b in bounds]
            self.bound_s += time.perf_counter() - began
            self._keep(bounds, found, rows)
            at = rows.cpu().numpy()
            self.pred[at] = logits.argmax(dim=1).cpu().numpy()
            self.margin[at] = clean.cpu().numpy()
            self.scale[at] = logits.abs().amax(dim=1).double().cpu().numpy()
            done[0] += len(rows)
            self.progress.update(done[0], clean_acc=float((self.margin > 0).sum()) / done[0])

        self.chunks.run(self.all_rows, work)
        self.correct = self.margin > 0
        # argmax may name another class of equal logit; a tie is wrong and has margin 0, so nothing correct is affected

    def logits(self, x: Tensor) -> Tensor:
        """The deployed net's logits [B, K], checked."""
        z = self.net(x)
        k = self.spec.classes
        if z.shape != (len(x), k):
            raise BenchError(f"method {self.method.name}: logits of shape {list(z.shape)}, [{len(x)}, {k}] are needed")
        if z.dtype != torch.float32:
            raise BenchError(f"method {self.method.name}: logits are {z.dtype}; the deployed net must give float32")
        if not bool(torch.isfinite(z).all()):
            raise BenchError(
                f"method {self.method.name}: the net gives logits that are not finite; training has failed"
            )
        return z.detach()

    def _bound(self, bound: Bound, clean: Tensor, logits: Tensor) -> np.ndarray:
        """One certificate's bounds of a batch, [B] float64, refused if it cannot be a bound of this margin."""
        who = f"method {self.method.name}, certificate {bound.certificate!r}"
        if not _CERTIFICATE.fullmatch(bound.certificate):
            raise BenchError(f"{who}: the name must be [a-z0-9_], at most 40 characters")
        lower = bound.lower.detach().double()
        if lower.shape != clean.shape:
            raise BenchError(f"{who}: {lower.numel()} bounds for {clean.numel()} examples")
        if bool((torch.isnan(lower) | (lower == torch.inf)).any()):
            raise BenchError(f"{who}: bounds that are NaN or infinite; a net with such values has no certificate")
        slack = R_SLACK * logits.abs().amax(dim=1).double().clamp(min=1.0) if bound.cls == "R" else 0.0
        above = lower > clean + slack
        if bool(above.any()):
            i = int(above.nonzero()[0, 0])
            raise Violation(
                f"{who}: the lower bound {float(lower[i])!r} exceeds the margin {float(clean[i])!r} at the image "
                f"itself ({int(above.sum())} of {len(above)} in this batch); the certificate is unsound"
            )
        return lower.cpu().numpy()

    def _keep(self, bounds: Sequence[Bound], found: list[np.ndarray], rows: Tensor) -> None:
        names = [(b.certificate, b.cls) for b in bounds]
        if not names or len({name for name, _ in names}) < len(names):
            raise BenchError(
                f"method {self.method.name}: margin_bounds needs one certificate or more, of different names"
            )
        if not self.certificates:
            self.certificates = [_Certificate(name, cls, np.full(self.n, -np.inf)) for name, cls in names]
        if [(c.name, c.claimed) for c in self.certificates] != names:
            raise BenchError(f"method {self.method.name}: its certificates change from batch to batch")
        at = rows.cpu().numpy()
        for certificate, lower in zip(self.certificates, found, strict=True):
            certificate.lower[at] = lower

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
            x, y = self.batch(rows)
            radius = self.method.radius(self.net, x, y)
            if radius is None:
                closed = False
                return
            values = radius.detach().double().cpu().numpy()
            if values.shape != (len(rows),) or not np.isfinite(values).all() or (values < 0).any():
                raise BenchError(f"method {self.method.name}: radius must give one finite number >= 0 per example")
            found[rows.cpu().numpy()] = values
            done[0] += len(rows)
            self.progress.update(done[0])

        self.chunks.run(right[:1], work)  # whether there is a closed form is asked once
        if closed:
            self.chunks.run(right[1:], work)
        else:
            found = grid_radii(self._holds, self.correct, self.certified, self.eps)
        self.radius, off = reconcile(found, self.correct, self.certified, self.eps)
        if off:
            self.notes.append(f"the radius of {off} examples disagreed with the bound at eps; the bound decided")

    def _holds(self, at: np.ndarray, eps: Eps) -> np.ndarray:
        held = np.zeros(len(at), bool)
        rows = torch.from_numpy(at).to(self.all_rows.device)

        def work(part: Tensor) -> None:
            x, y = self.batch(rows[part])
            lower = self.method.margin_bound(self.net, x, y, eps).lower
            held[part.cpu().numpy()] = (lower > 0).cpu().numpy()

        self.chunks.run(torch.arange(len(at), device=rows.device), work)
        return held

    # --- pass 3: attacks ----------------------------------------------------------------------------------------------

    def attack_all(self, config: AttackConfig) -> None:
        """A cascade: every attack takes on what the earlier ones left standing."""
        skip = np.zeros(self.n, bool) if config.attack_certified else self.certified
        if skip.any():
            self.notes.append(f"{int(skip.sum())} certified examples were not attacked")
        for attack in attacking.suite(config, self.method, self.net):
            self._attack(attack, self.correct & ~self.broken & ~skip)
            self.state.check()

    def _attack(self, attack: Attack, targets: np.ndarray) -> None:
        survived = np.ones(self.n, bool)
        rows = torch.from_numpy(np.flatnonzero(targets)).to(self.all_rows.device)
        self.progress.phase(f"attack {attack.name}", len(rows))
        zero, done = 0.0, [0]
        began = time.perf_counter()

        def work(part: Tensor) -> None:
            nonlocal zero
            x, y = self.batch(part)
            result = attacking.run(
                attack, self.net, x, y, self.split.index[part], eps=self.eps, levels=self.spec.levels, seed=self.seed
            )
            broken = result.broken.cpu().numpy()
            at = part.cpu().numpy()
            survived[at[broken]] = False
            self._confront(at[broken], x, result.adversarial, result.broken, attack)
            zero += float(result.zero_gradient) * len(part)
            done[0] += len(part)
            self.progress.update(done[0], broken=int((~survived).sum()))

        self.chunks.run(rows, work)
        self.survived[attack.name] = survived
        self.broken |= ~survived
        if len(rows) and zero / len(rows) > 0.1:
            self.notes.append(
                f"{attack.name}: {100 * zero / len(rows):.0f} % of input gradients were zero: gradient masking?"
            )
        self.lines.append(
            attack.settings(self.seed)
            | {
                "n_attacked": len(rows),
                "n_broken": int((~survived).sum()),
                "seconds": round(time.perf_counter() - began, 3),
            }
        )

    def _confront(self, at: np.ndarray, x: Tensor, adversarial: Tensor, broken: Tensor, attack: Attack) -> None:
        """Hold broken examples against every certificate; a rigorous one that is contradicted ends the evaluation."""
        place = dict(zip(at.tolist(), broken.nonzero()[:, 0].tolist(), strict=True))  # row of the split -> of the batch
        headline = self.certificates[0]
        self.contradicted[at] |= headline.lower[at] > 0
        for certificate in self.certificates:
            cls = self.state.effective(certificate.claimed)
            hit = at[certificate.lower[at] > 0]
            if cls == "R" or not len(hit):
                continue
            row = int(hit[0])
            j = place[row]
            where = self._bundle(certificate, row, x[j : j + 1], adversarial[j : j + 1], attack)
            raise Violation(
                f"method {self.method.name}: example {self.index[row]} has a class {cls} certificate "
                f"({certificate.name}, bound {certificate.lower[row]!r}) but {attack.name} breaks it inside the ball; "
                f"the certificate or the net's evaluation is wrong{where}"
            )

    def _bundle(self, certificate: _Certificate, row: int, x: Tensor, adversarial: Tensor, attack: Attack) -> str:
        """Write the evidence; returns what to add to the message."""
        if self.bundle_dir is None:
            return ""
        content = {
            "method": self.method.name,
            "index": int(self.index[row]),
            "label": int(self.label[row]),
            "eps": str(self.eps),
            "certificate": {"name": certificate.name, "cls": certificate.claimed},
            "bound": float(certificate.lower[row]).hex(),
            "attack": attack.settings(self.seed),
            "shape": list(x.shape[1:]),
            "x_float32_le": x.cpu().numpy().astype("<f4").tobytes().hex(),
            "adversarial_float32_le": adversarial.cpu().numpy().astype("<f4").tobytes().hex(),
            "logits": [v.hex() for v in self.logits(x)[0].tolist()],
            "adversarial_logits": [v.hex() for v in self.logits(adversarial)[0].tolist()],
            "switches": self.state.switches,
            "torch": torch.__version__,
        }
        self.bundle_dir.mkdir(parents=True, exist_ok=True)
        name = f"violation-{self.index[row]}.json"
        (self.bundle_dir / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return f"; the point is in {name} of the run's folder"

    # --- the result ---------------------------------------------------------------------------------------------------

    def result(self, config: AttackConfig) -> Evaluation:
        """Assemble the summary and the arrays, and assert the order per example."""
        classes = [self.state.effective(c.claimed) for c in self.certificates]
        certified = self.certified & ~self.contradicted
        robust = self.correct & ~self.broken
        self.radius[self.contradicted] = 0.0  # what is wrong at eps deserves no belief below it
        wrong = (certified & ~robust) | (robust & ~self.correct)
        if wrong.any():
            raise Violation(
                f"method {self.method.name}: {int(wrong.sum())} examples violate certified => robust => correct "
                f"although no attack reported one; the first is index {self.index[wrong][0]}"
            )
        head = self.certificates[0].lower
        borderline = classes[0] == "R"
        near = certified & (head <= R_SLACK * np.maximum(1.0, self.scale))
        if self.contradicted.any():
            self.notes.append(f"R certificate contradicted on {int(self.contradicted.sum())} examples, not counted")
        if self.chunks.halved:
            self.notes.append(f"out of memory at {max(self.chunks.halved)} images, went on with {self.chunks.size}")
        self.notes += [f"certificate class lowered: {reason}" for reason in self.state.downgrade]
        summary = {
            "n": self.n,
            "n_correct": int(self.correct.sum()),
            "n_robust": int(robust.sum()),
            "n_certified": int(certified.sum()),
            "n_contradicted": int(self.contradicted.sum()),
            "n_borderline": int(near.sum()) if borderline else 0,
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
            "attacks": self.lines,
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
            **{f"survived_{name}": kept for name, kept in self.survived.items()},
            "correct": self.correct,
            "robust": robust,
            "certified": certified,
        }
        return Evaluation(summary, arrays, self.state.switches)
