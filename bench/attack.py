"""Projected gradient descent on the margin, directly and through a method's surrogates.

An attack never reports its own success: every iterate is judged by the deployed net, the point it returns is judged
once more by a plain forward pass, and it lies inside the exact ball and [0, 1] to the last bit (`threat.inner_box`).

Budgets nest, so that more is never weaker: restart k + 1 begins after restart k, step sizes depend on the step's
number only, and the random starts of an example are a function of (seed, attack, restart, its index), whatever batch
it comes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .contract import Method, margin
from .errors import BenchError
from .seeding import seed_of

DECAY = 8.0  # step t is step_rel * eps / (1 + t / DECAY): 2.5 radii in 20 steps, and its ends do not depend on how many
_LOOK_EVERY = 5  # steps between looks at who has fallen; each costs a GPU a synchronisation
_NAME = re.compile(r"[a-z0-9_.]{1,40}")


@dataclass(frozen=True)
class AttackConfig:
    """The budget. The default is what a two-core machine can pay for 10,000 images; `thorough()` is for a GPU.

    steps, restarts: of PGD on the deployed net; 0 steps leave it out. Restart 0 starts at the image, others anywhere
    in the ball. step_rel: first step as a fraction of eps, decaying harmonically. surrogates: how many of
    `method.attack_models` are used, in the method's order. paper_steps: of the attack the l_inf-dist papers report,
    run before the others so that its own column can be read off; 0 leaves it out. attack_certified: also attack what
    is certified, which can only expose a wrong certificate; without it the record says so. autoattack: AutoAttack
    (`bench/autoattack.py`) on what is left after all of these.
    """

    steps: int = 20
    restarts: int = 1
    step_rel: float = 0.25
    surrogates: int = 2
    surrogate_steps: int = 20
    surrogate_restarts: int = 1
    paper_steps: int = 0
    attack_certified: bool = True
    autoattack: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "surrogates", "surrogate_steps", "surrogate_restarts", "paper_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= 100_000:
                raise ValueError(f"attack {name} = {value!r} must be a whole number from 0 to 100000")
        if not isinstance(self.autoattack, bool):
            raise ValueError(f"attack autoattack = {self.autoattack!r} must be True or False")
        if not 0 < self.step_rel <= 2:
            raise ValueError(f"attack step_rel = {self.step_rel!r} must lie in (0, 2]; it is a fraction of eps")

    @classmethod
    def thorough(cls) -> AttackConfig:
        """100 steps x 3 restarts on the net and on every surrogate."""
        return cls(steps=100, restarts=3, surrogates=100, surrogate_steps=100, surrogate_restarts=3)


@dataclass(frozen=True)
class Attack:
    """One attack of a suite. `guide` is the surrogate whose gradients are followed, None for the net itself.

    paper: as in attack.py of zbh2047/L_inf-dist-net, for comparison with published columns (linf_dist.md 6.8): cross-
    entropy, a clipped Gaussian start, constant steps, and only the last iterate counts.
    """

    name: str
    steps: int
    restarts: int
    step_rel: float = 0.25
    guide: nn.Module | None = field(default=None, repr=False)
    paper: bool = False

    def settings(self, seed: int) -> dict[str, Any]:
        """Its line in the record."""
        surrogate: dict[str, Any] | None = None
        if self.guide is not None:
            label = self.name.removeprefix("pgd_")
            exponent = re.fullmatch(r"p(\d+(?:\.\d+)?)", label)
            surrogate = {"p": float(exponent[1])} if exponent else {"name": label}
        return {
            "name": self.name,
            "steps": self.steps,
            "restarts": self.restarts,
            "step": f"{self.step_rel:g} eps" + ("" if self.paper else f" / (1 + t / {DECAY:g})"),
            "loss": "cross-entropy, last iterate" if self.paper else "margin",
            "surrogate": surrogate,
            "seed": seed,
        }

    def against(self, net: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, index: Tensor, seed: int) -> Outcome:
        """`run` of this attack."""
        return run(self, net, x, y, ball, index=index, seed=seed)


@dataclass(frozen=True)
class Outcome:
    """broken [B] bool; adversarial [B, C, H, W], meaningful where broken; zero_gradient: share of (example, step)
    pairs whose input gradient was zero in every pixel, a scalar tensor (a sign of gradient masking)."""

    broken: Tensor
    adversarial: Tensor
    zero_gradient: Tensor


def suite(config: AttackConfig, method: Method, net: nn.Module) -> list[Attack]:
    """The attacks a configuration stands for, in the order they run: the net itself, then its surrogates.

    Raises:
        BenchError: a surrogate has an unusable or repeated name.
    """
    attacks = []
    if config.paper_steps:
        attacks.append(Attack("pgd_paper", config.paper_steps, 1, 0.25, paper=True))
    if config.steps and config.restarts:
        attacks.append(Attack("pgd", config.steps, config.restarts, config.step_rel))
    if config.surrogate_steps and config.surrogate_restarts:
        for name, guide in list(method.attack_models(net))[: config.surrogates]:
            if not _NAME.fullmatch(name) or any(a.name == f"pgd_{name}" for a in attacks):
                raise BenchError(f"method {method.name}: attack model {name!r} needs a name of its own, [a-z0-9_.]")
            attacks.append(
                Attack(
                    f"pgd_{name}",
                    config.surrogate_steps,
                    config.surrogate_restarts,
                    config.step_rel,
                    guide=guide.eval(),
                )
            )
    return attacks


@dataclass(frozen=True)
class Ball:
    """Where an attack may go: lower, upper [B, C, H, W] float32, every point of which is allowed.

    reach: the radius that step sizes are fractions of, one for all or per example [B, 1, 1, 1]. A reach of 0 means
    that there is nothing to attack.
    """

    lower: Tensor
    upper: Tensor
    reach: float | Tensor


def run(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, index: Tensor, seed: int) -> Outcome:
    """Attack a batch.

    Args:
        net: the deployed net, in eval mode. x: [B, C, H, W] float32. y: [B] int64.
        ball: around x, usually `threat.inner_box`. If it is a point nothing breaks: x itself is not an attack.
        index: [B] int64, what tells examples apart for ever: their position in the official split.

    Returns:
        Outcome; `broken` as judged by the deployed net in one plain forward pass over the points returned.

    Raises:
        AssertionError: a point left the ball.
    """
    reach = torch.as_tensor(ball.reach, dtype=torch.float32, device=x.device).expand(len(x), 1, 1, 1)
    fight = _Fight(x, y)
    if bool((ball.upper > ball.lower).any()):
        with weights_frozen(net, attack.guide):
            for restart in range(attack.restarts):
                if restart and not fight.standing():
                    break
                here = seed_of(seed, "attack", attack.name, restart)
                noise = uniform_noise(index, x[0].numel(), here).reshape(x.shape)
                _restart(attack, net, fight, noise, ball, reach, from_image=restart == 0 and not attack.paper)
    adversarial = fight.adversarial
    assert bool(((adversarial >= ball.lower) & (adversarial <= ball.upper)).all()), f"{attack.name} left the ball"
    return Outcome(judged(net, adversarial, y, fight.broken), adversarial, fight.zero_share())


# --- one restart ------------------------------------------------------------------------------------------------------


class _Fight:
    """Who still stands, and the first point that felled each of the others."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.adversarial = x.clone()
        self.zeros = torch.zeros((), device=x.device)
        self.gradients = 0

    def standing(self) -> int:
        return int((~self.broken).sum())

    def zero_share(self) -> Tensor:
        return self.zeros / max(1, self.gradients)


