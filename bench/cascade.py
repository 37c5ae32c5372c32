"""The attacks of an evaluation, one after another, each on what the earlier ones left standing.

Every point that breaks an example is held against the example's certificates: one of class D or F32 that it
contradicts ends the evaluation with a bundle, one of class R costs the example its certificate.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from . import attack as attacking
from . import autoattack
from .attack import Attack, AttackConfig
from .chunks import Chunks
from .contract import DataSpec, Method
from .eps import Eps
from .exact import EvalState
from .guards import Violation, write_bundle
from .kept import NOTHING, Kept
from .threat import inner_box

AnyAttack = Attack | autoattack.Part

SAVE_EVERY_S = 60.0  # between two savings in the middle of an attack
MASKED = 0.1  # share of zero input gradients from which the record speaks of gradient masking


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


class Silent:
    """A Watcher that shows nothing."""

    def phase(self, name: str, total: int) -> None: ...
    def update(self, done: int, **values: Any) -> None: ...


@dataclass
class Certificate:
    """A certificate of a whole split: class `claimed` by the method, `lower` [N] float64."""

    name: str
    claimed: str
    lower: np.ndarray


def batch(split: Images, recipe: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, C, H, W] float32 as the net sees it (cropped if the recipe says so), y [B] int64."""
    x = split.pixels(rows)
    side = getattr(recipe, "crop", 0)
    if side:
        from .data import center_crop

        x = center_crop(x, side)
    return x, split.labels[rows]


