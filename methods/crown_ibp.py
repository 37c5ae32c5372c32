"""CROWN-IBP (arXiv 1906.06316): linear bounds of the margins over interval bounds of the hidden layers.

margins = beta * CROWN-IBP + (1 - beta) * IBP; beta goes from 1 to beta_end while the radius grows, and below 1e-5 the
backward pass of linear bounds is left out. Loss: kappa * CE(clean) + (1 - kappa) * CE(worst case). The linear bounds
come from auto_LiRPA (engine "auto_lirpa", as published) or from `methods.crown` (engine "own", no extra needed); both
give the same numbers (tests/bench/test_lirpa.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from bench import Bound, Eps, Losses, Recipe, Step, bounded, register

from . import box, crown
from .relu import (
    QUICK,
    ReluMethod,
    ReluRecipe,
    as_relu_net,
    clean_losses,
    kappa_at,
    mixed_losses,
    quick_recipes,
    ramped,
    shortened,
    worst_cross_entropy,
)

PAPER = "arXiv 1906.06316, huanzhang12/CROWN-IBP config"
NO_LINEAR = 1e-5  # beta below which the repository leaves the linear bounds out


@dataclass(frozen=True, kw_only=True)
class CrownRecipe(ReluRecipe):
    """Hyper-parameters of CROWN-IBP training."""

    beta_end: float = bounded(0.0, 0.0, 1.0)  # weight of the linear bounds at the full radius; it starts at 1
    engine: str = field(default="own", metadata={"choices": ("own", "auto_lirpa")})


@register
class CrownIbp(ReluMethod):
    name, title, paper = "crown_ibp", "CROWN-IBP", "zhang2020crownibp"

    def recipes(self) -> Iterator[Recipe]:
        for paper in _paper():
            yield paper
            yield shortened(paper, {"cifar10": 60}.get(paper.dataset, 40))
        yield from _quick()

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        relu_net = as_relu_net(net)
        if step.eps_now == 0:
            return clean_losses(relu_net(x), y)
        kappa, beta = kappa_at(step), 1 - (1 - step.recipe.beta_end) * ramped(step)
        linear = beta >= NO_LINEAR
        own = step.recipe.engine == "own"
        # Before our own pass: building auto_LiRPA's copy touches the weights, which autograd would call an accident.
        foreign = None if own or not linear else _foreign_margins(relu_net, x, y, step.eps_now)
        passed = box.run(relu_net, x, step.eps_now, clean=kappa > 0, tape=linear and own)
        margins = passed.margins(y)
        if linear:
            better = crown.crown_ibp_margins(passed, y) if foreign is None else foreign
            margins = beta * better + (1 - beta) * margins
        return mixed_losses(passed, y, worst_cross_entropy(margins, y), kappa, margins, beta=beta)

    def margin_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> Bound:
        return crown.crown_ibp_bound(as_relu_net(net), x, y, eps)

    def margin_bounds(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> list[Bound]:
        return crown.both_bounds(as_relu_net(net), x, y, eps)

    def radius(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return crown.certified_radius(as_relu_net(net), x, y)


def _foreign_margins(net: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """CROWN-IBP margins through auto_LiRPA, [B, K], 0 at the label; differentiable."""
    from bench import lirpa

    relu_net = as_relu_net(net)
    lower, upper = (x - radius).clamp(min=0.0), (x + radius).clamp(max=1.0)  # trains only
    trainer = lirpa.trainer(relu_net.layers, relu_net.normalize, tuple(x.shape[1:]))
    return trainer.crown_ibp_margins(lower, upper, y)


def _paper() -> Iterator[CrownRecipe]:
    """DM-large. The repository's CIFAR-10 runs step once per two batches; epochs here are its epochs.

    None for TinyImageNet: 199 rows of linear bounds per image take some 0.3 GB in the first layers alone, so a batch
    fits no GPU; that is what `crown_ibp_fusion` is for.
    """
    mnist = CrownRecipe(
        dataset="mnist", eps="0.3", preset="paper", source=f"{PAPER}/mnist_dm-large_0.4", arch="dm_large", epochs=200,
        batch_size=256, lr=5e-4, lr_schedule="step", lr_milestones=(130.0, 190.0), eps_train=0.4, eps_ramp=(10.0, 60.0),
        kappa_end=0.5, engine="auto_lirpa",
    )  # fmt: skip
    yield replace(
        mnist, eps="0.1", source=f"{PAPER}/mnist_dm-large_0.2", epochs=100, batch_size=100, lr=1e-3, eps_train=0.2,
        lr_milestones=(25.0, 42.0), eps_ramp=(3.0, 20.0),
    )  # fmt: skip
    for eps in ("0.2", "0.3", "0.4"):
        yield replace(mnist, eps=eps)
    robust: dict[str, Any] = {"kappa_start": 0.0, "kappa_end": 0.0}  # the repository's "robust": no clean term
    yield replace(
        mnist, dataset="fashion_mnist", eps="0.1", eps_train=0.11, source="ours: the MNIST 0.3 schedule", **robust
    )
    cifar = replace(
        mnist, dataset="cifar10", eps="8/255", source=f"{PAPER}/cifar_dm-large_8_255", epochs=3200, batch_size=512,
        lr_milestones=(2600.0, 3040.0), eps_train=8.8 / 255, eps_ramp=(320.0, 1920.0), eps_shape="smoothed",
        crop_pad=4, crop_mode="zeros", flip=True, **robust,
    )  # fmt: skip
    yield replace(cifar, eps="2/255", source=f"{PAPER}/cifar_dm-large_2_255", eps_train=2.2 / 255, beta_end=1.0)
    yield cifar
    yield replace(cifar, eps="16/255", eps_train=17.6 / 255, source=f"{PAPER}/cifar_dm-large_8_255 at twice the radius")


# (data set, eps): what differs from the base below; a source of its own says that and how it was tuned.
_QUICK: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "0.1"): {
        "arch": "mlp", "epochs": 150, "batch_size": 64, "lr": 3e-3, "eps_train": 0.11, "eps_ramp": (0.0, 40.0),
        "source": "ours: tuned on the validation split, n = 144: clean 96.53, certified 83.33, 27 CPU-s",
    },
    ("synthetic", "0.1"): {"arch": "mlp", "hidden": (64,), "epochs": 8},
    # An epoch with linear bounds costs twelve with intervals alone, so the ramp is short and the rest long.
    ("mnist", "0.1"): {"epochs": 14, "eps_train": 0.12, "eps_ramp": (0.0, 1.5)},
    ("mnist", "0.3"): {"epochs": 12, "eps_train": 0.33, "eps_ramp": (0.0, 2.0)},
    ("fashion_mnist", "0.1"): {"epochs": 14, "eps_train": 0.11, "eps_ramp": (0.0, 1.5)},
    ("cifar10", "2/255"): {
        "epochs": 10, "eps_train": 2.2 / 255, "eps_ramp": (0.0, 1.0), "crop_pad": 2, "flip": True,
    },
    ("cifar10", "8/255"): {
        "epochs": 10, "eps_train": 8.8 / 255, "eps_ramp": (0.0, 1.0), "crop_pad": 2, "flip": True,
    },
}  # fmt: skip


def _quick() -> Iterator[CrownRecipe]:
    return quick_recipes(CrownRecipe(**QUICK, arch="conv_small", kappa_start=0.0), _QUICK, ramp=0.4)
