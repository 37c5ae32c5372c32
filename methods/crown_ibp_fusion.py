"""Loss fusion (arXiv 2002.12920): the worst-case cross-entropy bounded as one number, so one row of linear bounds does.

Loss: log(share * linear + (1 - share) * interval), share from 1 to 0 while the radius grows; plain intervals after the
ramp. Fusion is for training only: the certificate is by class margins, not fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bench import Losses, Recipe, Step, register

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
)

PAPER = "arXiv 2002.12920, auto_LiRPA examples/vision"
NETS = "; its other three nets by --set arch=cnn7_bn_imagenet, resnext or densenet"


@register
class CrownIbpFusion(ReluMethod):
    name, title, paper = "crown_ibp_fusion", "CROWN-IBP (loss fusion)", "xu2020autolirpa"

    def recipes(self) -> Iterator[Recipe]:
        for paper in _paper():
            yield paper
            if paper.dataset == "tinyimagenet":  # an hour is six epochs of the WideResNet: the CNN7 of the same table
                source = f"ours: {paper.source} in 60 epochs, on CNN7"
                yield shortened(paper, 60, arch="cnn7_bn_imagenet", source=source)
            else:
                yield shortened(paper, 70)
        yield from _quick()

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        relu_net = as_relu_net(net)
        if step.eps_now == 0:
            return clean_losses(relu_net(x), y)
        kappa, share = kappa_at(step), 1 - ramped(step)
        passed = box.run(relu_net, x, step.eps_now, clean=kappa > 0, tape=share > 0)
        fused = crown.fused_cross_entropy(passed, y, share)
        return mixed_losses(passed, y, fused, kappa, passed.margins(y), share=share)


def _paper() -> Iterator[ReluRecipe]:
    """The two cells that were published; with ten classes `crown_ibp` is affordable too and has the others."""
    cifar = ReluRecipe(
        dataset="cifar10", eps="8/255", preset="paper", source=f"{PAPER}/cifar_training.py", arch="cnn7_bn",
        epochs=2000, batch_size=256, lr=5e-4, lr_schedule="step", lr_milestones=(1400.0, 1700.0), eps_train=8.8 / 255,
        eps_ramp=(100.0, 901.0), eps_shape="smoothed", eps_mid=0.4, kappa_start=0.0, grad_clip=8.0, crop_pad=4,
        flip=True,
    )  # fmt: skip
    yield cifar
    # Milestones 600 and 700 of the script lie at and behind its end.
    yield replace(
        cifar, dataset="tinyimagenet", eps="1/255", source=f"{PAPER}/tinyimagenet_training.py{NETS}",
        arch="wide_resnet", epochs=600, batch_size=128, lr_schedule="constant", lr_milestones=(),
        eps_train=1.0 / 255, eps_ramp=(99.0, 499.0), crop=56, crop_pad=0,
    )  # fmt: skip


# (data set, eps): what differs from the base below; a source of its own says that and how it was tuned.
_QUICK: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "0.1"): {
        "arch": "mlp", "epochs": 150, "batch_size": 64, "lr": 3e-3, "eps_train": 0.11,
        "source": "ours: tuned on the validation split, n = 144: clean 97.92, certified 80.56, 24 CPU-s",
    },
    ("synthetic", "0.1"): {"arch": "mlp", "hidden": (64,), "epochs": 10},
    ("mnist", "0.1"): {"epochs": 10, "eps_train": 0.15},
    ("mnist", "0.3"): {"epochs": 10, "eps_train": 0.35},
    ("fashion_mnist", "0.1"): {"epochs": 10, "eps_train": 0.11},
    ("cifar10", "2/255"): {"epochs": 10, "eps_train": 2.2 / 255, "crop_pad": 2, "flip": True},
    ("cifar10", "8/255"): {"epochs": 10, "eps_train": 8.8 / 255, "crop_pad": 2, "flip": True},
}  # fmt: skip


def _quick() -> Iterator[ReluRecipe]:
    return quick_recipes(ReluRecipe(**QUICK, arch="dm_small", kappa_start=0.0), _QUICK, ramp=0.4)