@dataclass
class Cascade:
    """Attacks on a split; arrays are [N] in the split's order.

    certificates: the headline first. spec: its `levels` are the pixel grid. Afterwards `survived` holds, per attack,
    what it did not break, `broken` their union, `contradicted` whose headline certificate is refuted, `lines` the
    record's attack entries and `notes` what a reader must know.
    """

    method: Method
    recipe: Any
    net: nn.Module
    split: Images
    certificates: list[Certificate]
    eps: Eps
    spec: DataSpec
    seed: int
    state: EvalState
    chunks: Chunks
    progress: Watcher
    bundle_dir: Path | None = None
    keep: Kept = NOTHING
    survived: dict[str, np.ndarray] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broken = np.zeros(len(self.split), bool)
        self.contradicted = np.zeros(len(self.split), bool)

    def run(self, config: AttackConfig, targets: np.ndarray, certified: np.ndarray) -> None:
        """Attack every target; without `config.attack_certified` only those that are not certified.

        Raises:
            Violation: a certificate of class D or F32 is contradicted.
        """
        if not config.attack_certified:
            self.notes.append(f"{int((targets & certified).sum())} certified examples were not attacked")
            targets = targets & ~certified
        attacks: list[AnyAttack] = [*attacking.suite(config, self.method, self.net)]
        if config.autoattack:
            attacks += autoattack.parts(self.spec.classes)
        for attack in attacks:
            self._part(attack, targets & ~self.broken)

    def _part(self, attack: AnyAttack, targets: np.ndarray) -> None:
        """Run one attack, or take it as an earlier process left it: same settings, same targets."""
        name = f"attack-{attack.name}"
        about = {"settings": attack.settings(self.seed), "targets": hashlib.sha256(targets.tobytes()).hexdigest()}
        if found := self.keep.load(name, **about):
            content, arrays = found
            self.state.take_over(content["state"])
            self.survived[attack.name] = arrays["survived"]
            self.broken |= ~arrays["survived"]
            self.contradicted |= arrays["contradicted"]
            self.lines.append(content["line"])
            self.notes += content["notes"]
            return
        before = len(self.notes)
        self._run_one(attack, targets, about)
        self.state.check()
        content = {"line": self.lines[-1], "notes": self.notes[before:], "state": self.state.as_kept()}
        arrays = {"survived": self.survived[attack.name], "contradicted": self.contradicted}
        self.keep.save(name, content, arrays, **about)

    def _run_one(self, attack: AnyAttack, targets: np.ndarray, about: dict[str, Any]) -> None:
        survived = np.ones(len(self.split), bool)
        rows = torch.from_numpy(np.flatnonzero(targets)).to(self.split.labels.device)
        self.progress.phase(f"attack {attack.name}", len(rows))
        done, zero, spent = 0, 0.0, 0.0
        if found := self.keep.load(f"begun-{attack.name}", **about):  # by a process that was stopped in the middle
            content, arrays = found
            self.state.take_over(content["state"])
            done, zero, spent = content["done"], content["zero"], content["seconds"]
            survived = arrays["survived"]
            self.contradicted |= arrays["contradicted"]
            if isinstance(attack, autoattack.Part):
                attack.flags.update(content["flags"])
        began = saved_at = time.perf_counter()

        def work(part: Tensor) -> None:
            nonlocal done, zero, saved_at
            x, y = batch(self.split, self.recipe, part)
            ball = attacking.Ball(*inner_box(x, self.eps, self.spec.levels), float(self.eps))
            result = attack.against(self.net, x, y, ball, index=self.split.index[part], seed=self.seed)
            fallen = result.broken.nonzero()[:, 0]
            at = part[fallen].cpu().numpy()
            self._confront(at, x[fallen], result.adversarial[fallen], attack)
            survived[at] = False
            zero += float(result.zero_gradient) * len(part)
            done += len(part)
            if time.perf_counter() - saved_at >= SAVE_EVERY_S:
                self.state.check()
                seconds = spent + time.perf_counter() - began
                content = {"done": done, "zero": zero, "seconds": seconds, "state": self.state.as_kept()}
                content["flags"] = attack.flags if isinstance(attack, autoattack.Part) else {}
                arrays = {"survived": survived, "contradicted": self.contradicted}
                self.keep.save(f"begun-{attack.name}", content, arrays, **about)
                saved_at = time.perf_counter()
            self.progress.update(done, broken=int((~survived).sum()))

        self.chunks.run(rows[done:], work)
        self.survived[attack.name] = survived
        self.broken |= ~survived
        if len(rows) and zero / len(rows) > MASKED:
            share = 100 * zero / len(rows)
            self.notes.append(f"{attack.name}: {share:.0f} % of input gradients were zero: gradient masking?")
        if isinstance(attack, autoattack.Part):
            attack.concluded(int((~survived).sum()), len(self.split))
            for flag, times in attack.flags.items():
                self.notes.append(f"{attack.name} warns: {flag} ({times}); the robust accuracy may be too high")
        counts = {"n_attacked": len(rows), "n_broken": int((~survived).sum())}
        spent += time.perf_counter() - began
        self.lines.append(attack.settings(self.seed) | counts | {"seconds": round(spent, 3)})

    def _confront(self, at: np.ndarray, x: Tensor, adversarial: Tensor, attack: AnyAttack) -> None:
        """Hold broken examples (rows `at` of the split) against every certificate."""
        self.contradicted[at] |= self.certificates[0].lower[at] > 0
        for certificate in self.certificates:
            cls = self.state.effective(certificate.claimed)
            refuted = np.flatnonzero(certificate.lower[at] > 0)
            if cls == "R" or not len(refuted):
                continue
            j = int(refuted[0])
            bound = float(certificate.lower[at[j]])
            index = int(self.split.index[at[j]])
            where = self._bundle(index, certificate, bound, x[j], adversarial[j], attack)
            raise Violation(
                f"method {self.method.name}: example {index} has a class {cls} certificate ({certificate.name}, bound "
                f"{bound!r}) but {attack.name} breaks it inside the ball; the certificate or the net's evaluation is "
                f"wrong{where}"
            )

    def _bundle(
        self, index: int, certificate: Certificate, bound: float, x: Tensor, adversarial: Tensor, attack: AnyAttack
    ) -> str:
        """Write the evidence, if there is a folder for it; returns what to add to the message."""
        if self.bundle_dir is None:
            return ""
        content = {
            "method": self.method.name,
            "index": index,
            "eps": str(self.eps),
            "certificate": {"name": certificate.name, "cls": certificate.claimed, "bound": bound.hex()},
            "attack": attack.settings(self.seed),
            "switches": self.state.switches,
        }
        logits = {"logits": self.net(x[None])[0], "adversarial_logits": self.net(adversarial[None])[0]}
        name = write_bundle(self.bundle_dir, index, content, {"x": x, "adversarial": adversarial} | logits)
        return f"; the point is in {name} of the run's folder"