def _restart(
    attack: Attack, net: nn.Module, fight: _Fight, noise: Tensor, ball: Ball, reach: Tensor, *, from_image: bool
) -> None:
    """Descend from one start; the examples that fall on the way drop out every few steps."""
    rows = (~fight.broken).nonzero()[:, 0]
    lo, hi, y, stray = ball.lower[rows], ball.upper[rows], fight.y[rows], noise[rows]
    pace = attack.step_rel * reach[rows]
    z = _start(attack, fight.x[rows], lo, hi, stray, reach[rows], from_image)
    drift = torch.where(stray < 0.5, -1.0, 1.0)  # where there is no gradient at all: better any vertex than none
    hit = torch.zeros(len(rows), dtype=torch.bool, device=z.device)
    point = fight.x[rows]
    for t in range(attack.steps + 1):
        last = t == attack.steps
        logits, slope = _slope(attack, net, z, y, last=last)
        if last or (not attack.paper and (t or not from_image)):  # the image itself was judged before
            now = ~(margin(logits, y) > 0) & ~hit  # a NaN is no survival
            point = torch.where(_per_example(now, z), z, point)
            hit = hit | now
        if last:
            break
        assert slope is not None
        dead = (slope == 0).flatten(1).all(dim=1)
        fight.zeros += dead.sum()
        fight.gradients += len(rows)
        direction = torch.where(_per_example(dead, z), drift, slope)
        step = pace if attack.paper else pace / (1 + t / DECAY)
        z = torch.minimum(torch.maximum(z - step * direction, lo), hi)
        if t % _LOOK_EVERY == _LOOK_EVERY - 1 and bool(hit.any()):
            fight.adversarial[rows], fight.broken[rows] = point, hit
            left = ~hit
            rows, z, point, lo, hi = rows[left], z[left], point[left], lo[left], hi[left]
            y, drift, hit, pace = y[left], drift[left], hit[left], pace[left]
            if not len(rows):
                return
    fight.adversarial[rows], fight.broken[rows] = point, hit


