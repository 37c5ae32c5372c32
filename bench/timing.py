"""What a training would take here: a few real steps at several points of its schedule, extrapolated.

Steps get dearer and cheaper along a schedule (p grows, a bound joins the loss), so each phase is timed by itself. The
images are noise with the data set's mean and spread: no file is read.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attack import AttackConfig
from .contract import DataSpec, Method, Step, margin
from .data import Split
from .errors import BenchError
from .progress import Progress
from .train import Loop, in_training_thread, make_step, seed_everything

PHASES = 6  # points of the schedule, in the middle of equal parts
SMALL = 2  # images of the first, careful step: a paper's net takes minutes per batch on a CPU (and BN needs 2)
GROWTH = 8
HOPELESS_S = 60.0  # a first step of so many seconds is not repeated
TOO_SLOW_S = 10.0  # where a step of two images takes so long, nothing larger is tried
STEPS = 3  # timed steps per phase; the fastest counts, the others met the neighbours
CERTIFY_IMAGES = 8  # certified once, for the estimate
SEARCH_BOUNDS = 10  # rounds of certify.grid_radii
EVAL_IMAGES = 32


@dataclass(frozen=True)
class Timing:
    """Measured steps and what follows from them.

    step_s: seconds per optimiser step of a whole batch at each phase. batch: images in the timed batches; where it is
    smaller than the recipe's, times are scaled by their ratio.
    """

    params: int
    flops: int | None
    step_s: tuple[float, ...]
    batch: int
    recipe_batch: int
    per_epoch: int
    epochs: int
    steps: int
    eval_s: float
    at_least: bool = False  # one step took so long that only a lower bound is known

    @property
    def s_per_epoch(self) -> float:
        """Mean over the phases."""
        return statistics.fmean(self.step_s) * self.per_epoch

    @property
    def train_s(self) -> float:
        """Seconds of the whole training."""
        return self.s_per_epoch * self.epochs

    @property
    def how(self) -> str:
        """One phrase that says what was measured."""
        if self.at_least:
            return f"one step of {self.batch} images, a lower bound"
        part = f" of {self.batch} images, scaled to {self.recipe_batch}" if self.batch < self.recipe_batch else ""
        return f"{self.steps} timed steps{part} at {len(self.step_s)} points of the schedule"


class Timer:
    """Times one recipe; several can be interleaved, so that a slow minute of the machine hits all of them."""

    def __init__(self, method: Method, recipe: Any, spec: DataSpec, n_train: int, device: torch.device) -> None:
        self.method, self.recipe, self.device = method, recipe, device
        self.spec = spec.cropped(recipe.crop)
        self.per_epoch = -(-n_train // recipe.batch_size)
        self.times: list[list[float]] = [[] for _ in range(PHASES)]
        self.steps = 0
        self.batch = min(SMALL, recipe.batch_size)
        self.scale, self.at_least = 1.0, False
        seed_everything(0, "timing")
        self.net = method.build(self.spec, recipe).to(device)
        self.x, self.y = self._noise(recipe.batch_size)
        split = Split(torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=device), self.y[:1], self.y[:1], spec.levels)
        quiet = Progress(quiet=True)
        self.loop = Loop(
            method, recipe, self.net, split, self.spec, 0, recipe.radius, None, quiet, should_stop=lambda: False
        )
        if type(method).fit is not Method.fit:
            raise BenchError(f"method {method.name} trains by itself (fit); its steps cannot be timed")
        self.loop.prepare()

    def run(self, budget_s: float) -> None:
        """One round over all phases, about `budget_s` seconds; more where a single step takes longer."""
        in_training_thread(self.device, lambda: self._round(budget_s))

    def _round(self, budget_s: float) -> None:
        if not self.steps:
            self._grow(budget_s)
        end = time.perf_counter() + budget_s
        for place in (0, PHASES - 1, *range(1, PHASES - 1)):  # the ends first, if time is short
            left = end - time.perf_counter()
            if self.times[0] and (left <= 0 or self.at_least):
                return
            took = self._step(place)  # another p may mean another kernel: this one warms it up
            count = min(STEPS, int(left / PHASES / max(took, 1e-9)))
            self.times[place] += [self._step(place) for _ in range(count)] or [took]

    def _grow(self, budget_s: float) -> None:
        """Find the batch that the budget allows: the recipe's, or fewer images and a factor to scale by.

        A step costs a constant (the optimiser) plus something per image; two sizes tell the two apart.
        """
        first = self._step(0)  # cold: a kernel may be compiled in it
        now = first if first > HOPELESS_S else self._step(0)
        if now > TOO_SLOW_S:
            self.at_least = True
            self.times[0].append(now)
            return
        per_image = now / self.batch
        while self.batch < self.recipe.batch_size:
            larger, smaller, before = min(self.recipe.batch_size, GROWTH * self.batch), self.batch, now
            if smaller > SMALL and larger * per_image * 2 * PHASES > budget_s:
                break
            self.batch = larger
            now = min(self._step(0), self._step(0)) if before < budget_s / PHASES else self._step(0)
            per_image = max(0.0, (now - before) / (larger - smaller))
        self.scale = (now + per_image * (self.recipe.batch_size - self.batch)) / max(now, 1e-9)

    def _at(self, share: float) -> Step:
        """The step after that share of the training."""
        iterations = self.recipe.epochs * self.per_epoch
        return make_step(
            self.recipe,
            self.method,
            iteration=min(iterations - 1, int(share * iterations)),
            per_epoch=self.per_epoch,
            eps=self.recipe.radius,
            generator=torch.Generator(self.device).manual_seed(0),
        )

    def _step(self, place: int) -> float:
        """Seconds of one step at a phase, with the batch as it is."""
        step = self._at((place + 0.5) / PHASES)
        began = _now(self.device)
        self.loop.step_on(self.x[: self.batch], self.y[: self.batch], step)
        self.steps += 1
        return _now(self.device) - began

    def result(self, n_eval: int, attacks: AttackConfig | None = None) -> Timing:
        """What the rounds so far say."""
        self.method.schedule(self.net, self._at(1.0))
        self.method.finish(self.net, self.recipe, lambda: [self.x[: max(self.batch, 1)]])  # as it will be evaluated
        self.net.eval()
        known = [self.scale * min(t) if t else None for t in self.times]
        filled = [t if t is not None else _between(known, i) for i, t in enumerate(known)]
        try:
            flops: int | None = int(self.method.flops(self.net, self.spec))
        except ValueError:
            flops = None
        return Timing(
            params=sum(p.numel() for p in self.net.parameters()),
            flops=flops,
            step_s=tuple(filled),
            batch=self.batch,
            recipe_batch=self.recipe.batch_size,
            per_epoch=self.per_epoch,
            epochs=self.recipe.epochs,
            steps=self.steps,
            eval_s=0.0 if self.at_least else self._eval_s(n_eval, attacks or AttackConfig()),
            at_least=self.at_least,
        )

    def _eval_s(self, n: int, attacks: AttackConfig) -> float:
        """Seconds to certify and attack n images: by a few bounds and radii, and by one gradient of each net."""
        guides: list[nn.Module] = [guide for _, guide in self.method.attack_models(self.net)][: attacks.surrogates]
        total = self._gradient_s(self.net) * attacks.steps * attacks.restarts
        total += sum(map(self._gradient_s, guides)) * attacks.surrogate_steps * attacks.surrogate_restarts
        return (total + self._certify_s()) * n

    @torch.no_grad()
    def _certify_s(self) -> float:
        """Seconds per image of its certificates and radius; every answer counts as right, so that none is skipped."""
        images = min(CERTIFY_IMAGES, len(self.x))
        x = self.x[:images]
        y = self.net(x).argmax(dim=1)
        began = _now(self.device)
        self.method.margin_bounds(self.net, x, y, self.recipe.radius)
        each = _now(self.device) - began
        closed = self.method.radius(self.net, x, y) is not None
        both = _now(self.device) - began
        return (both if closed else each * (1 + SEARCH_BOUNDS)) / images

    def _gradient_s(self, net: nn.Module) -> float:
        """Seconds per image of one gradient with respect to the image."""
        images = min(EVAL_IMAGES, len(self.x), max(self.batch, 1))
        x, y = self.x[:images].clone().requires_grad_(), self.y[:images]
        times = []
        for _ in range(2):
            began = _now(self.device)
            torch.autograd.grad(margin(net(x), y).sum(), x)
            times.append(_now(self.device) - began)
        return min(times) / images

    def _noise(self, rows: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (rows, self.spec.channels, self.spec.height, self.spec.width)
        noise = torch.randn(shape, generator=generator, device=self.device)
        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (self.spec.mean, self.spec.std))
        levels = self.spec.levels - 1
        x = ((noise * std + mean).clamp(0, 1) * levels).round() / levels
        return x, torch.arange(rows, device=self.device) % self.spec.classes


def _between(known: list[float | None], place: int) -> float:
    """Linear between the nearest phases that were timed."""
    timed = [(i, t) for i, t in enumerate(known) if t is not None]
    below = max((p for p in timed if p[0] < place), default=timed[0])
    above = min((p for p in timed if p[0] > place), default=timed[-1])
    if above[0] == below[0]:
        return below[1]
    return below[1] + (above[1] - below[1]) * (place - below[0]) / (above[0] - below[0])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
