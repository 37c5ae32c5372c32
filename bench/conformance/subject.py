"""What is being checked: a method, its cheapest recipe, images that fit, a network briefly trained on them."""

from __future__ import annotations

import dataclasses
import time
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .. import registry
from ..contract import DataSpec, Method, Recipe, Step
from ..data import Split, center_crop, load, names, spec
from ..data.catalogue import entry
from ..errors import BenchError
from ..progress import Progress
from ..seeding import seed_of
from ..state import StateStore
from ..train import make_step, seed_everything, train

SEED = 0
BATCH = 32  # images per step of the short trainings ...
STEP_S = 0.5  # ... or as many as take about this long
LEAST_BATCH = 4
TRAIN_S = 15.0  # what the one longer training may cost
_PRESETS = ("quick", "hour", "short", "paper")  # cheapest first


class Breach(Exception):
    """The contract is broken; the message says how, where and what to do, in one line."""


class NotApplicable(Exception):
    """The method has nothing for this check to look at."""


class Subject:
    """A method under test. imported: what importing it changed in the process. All checks share its one network."""

    def __init__(self, method: Method, imported: list[str]) -> None:
        self.method, self.imported = method, imported
        self.name = method.name
        self._trained: nn.Module | BaseException | None = None

    @cached_property
    def recipes(self) -> list[Recipe]:
        """Every recipe, cheapest preset and smallest images first.

        Raises:
            Breach: there is none. PluginError: recipes() is broken.
        """
        found = registry.recipes(self.method)
        if not found:
            raise Breach("recipes() yields none; at least one quick recipe is needed")
        return sorted(found, key=lambda r: (_PRESETS.index(r.preset), seen_by(r).pixels))

    @cached_property
    def recipe(self) -> Recipe:
        """The one that is checked."""
        return self.recipes[0]

    @cached_property
    def data(self) -> DataSpec:
        """What its network sees."""
        return seen_by(self.recipe)

    @cached_property
    def split(self) -> Split:
        """Training images of its data set; drawn up where the data set would have to be fetched."""
        if entry(self.recipe.dataset).embedded:
            return load(self.recipe.dataset).train.subset(torch.arange(4 * BATCH))
        return pictures(spec(self.recipe.dataset), 4 * BATCH)

    @cached_property
    def batch(self) -> int:
        """Images per step that this network affords."""
        net, (x, _) = self.build().train(), self.pixels(LEAST_BATCH)
        net(x).sum().backward()
        started = time.monotonic()
        net(x).sum().backward()
        per_image = 3 * (time.monotonic() - started) / LEAST_BATCH  # a certified loss costs two or three plain passes
        return max(LEAST_BATCH, min(BATCH, int(STEP_S / per_image)))

    def pixels(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images as the net sees them in evaluation, [B, C, H, W] float32, and their labels [B]."""
        part = self.split.subset(torch.arange(count))
        cropped = Split(center_crop(part.images, self.recipe.crop), part.labels, part.index, part.levels)
        return cropped.pixels(slice(None)), part.labels.clone()

    def build(self, seed: int = SEED, recipe: Recipe | None = None, method: Method | None = None) -> nn.Module:
        """A fresh network, its initial weights drawn as a run of that seed draws them."""
        recipe = recipe or self.recipe
        seed_everything(seed, "init")
        net = (method or self.method).build(seen_by(recipe), recipe)
        if not isinstance(net, nn.Module):
            raise Breach(f"build() returns a {type(net).__name__}, not a torch.nn.Module")
        return net

    def short(self, epochs: int, batch_size: int) -> Recipe:
        """The recipe with fewer epochs and smaller batches, as far as it allows."""
        batch_size = min(batch_size, self.recipe.batch_size)
        try:
            return dataclasses.replace(self.recipe, epochs=min(epochs, self.recipe.epochs), batch_size=batch_size)
        except ValueError:  # its schedules do not fit into so few
            return dataclasses.replace(self.recipe, batch_size=batch_size)

    def step(self, recipe: Recipe, iteration: int, per_epoch: int) -> Step:
        """The `Step` of an iteration."""
        generator = torch.Generator().manual_seed(seed_of(SEED, "generator", iteration))
        eps = recipe.radius
        return make_step(recipe, self.method, iteration=iteration, per_epoch=per_epoch, eps=eps, generator=generator)

    def train(self, recipe: Recipe, images: int, *, seed: int = SEED, **options: Any) -> nn.Module:
        """A fresh network trained by the suite's own loop on the first `images` images, and finished."""
        store: StateStore | None = options.pop("store", None)
        method: Method = options.pop("method", self.method)
        net = self.build(seed, recipe, method)
        train(
            method,
            recipe,
            net,
            self.split.subset(torch.arange(images)),
            spec=self.data,
            seed=seed,
            eps=recipe.radius,
            store=store,
            progress=Progress(quiet=True),
            **options,
        )
        return net

    @property
    def net(self) -> nn.Module:
        """A network trained for a few seconds, finished and in eval mode.

        Raises:
            Breach: training it failed before; the check of training says why.
        """
        if self._trained is None:
            try:
                self._trained = self._train_a_while().eval()
            except Exception as error:
                self._trained = error
                raise
        if isinstance(self._trained, BaseException):
            raise Breach("no trained network to look at, training it failed (see above)")
        return self._trained

    def _train_a_while(self) -> nn.Module:
        """The whole recipe on a few images where that takes seconds, else its beginning."""
        started = time.monotonic()
        self.train(self.short(1, self.batch), 2 * self.batch)
        per_epoch = max(time.monotonic() - started, 1e-3)
        return self.train(self.short(max(2, int(TRAIN_S / per_epoch)), self.batch), 2 * self.batch)


def seen_by(recipe: Recipe) -> DataSpec:
    """The images a recipe's network takes.

    Raises:
        Breach: the data set does not exist.
    """
    if recipe.dataset not in names():
        raise Breach(
            f'a recipe is for data set "{recipe.dataset}", which does not exist; there are {", ".join(names())}'
        )
    try:
        return spec(recipe.dataset).cropped(recipe.crop)
    except BenchError as error:
        raise Breach(str(error)) from error


def pictures(data: DataSpec, count: int) -> Split:
    """Images that look like classes: a random coarse pattern for each of up to 10 labels, with noise. uint8 levels."""
    generator = torch.Generator().manual_seed(seed_of("pictures", data.name))
    labels = torch.arange(count) % min(data.classes, 10)
    coarse = torch.rand(10, data.channels, 4, 4, generator=generator)
    pattern = nn.functional.interpolate(coarse, size=(data.height, data.width))[labels]  # [N, C, H, W]
    noise = torch.rand(pattern.shape, generator=generator)
    images = ((0.8 * pattern + 0.2 * noise) * (data.levels - 1)).round().to(torch.uint8)
    return Split(images, labels, torch.arange(count), data.levels)
