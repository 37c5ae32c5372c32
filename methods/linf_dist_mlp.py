"""l_inf-distance net with an MLP head (Net+MLP), ICML 2021 (arXiv 2102.05363): worst-case cross-entropy.

Distance features are 1-Lipschitz; the small head is bounded by interval arithmetic, so the certificate is F32.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from bench import Losses, Recipe, Step, register

from .linf_dist.method import DistMethod, as_dist_net
from .linf_dist.objectives import worst_case_cross_entropy
from .linf_dist.recipes import mlp_recipes
from .linf_dist.training import logged


@register
class LinfDistMlp(DistMethod):
    name, title, paper = "linf_dist_mlp", "l_inf-dist net + MLP", "zhang2021linf"

    def recipes(self) -> Iterable[Recipe]:
        return mlp_recipes()

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        dist_net = as_dist_net(net)
        radius = step.eps_now / dist_net.normalize.scalar_std
        return logged(dist_net, worst_case_cross_entropy(dist_net, x, y, radius, step.recipe.kappa))
