"""l_inf-distance net with boosted training, ICLR 2022 (arXiv 2110.06850): clipped hinge plus decaying cross-entropy.

Same network as `linf_dist`; the cross-entropy starts training where the clipped hinge has no gradient, and fades while
p grows, so that in the end the certified error itself is optimised.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from bench import Losses, Recipe, Step, register

from .linf_dist.method import DistMethod, as_dist_net, theta
from .linf_dist.objectives import ramp_cross_entropy
from .linf_dist.recipes import v2_recipes
from .linf_dist.training import logged, mix_at


@register
class LinfDistV2(DistMethod):
    name, title, paper = "linf_dist_v2", "l_inf-dist net, boosted", "zhang2022boosting"
    learns_scale = True

    def recipes(self) -> Iterable[Recipe]:
        return v2_recipes()

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        dist_net = as_dist_net(net)
        weight = mix_at(step.recipe, step.epoch_float)
        return logged(dist_net, ramp_cross_entropy(dist_net, x, y, theta(dist_net, step), weight))
