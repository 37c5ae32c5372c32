"""The contract between the suite and a method: the one file a plugin author reads.

A method is a class with six members (`name`, `title`, `recipes`, `build`, `loss`, `margin_bound`); everything else
has a working default. `bench new-method NAME` writes an example, `bench check NAME` tests it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .eps import Eps

CLASSES = ("D", "F32", "R")  # best first: deployed bits; every IEEE float32 evaluation; real arithmetic only


@dataclass(frozen=True)
class DataSpec:
    """Shape and statistics of a data set as the network sees it: float32 images [B, C, H, W] in [0, 1].

    `levels` is the number of grey levels (256; 17 for digits), so pixels are k / (levels - 1). `mean` and `std` are per
    channel, of the training images.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: int = 256

    @property
    def pixels(self) -> int:
        """Number of inputs, C * H * W."""
        return self.channels * self.height * self.width

    def cropped(self, side: int) -> DataSpec:
        """The same data set seen through a side x side crop; 0 leaves it whole."""
        return replace(self, height=side, width=side) if side else self


def bounded(
    default: Any, low: float = -math.inf, high: float = math.inf, open_low: bool = False, added: bool = False
) -> Any:
    """A recipe field with a range that `--set` checks: low <= value <= high (low < value with `open_low`).

    `added`: the field came when records had been made. At its default it stays out of a recipe's hash, so that those
    records keep their ids; its default may therefore never change, and must mean what was done without the field.
    """
    return field(default=default, metadata={"low": low, "high": high, "open_low": open_low, "added": added})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All hyper-parameters of one method for one (data set, eps, preset). Subclass it to add fields of your own.

    Raises:
        ValueError: a field has the wrong type or lies outside its range; the message names it.
    """

    dataset: str
    eps: str  # the radius that is certified and attacked, exact
    preset: str  # paper, short, hour or quick
    source: str  # paper table, repository file, or "ours" with how it was tuned
    epochs: int = bounded(1, 1, 100_000)
    batch_size: int = bounded(128, 1, 100_000)
    lr: float = bounded(1e-3, 0.0, 10.0, open_low=True)
    lr_schedule: str = "cosine"  # constant | cosine | step
    lr_hold: float = bounded(0.0, 0.0)  # epochs at the full lr before the cosine starts
    lr_milestones: tuple[float, ...] = ()  # epochs at which `step` multiplies by lr_decay
    lr_decay: float = bounded(0.1, 0.0, 1.0)
    eps_train: float = bounded(0.0, 0.0, 1.0)  # training radius, pixel units; 0 means eps itself
    eps_ramp: tuple[float, float] = (0.0, 0.0)  # epochs between which eps_now climbs from 0 to eps_train
    grad_clip: float = bounded(0.0, 0.0)  # largest l2 norm of the whole gradient; 0 = off
    crop_pad: int = bounded(0, 0, 64)  # random crop after padding by this many pixels
    crop_mode: str = "edge"  # edge | zeros
    crop: int = bounded(0, 0, 512)  # side of the crop the network sees (random in training, centre after); 0 = whole
    flip: bool = False  # random horizontal flip

    def __post_init__(self) -> None:
        from .recipe import check_recipe  # one page of checks that a plugin author need not read

        check_recipe(self)

    @property
    def radius(self) -> Eps:
        """The exact evaluation radius."""
        return Eps(self.eps)

    @property
    def train_radius(self) -> float:
        """The radius that training aims at, pixel units."""
        return self.eps_train or float(self.radius)


@dataclass(frozen=True)
class Step:
    """Where training stands. `iteration` counts optimiser steps from 0 over the whole run."""

    epoch: int
    epochs: int
    iteration: int
    iterations: int
    iterations_per_epoch: int
    eps: Eps  # the exact test radius
    eps_now: float  # the schedule's training radius at this step, pixel units
    recipe: Any  # the method's own Recipe class
    generator: torch.Generator  # seeded by (seed, iteration), on the device of the data

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.iteration / max(1, self.iterations)

    @property
    def epoch_float(self) -> float:
        """Epochs done, with the fraction of the current one: what schedules are written in."""
        return self.iteration / self.iterations_per_epoch


@dataclass(frozen=True)
class Losses:
    """A scalar `loss` to minimise, and named scalars for the log (tensors stay on the device until they are read)."""

    loss: Tensor
    scalars: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """A certificate for a batch.

    lower: [B] float64, lower bound of the margin over the ball; an example is certified iff it is > 0 and the clean
    prediction is right. certificate: what computed it ("interval", "lipschitz", "ibp"). cls: D, F32 or R.
    """

    lower: Tensor
    certificate: str
    cls: str

    def __post_init__(self) -> None:
        if self.cls not in CLASSES:
            raise ValueError(f"cls = {self.cls!r} must be one of {', '.join(CLASSES)}")
        if self.lower.ndim != 1:
            raise ValueError(f"lower has shape {tuple(self.lower.shape)}; a bound per example, [B], is needed")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """f_y - max_{j != y} f_j as the float64 difference of the logits.

    Args:
        logits: [B, K], K >= 2, any float dtype.
        y: [B] int64 labels.

    Returns:
        [B] float64, differentiable. In float64 because a float32 difference can lie below the certified bound of its
        own logits; "> 0" is then exactly "strictly largest".
    """
    own = logits.gather(1, y[:, None])[:, 0]
    hide = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, y[:, None], True)
    best_other = logits.masked_fill(hide, -math.inf).amax(dim=1)
    return own.double() - best_other.double()


class Job(Protocol):
    """What `Method.fit` gets when a method takes over its whole training (see `bench/train.py`)."""

    net: nn.Module
    recipe: Any
    iterations: int

    def batches(self) -> Iterable[tuple[Tensor, Tensor, Step]]: ...

    def log(self, step: Step, scalars: Mapping[str, Tensor | float]) -> None: ...


class Method:
    """A network family, its training objective and its native certificate. Stateless: all state lives in the net."""

    name: ClassVar[str]  # snake_case, unique: "linf_dist"
    title: ClassVar[str]  # as tables print it
    paper: ClassVar[str | None] = None  # citekey in results/published
    norm: ClassVar[str] = "linf"  # the norm its certificate speaks about

    def __init_subclass__(cls, **options: Any) -> None:
        """Certificates refuse wrong images, labels and radii with a ValueError before your code sees them."""
        from .arguments import guard

        super().__init_subclass__(**options)
        guard(cls)

    # --- required -------------------------------------------------------------------------------------------------

    def recipes(self) -> Iterable[Recipe]:
        """Every (data set, eps, preset) this method has hyper-parameters for; at least one `quick`."""
        raise NotImplementedError(f"{type(self).__name__} must define recipes()")

    def build(self, data: DataSpec, recipe: Any) -> nn.Module:
        """A network from images [B, C, H, W] float32 in [0, 1] to logits [B, K]; normalisation lives inside.

        Initial weights come from torch's global generator, which the suite has seeded.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        """The training objective on one batch, x [B, C, H, W] float32, y [B] int64."""
        raise NotImplementedError(f"{type(self).__name__} must define loss()")

    def margin_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> Bound:
        """The headline certificate: a lower bound of the margin over {x' in [0,1]^n : |x' - x|_inf <= eps}."""
        raise NotImplementedError(f"{type(self).__name__} must define margin_bound()")

    # --- optional: certificates and attacks -----------------------------------------------------------------------

    def margin_bounds(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> list[Bound]:
        """Every certificate the method has, the headline first; the record keeps all of them."""
        return [self.margin_bound(net, x, y, eps)]

    def radius(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
        """[B] float64 certified radii in pixel units in closed form, 0 if misclassified; None: the suite bisects."""
        return None

    def attack_models(self, net: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """(name, surrogate) pairs whose gradients bite where the net's own do not; success is judged on the net."""
        return ()

    # --- optional: training ---------------------------------------------------------------------------------------

    def optimizer(self, net: nn.Module, recipe: Any) -> torch.optim.Optimizer:
        """Default: Adam on every parameter."""
        return torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=recipe.lr)

    def lr_factor(self, step: Step) -> float:
        """What every param group's initial lr is multiplied by at this step; default: the recipe's lr_schedule."""
        from .recipe import lr_factor

        return lr_factor(step)

    def eps_schedule(self, recipe: Any, epoch_float: float) -> float:
        """Training radius after `epoch_float` epochs, pixel units; default: linear over recipe.eps_ramp."""
        start, end = recipe.eps_ramp
        if epoch_float >= end:
            return float(recipe.train_radius)
        if epoch_float <= start:
            return 0.0
        return float(recipe.train_radius) * (epoch_float - start) / (end - start)

    def schedule(self, net: nn.Module, step: Step) -> Mapping[str, float]:
        """Called before every step, e.g. to set p; what it returns is shown and logged ({"p": 8.0})."""
        return {}

    def after_step(self, net: nn.Module, step: Step) -> None:
        """Called after every optimiser step, e.g. to project weights."""

    def finish(self, net: nn.Module, recipe: Any, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Called once after training: p = inf, folded statistics. `batches()` iterates over un-augmented images."""

    def fit(self, job: Job) -> None:
        """Take over the whole training, if you must; such a run cannot be resumed in the middle."""
        raise NotImplementedError

    # --- optional: cost -------------------------------------------------------------------------------------------

    def flops(self, net: nn.Module, data: DataSpec) -> int:
        """Operations of one forward pass of one image: a multiply-accumulate or one |x - w| counts 1.

        Default: convolutions and linear layers by their formulas; a layer of your own is counted if it has a method
        `count_ops(inputs: Tensor, output: Tensor) -> int`, given the tensors of a batch of one.
        """
        from .flops import count_ops

        return count_ops(net, data)
