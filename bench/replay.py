"""Level 1 of `bench verify`: a sample of a record replayed on its weights, and its certificates under fire."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import attack as attacking
from .attack import AttackConfig, Ball, uniform_noise
from .cascade import Images, Silent, Watcher, batch
from .certify import eps_at, eps_float32_down, float32_down, grid_unit
from .contract import DataSpec, Method, margin
from .exact import exact_eval
from .guards import R_SLACK, check_logits
from .record import Record
from .seeding import seed_of
from .state import weights_sha256
from .threat import box_float32
from .verify import RIGOROUS, Finding, counted, said

PER_PASS = 1024  # points in one forward pass


@dataclass
class Replay:
    """A record beside the net it speaks about. `seed` chooses the sample and the points tried."""

    record: Record
    method: Method
    net: nn.Module
    split: Images
    spec: DataSpec
    recipe: Any
    seed: int

    def findings(
        self, examples: int, points: int, attacks: AttackConfig | None, progress: Watcher | None
    ) -> list[Finding]:
        """See `verify.verify_run`."""
        self.progress = progress or Silent()
        self.arrays = self.record.arrays()
        found = [self._weights(), self._same_split()]
        if not all(f.ok for f in found):
            return found  # another net or other images: the rest would only repeat it
        with exact_eval(self.net) as state:
            found += self._replay(sample(np.ones(self.record.n, bool), examples, self.seed))
            rows = sample(self.arrays["radius"] > 0, examples, self.seed)
            if len(rows):
                found += self._own_radius(rows, points, attacks or replace(AttackConfig(), restarts=2))
        return found + [said("switches now", reason) for reason in state.downgrade]

    def _weights(self) -> Finding:
        same = weights_sha256(self.net) == self.record.data["weights_sha256"]
        return said("weights", None if same else "these are not the weights the record was made with (sha256 differs)")

    def _same_split(self) -> Finding:
        same = (
            len(self.split) == self.record.n
            and np.array_equal(self.split.index.cpu().numpy(), self.arrays["index"])
            and np.array_equal(self.split.labels.cpu().numpy(), self.arrays["label"])
        )
        return said("split", None if same else "the examples or labels differ from those of the record")

    def _rows(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return batch(self.split, self.recipe, torch.from_numpy(rows).to(self.split.labels.device))

    def _cls(self, name: str) -> str:
        certificates = self.record.data["evaluation"]["certificates"]
        return next((str(c["cls"]) for c in certificates if c["name"] == name), "R")

    # --- replay -------------------------------------------------------------------------------------------------------

    def _replay(self, rows: np.ndarray) -> list[Finding]:
        """Margins and bounds: bit-equal where the certificate is of class D, within R_SLACK of the logits elsewhere."""
        x, y = self._rows(rows)
        index = self.arrays["index"][rows]
        logits = check_logits(self.method.name, self.net(x), len(x), self.spec.classes)
        scale = R_SLACK * np.maximum(1.0, logits.abs().amax(dim=1).double().cpu().numpy())
        headline = str(self.record.headline["name"])
        found = [
            self._close("margin", margin(logits, y), self.arrays["margin"][rows], scale, self._cls(headline), index)
        ]
        for bound in self.method.margin_bounds(self.net, x, y, self.record.eps):
            stored = self.arrays.get(f"bound_{bound.certificate}")
            name = f"bound {bound.certificate}"
            if stored is None:
                found.append(said(name, "the record does not have this certificate"))
                continue
            cls = self._cls(bound.certificate)
            found.append(self._close(name, bound.lower, stored[rows], scale, cls, index))
        return [*found, self._radius(rows, x, y, scale)]

    def _close(
        self, check: str, now: Tensor, then: np.ndarray, scale: np.ndarray, cls: str, index: np.ndarray
    ) -> Finding:
        difference = np.abs(now.detach().double().cpu().numpy() - then)
        bad = difference != 0 if cls == "D" else ~(difference <= scale)
        return counted(f"replayed {check}", bad, index, f"off by up to {np.max(difference):.3g} (class {cls})")

    def _radius(self, rows: np.ndarray, x: Tensor, y: Tensor, scale: np.ndarray) -> Finding:
        """Whether every recorded radius still has its certificate: exactly in class D, within rounding elsewhere."""
        stored, index = self.arrays["radius"][rows], self.arrays["index"][rows]
        exact = self._cls(str(self.record.headline["name"])) == "D"
        closed = self.method.radius(self.net, x, y)
        if closed is not None:
            now = float32_down(closed.detach().double().cpu().numpy())
            # of a certified example evaluation may have raised a radius to eps itself (certify.reconcile)
            known = np.where(self.arrays["certified"][rows], eps_float32_down(self.record.eps), np.float32(0))
            give = 0.0 if exact else 1e-6
            bad = stored > np.maximum(now, known) + give * np.maximum(now, known)
            return counted("replayed radius", bad, index, "recorded radius above the one found now")
        unit = grid_unit(self.record.eps)
        bad = np.zeros(len(rows), bool)
        for i in np.flatnonzero(stored > 0):
            k = round(float(stored[i]) / float(unit))
            lower = self.method.margin_bound(self.net, x[i : i + 1], y[i : i + 1], eps_at(k * unit)).lower
            bad[i] = not float(lower) > (0.0 if exact else -scale[i])
        return counted("replayed radius", bad, index, "no certificate at the recorded radius")

    # --- attacks at each example's own radius -------------------------------------------------------------------------

    def _own_radius(self, rows: np.ndarray, points: int, config: AttackConfig) -> list[Finding]:
        x, y = self._rows(rows)
        radius = torch.from_numpy(self.arrays["radius"][rows]).to(x.device)
        lower, upper = inside(x, radius)
        identity = torch.from_numpy(self.arrays["index"][rows].astype(np.int64)).to(x.device)
        self.progress.phase("points in own radius", points)
        flips = {"uniform point": np.zeros(len(rows), np.int64), "vertex": np.zeros(len(rows), np.int64)}
        at_once = max(1, PER_PASS // len(rows))
        for first in range(0, points, at_once):
            many = range(first, min(first + at_once, points))
            noise = torch.stack(
                [uniform_noise(identity, x[0].numel(), seed_of(self.seed, "verify", k)) for k in many]
            ).reshape(len(many), *x.shape)
            somewhere = torch.minimum(torch.maximum(lower + noise * (upper - lower), lower), upper)
            for kind, point in (("uniform point", somewhere), ("vertex", torch.where(noise < 0.5, lower, upper))):
                gap = margin(self.net(point.flatten(0, 1)), y.repeat(len(many))).reshape(len(many), -1)
                flips[kind] += (~(gap > 0)).sum(dim=0).cpu().numpy()
            self.progress.update(many[-1] + 1)
        found = [self._fired(kind, len(rows) * points, flipped, rows) for kind, flipped in flips.items()]
        ball = Ball(lower, upper, radius.reshape(-1, 1, 1, 1))
        for attack in attacking.suite(config, self.method, self.net):
            outcome = attacking.run(attack, self.net, x, y, ball, index=identity, seed=seed_of(self.seed, "verify"))
            found.append(self._fired(attack.name, len(rows), outcome.broken.cpu().numpy().astype(np.int64), rows))
        return found

    def _fired(self, kind: str, tried: int, flipped: np.ndarray, rows: np.ndarray) -> Finding:
        """Flips counts, [M]; one is a broken certificate, whatever its class."""
        n = int(flipped.sum())
        cls = str(self.record.headline["cls"])
        if not n:
            return Finding(f"{kind} in own radius", tried, 0, "no flip, no tie")
        meaning = "the certificate is unsound" if cls in RIGOROUS else "unsound, or rounding, which class R leaves open"
        first = int(self.arrays["index"][rows[flipped > 0][0]])
        return Finding(f"{kind} in own radius", tried, n, f"class {cls} broken, first at index {first}: {meaning}")


def sample(among: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows [<= count] of those marked in `among` [N] bool, a seeded choice, in ascending order."""
    rows = np.flatnonzero(among)
    order = np.random.default_rng(seed_of(seed, "verify", len(rows))).permutation(len(rows))
    return np.sort(rows[order[:count]])


def inside(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """float32 bounds of points that all lie within `radius` [B] float32 of x [B, C, H, W] and in [0, 1].

    One ulp inside the outer box on either side, which is inside the ball because the box is less than an ulp too wide.
    """
    lower, upper = box_float32(x, radius)
    return torch.nextafter(lower, x), torch.nextafter(upper, x)
