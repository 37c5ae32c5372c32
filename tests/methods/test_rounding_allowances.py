"""Each allowance for float32 rounding in class F32 by itself: the deployed value lies within bounds of a single point.

Random nets leave far more room than rounding takes, so only layers alone, at radius 0, show that an allowance is there.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench import DataSpec, Eps, margin, registry
from methods import crown, interval_net
from methods.groupsort import GroupSortNet
from methods.groupsort_bounds import interval_bound
from methods.nets import Normalize, ReluNet, Residual


def holds(module: nn.Module, x: Tensor) -> None:
    """What the layer computes in float32 lies inside; somewhere it is not the real value, or nothing was tested."""
    module.eval()
    with torch.no_grad():
        deployed = module(x).double()
        lower, upper = interval_net._layer(module, (x.double(), x.double()), None)
        real = module.double()(x.double())
    assert bool((deployed != real).any()), "nothing was rounded: the test is toothless"
    assert bool(((lower <= deployed) & (deployed <= upper)).all())
    assert float(((upper - lower) / (x.abs().max() + deployed.abs())).max()) < 1e-5


@pytest.mark.parametrize("kernel", [2, 3])
def test_an_average(kernel: int) -> None:
    torch.manual_seed(0)
    holds(nn.AvgPool2d(kernel), torch.randn(64, 4, 12, 12))


def test_a_sum_of_branches() -> None:
    """x + x is exact, (x + x) + x is not."""
    twice = Residual(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Identity()))
    torch.manual_seed(0)
    holds(Residual(nn.Sequential(twice), nn.Sequential(nn.Identity())), torch.rand(64, 4, 12, 12))


def test_normalisation() -> None:
    torch.manual_seed(0)
    holds(Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), torch.rand(64, 3, 16, 16))


def test_a_batch_norm_whose_roundings_add_up() -> None:
    """Without a mean and a bias every rounding counts in full: some are off by three units."""
    torch.manual_seed(0)
    module = nn.BatchNorm2d(64)
    with torch.no_grad():
        assert module.running_var is not None
        module.running_var.uniform_(0.1, 4)
        module.weight.uniform_(0.5, 2)
    holds(module, torch.randn(8, 64, 8, 8))


def test_a_batch_norm_whose_scale_underflows() -> None:
    """A subnormal scale is off by an absolute amount, which a large input multiplies."""
    module = nn.BatchNorm1d(1)
    with torch.no_grad():
        assert module.running_var is not None
        module.weight.fill_(2.0**-126)
        module.running_var.fill_((2.0**23 / 1.5) ** 2)
    module.eval()
    x = torch.full((1, 1), 2.0**100)
    with torch.no_grad():
        deployed = module(x).double()
    lower, upper = interval_net._layer(module, (x.double(), x.double()), None)
    assert bool(((lower <= deployed) & (deployed <= upper)).all())


def test_an_average_whose_sum_overflows_has_no_bounds() -> None:
    """Four times 1.2e38 is infinite in float32, whatever a quarter of it would be."""
    x = torch.full((1, 1, 2, 2), 1.2e38)
    assert torch.nn.functional.avg_pool2d(x, 2).isinf().all()
    lower, upper = interval_net._layer(nn.AvgPool2d(2), (x.double(), x.double()), None)
    assert bool((lower == -torch.inf).all() & (upper == torch.inf).all())
    safe = interval_net._layer(nn.AvgPool2d(2), (x.double() / 10, x.double() / 10), None)
    assert bool(safe[0].isfinite().all())


def test_the_hidden_layers_of_linear_bounds() -> None:
    """A thousand terms that cancel to about 1, then a last layer that rounds next to nothing. No ReLU switches, so
    CROWN-IBP's bound is the real margin less the hidden layer's allowance, and deployed margins lie below the real one.
    """
    torch.manual_seed(0)
    hidden = nn.Linear(1024, 2)
    net = ReluNet(None, nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(2, 2))).eval()
    half = torch.randn(2, 512)
    with torch.no_grad():
        hidden.weight.copy_(torch.stack([half, -half], dim=2).flatten(1))
        hidden.bias.copy_(torch.tensor([2.0, 1.0]))
        net.head.weight.copy_(torch.eye(2))
        net.head.bias.zero_()
    pairs = torch.rand(256, 512, 1) * 0.9 + torch.rand(256, 512, 2) * 1e-3
    x, y = pairs.reshape(256, 1, 32, 32), torch.zeros(256, dtype=torch.int64)
    bound = crown.crown_ibp_bound(net, x, y, Eps("0")).lower
    with torch.no_grad():
        deployed = margin(net(x), y)
        real = margin(net.double()(x.double()), y)
    assert bool((deployed < real - 1e-6).any()) and bool((deployed > 0.5).all())
    assert bool((bound <= deployed).all())
    assert float((deployed - bound).max()) < 0.1


def test_the_factor_on_the_logits_of_groupsort() -> None:
    """Product, sum and factor, one rounding each, all near their worst: the sum's own allowance is two of three."""
    recipe = next(r for r in registry.recipes(registry.get("groupsort")) if r.dataset == "digits")
    data = DataSpec("one", 1, 1, 1, 2, (0.0,), (1.0,))
    net = GroupSortNet(data, replace(recipe, widths=(2,)))
    layer = nn.Linear(1, 2)
    net.linears = nn.ModuleList([layer])  # the logits at once, no hidden layer to hide behind
    net.eval()
    with torch.no_grad():
        net.factor.fill_(1.0182495)
        layer.weight.copy_(torch.tensor([[1.0293336], [0.0]]))
        layer.bias.copy_(torch.tensor([0.05402845, 0.0]))
    x = torch.arange(0.92, 1.0, 2.0**-22).reshape(-1, 1, 1, 1)
    bound = interval_bound(net, x, torch.zeros(len(x), dtype=torch.int64), Eps("0")).lower
    deployed = (x.flatten() * layer.weight[0, 0] + layer.bias[0]) * net.factor  # no fused product: an allowed way
    assert bool((bound <= deployed.double()).all())
