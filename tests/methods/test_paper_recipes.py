"""Paper recipes on their real architectures: a step in the middle of the ramp, and a certificate (slow)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from bench import Recipe, Step, registry, threat
from bench.data import spec

METHODS = ("standard", "pgd", "ibp", "ibp_shi", "crown_ibp", "crown_ibp_fusion", "groupsort")


def distinct() -> Iterator[tuple[str, Recipe]]:
    """One recipe per method, data set and architecture; loss fusion also with its other three nets."""
    from dataclasses import replace

    seen = set()
    for name in METHODS:
        for recipe in registry.recipes(registry.get(name)):
            key = (name, recipe.dataset, getattr(recipe, "arch", ""))
            if recipe.preset == "paper" and key not in seen:
                seen.add(key)
                yield name, recipe
                if key == ("crown_ibp_fusion", "tinyimagenet", "wide_resnet"):
                    for arch in ("cnn7_bn_imagenet", "resnext", "densenet"):
                        yield name, replace(recipe, arch=arch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"), list(distinct()), ids=[f"{n}-{r.dataset}-{getattr(r, 'arch', 'fc')}" for n, r in distinct()]
)
def test_a_step_and_a_certificate_on_the_real_architecture(
    name: str, recipe: Recipe, make_step: Callable[..., Step]
) -> None:
    method, data = registry.get(name), spec(recipe.dataset).cropped(recipe.crop)
    if getattr(recipe, "engine", "own") == "auto_lirpa":
        from bench import lirpa

        if not lirpa.is_installed():
            pytest.skip(f"auto_LiRPA is not installed: {lirpa.INSTALL}")
    torch.manual_seed(0)
    net = method.build(data, recipe).train()
    x = threat.levels_table(256)[torch.randint(0, 256, (2, data.channels, data.height, data.width))]
    y = torch.tensor([0, 1])
    step = make_step(recipe, method, sum(recipe.eps_ramp) / 2)
    optimizer = method.optimizer(net, recipe)
    losses = method.loss(net, x, y, step)
    losses.loss.backward()
    assert bool(torch.isfinite(losses.loss))
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    optimizer.step()
    method.after_step(net, step)
    with torch.no_grad():
        assert bool(torch.isfinite(method.margin_bound(net.eval(), x[:1], y[:1], recipe.radius).lower).all())