def _start(attack: Attack, x: Tensor, lo: Tensor, hi: Tensor, noise: Tensor, reach: Tensor, from_image: bool) -> Tensor:
    """The first iterate: the image, a uniform point of the ball, or the papers' clipped Gaussian."""
    if from_image:
        return x
    if attack.paper:
        normal = torch.erfinv(2 * noise - 1) * 2**0.5
        z = x + torch.clamp(normal * reach / 4, -reach / 2, reach / 2)
    else:
        z = lo + noise * (hi - lo)
    return torch.minimum(torch.maximum(z, lo), hi)


def _slope(attack: Attack, net: nn.Module, z: Tensor, y: Tensor, *, last: bool) -> tuple[Tensor, Tensor | None]:
    """Logits of the deployed net at z, and the sign of the input gradient that the attack follows."""
    if last or attack.guide is not None:
        with torch.no_grad():
            logits = net(z)
        if last:
            return logits, None
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        guided = (attack.guide or net)(leaf)
        (gradient,) = torch.autograd.grad(_objective(attack, guided, y), leaf)
    if attack.guide is None:
        logits = guided.detach()
    return logits, gradient.sign()  # of NaN: 0


def _objective(attack: Attack, logits: Tensor, y: Tensor) -> Tensor:
    """What the attack makes small, summed over the batch."""
    if attack.paper:
        return -nn.functional.cross_entropy(logits, y, reduction="sum")
    return margin(logits, y).sum()


def judged(net: nn.Module, points: Tensor, y: Tensor, claimed: Tensor) -> Tensor:
    """The verdict: which claimed points the deployed net, in a plain forward pass, does not call y."""
    broken = torch.zeros_like(claimed)
    rows = claimed.nonzero()[:, 0]
    if len(rows):
        with torch.no_grad():
            broken[rows] = ~(margin(net(points[rows]), y[rows]) > 0)
    return broken


def _per_example(flag: Tensor, like: Tensor) -> Tensor:
    return flag.reshape(-1, *([1] * (like.ndim - 1)))


@contextmanager
def weights_frozen(*nets: nn.Module | None) -> Iterator[None]:
    """No gradients for weights: an attack needs those of the image only, and a hand-written backward pass that is
    asked for both computes both."""
    learnt = [p for net in nets if net is not None for p in net.parameters() if p.requires_grad]
    try:
        for parameter in learnt:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)


# --- noise ------------------------------------------------------------------------------------------------------------


def uniform_noise(index: Tensor, count: int, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), [B, count] float32: a function of (seed, index[b], column) and nothing else.

    The finaliser of splitmix64 (public domain, Steele et al. 2014) on a counter: the same on every device, in every
    batch and in any order, which no stateful generator is.
    """
    column = torch.arange(count, device=index.device)
    z = index[:, None] * _wrapped(0x9E3779B97F4A7C15) + column * _wrapped(0xD1B54A32D192ED03) + seed  # wraps mod 2^64
    z = (z ^ _shifted(z, 30)) * _wrapped(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _wrapped(0x94D049BB133111EB)
    return _shifted(z ^ _shifted(z, 31), 40).float() * 2.0**-24


def _wrapped(unsigned: int) -> int:
    """An unsigned 64-bit constant as the signed one of the same bits."""
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned


def _shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift right of the bits of an int64."""
    return (z >> by) & ((1 << (64 - by)) - 1)
