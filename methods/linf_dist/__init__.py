"""l_inf-distance net, ICML 2021 (arXiv 2102.05363): distance layers, mean shift, hinge loss, l_p weight decay.

A neuron computes ||x - w||_inf + b, so the net is 1-Lipschitz in l_inf by construction and half its margin is a
certified radius after one forward pass. It is trained through l_p distances with p growing from 8 to infinity.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from bench import Losses, Recipe, Step, register

from .method import DistMethod, as_dist_net, theta
from .objectives import hinge
from .recipes import v1_recipes
from .training import logged


@register
class LinfDist(DistMethod):
    name, title, paper = "linf_dist", "l_inf-dist net", "zhang2021linf"

    def recipes(self) -> Iterable[Recipe]:
        return v1_recipes()

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        dist_net = as_dist_net(net)
        return logged(dist_net, hinge(dist_net, x, y, theta(dist_net, step), step.recipe.mix))
