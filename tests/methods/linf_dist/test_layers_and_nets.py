"""Distance layers and nets: what the papers say must hold."""

import dataclasses
import math

import pytest
import torch

from bench import DataSpec
from bench.flops import count_ops
from methods.linf_dist.layers import DistConv2d, DistLinear, MeanShift, Normalize
from methods.linf_dist.nets import DistNet, Smoothed
from methods.linf_dist.recipes import DistRecipe, mlp_recipes, v1_recipes, v2_recipes

SHAPES = {"mnist": (1, 28, 10), "fashion_mnist": (1, 28, 10), "cifar10": (3, 32, 10), "tinyimagenet": (3, 56, 200)}
ROUNDING = 1e-5  # float32 nets compared in real arithmetic: a few ulps of distances near 10


def spec_of(name: str) -> DataSpec:
    channels, side, classes = SHAPES[name]
    return DataSpec(name, channels, side, side, classes, (0.5,) * channels, (0.25,) * channels)


def tiny_recipe(**changes: object) -> DistRecipe:
    base = DistRecipe(dataset="synthetic", eps="0.1", preset="quick", source="test", widths=(12, 9), identity=0.0)
    return dataclasses.replace(base, **changes)


def tiny_net(seed: int = 0, **changes: object) -> DistNet:
    torch.manual_seed(seed)
    return DistNet(DataSpec("synthetic", 2, 4, 4, 3, (0.4, 0.6), (0.5, 0.5)), tiny_recipe(**changes)).eval()


@pytest.mark.parametrize(
    ("recipes", "dataset", "parameters", "ops"),
    [
        (v1_recipes, "mnist", 82_708_490, 82_708_480),
        (v1_recipes, "cifar10", 120_637_450, 120_637_440),
        (mlp_recipes, "fashion_mnist", 85_284_362, 85_283_840),
        (mlp_recipes, "cifar10", 123_213_322, 123_212_800),
        (mlp_recipes, "tinyimagenet", 155_751_112, 155_750_400),
        (v2_recipes, "cifar10", 120_637_450, 120_637_440),
    ],
)
def test_paper_nets_count_what_the_papers_say(recipes, dataset, parameters, ops):
    """82.7M, 121M, 85.3M, 123M, 156M; one learnable scale comes on top of the parameters."""
    recipe = next(r for r in recipes() if r.dataset == dataset and r.preset == "paper")
    with torch.device("meta"):
        net = DistNet(spec_of(dataset), recipe)
    assert sum(p.numel() for p in net.parameters()) == parameters + 1
    counted = sum(layer.weight.numel() for layer in net.distance_layers())
    counted += sum(w.numel() for w in (net.head.weight1, net.head.weight2)) if net.head else 0
    assert counted == ops


def test_the_convolutional_net_of_icml_2021_counts_350_million_operations():
    recipe = tiny_recipe(
        dataset="cifar10", conv_channels=(96, 96, 192, 192, 192), conv_strides=(1, 1, 2, 1, 1), widths=(1024,), head=512
    )
    with torch.device("meta"):
        net = DistNet(spec_of("cifar10"), recipe)
    sides = (32, 32, 16, 16, 16)
    ops = sum(c.weight.numel() * side * side for c, side in zip(net.convs, sides, strict=True))
    ops += net.dense[0].weight.numel() + net.head.weight1.numel() + net.head.weight2.numel()
    assert (ops, sum(p.numel() for p in net.parameters())) == (350_786_560, 51_776_554 + 1)


def test_counting_by_hooks_agrees_with_the_weights():
    net = tiny_net()
    assert count_ops(net, DataSpec("synthetic", 2, 4, 4, 3, (0.4, 0.6), (0.5, 0.5))) == 32 * 12 + 12 * 9 + 9 * 3


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_the_distance_of_every_patch(stride):
    torch.manual_seed(0)
    conv = DistConv2d(2, 5, stride=stride)
    x = torch.randn(3, 2, 6, 6)
    out = conv.distances(x)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            patch = padded[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3].flatten(1)
            expected = (patch[:, None] - conv.weight[None]).abs().amax(-1)
            assert torch.equal(out[:, :, i, j], expected), (i, j)


def test_identity_start_copies_the_input():
    """With |h| <= 2 the layer returns h_{k mod d} + 10 exactly at p = inf."""
    torch.manual_seed(0)
    layer = DistLinear(16, 40, identity=10.0)
    h = torch.rand(50, 16) * 4 - 2
    expected = (h[:, torch.arange(40) % 16] + 10.0).detach()
    assert torch.equal(layer.distances(h), expected)


def test_identity_start_is_skipped_where_fan_in_exceeds_fan_out():
    torch.manual_seed(0)
    assert DistLinear(40, 16, identity=10.0).weight.abs().max() < 6


def test_mean_shift_passes_the_gradient_of_the_mean():
    shift = MeanShift(3).train()
    y = torch.randn(4, 3, requires_grad=True)
    shift(y)[0].sum().backward()
    assert torch.allclose(y.grad.sum(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(y.grad[1], torch.full((3,), -0.25))


def test_mean_shift_is_frozen_in_eval_mode():
    shift = MeanShift(3)
    shift.train()(torch.randn(8, 3) + 5)
    shift.eval()
    before = shift.running_mean.clone()
    y = torch.randn(6, 3)
    assert torch.equal(shift(y)[2:3], shift(y[2:3])) and torch.equal(before, shift.running_mean)


def test_running_mean_moves_by_a_tenth():
    shift = MeanShift(1).train()
    shift(torch.full((4, 1), 10.0))
    assert shift.running_mean.item() == pytest.approx(1.0)


def test_estimated_means_are_the_average_over_batches():
    net = tiny_net()
    batches = [torch.rand(8, 2, 4, 4), torch.rand(8, 2, 4, 4)]
    net.estimate_means(batches)
    first = net.dense[0]
    expected = torch.stack([first.distances(net.normalize(b).flatten(1)).mean(0) for b in batches]).mean(0)
    assert torch.allclose(first.offset.running_mean, expected, atol=1e-5)
    assert not net.training and first.offset.momentum == pytest.approx(0.1)


def test_normalisation_gives_every_channel_its_own_mean():
    out = Normalize((0.1, 0.2, 0.4), 0.5)(torch.full((1, 3, 1, 1), 0.9)).flatten()
    assert torch.allclose(out, torch.tensor([1.6, 1.4, 1.0]))


def test_normalisation_refuses_a_std_per_channel():
    with pytest.raises(ValueError, match="one positive number"):
        Normalize((0.5, 0.5), (0.2, 0.3))


def test_the_net_is_1_lipschitz_and_attains_it():
    """|f(x) - f(x')|_inf <= |x - x'|_inf / std, with equality along the one pixel that carries the gradient."""
    net = tiny_net(3)
    x = torch.rand(200, 2, 4, 4)
    for scale in (1e-3, 1e-2, 0.3):
        other = (x + scale * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        moved = (net(x) - net(other)).abs().amax(1)
        reach = (x - other).abs().flatten(1).amax(1) / net.normalize.scalar_std
        assert (moved <= reach * (1 + ROUNDING) + ROUNDING).all()
    x = x[:1].requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[0, 0], x)
    assert gradient.abs().sum().item() * net.normalize.scalar_std == pytest.approx(1.0)
    assert (gradient != 0).sum() == 1


def test_smoothed_copy_spreads_the_gradient_without_touching_the_net():
    net = tiny_net(3)
    x = torch.rand(1, 2, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(Smoothed(net, 34.0)(x)[0, 0], x)
    assert (gradient != 0).sum() > 10
    assert all(layer.p == math.inf for layer in net.distance_layers())


def test_logits_are_negated_distances():
    net = tiny_net(1)
    x = torch.rand(5, 2, 4, 4)
    assert torch.equal(net(x), -net.features(x))


def test_the_scale_changes_no_logit():
    net = tiny_net(1)
    x = torch.rand(5, 2, 4, 4)
    before = net(x)
    with torch.no_grad():
        net.scale.fill_(-7.0)
    assert torch.equal(before, net(x))


def test_permuting_hidden_units_changes_nothing():
    net = tiny_net(5)
    x = torch.rand(6, 2, 4, 4)
    before = net(x)
    order = torch.randperm(12)
    first, second = net.dense[0], net.dense[1]
    with torch.no_grad():
        first.weight.copy_(first.weight[order])
        first.offset.running_mean.copy_(first.offset.running_mean[order])
        second.weight.copy_(second.weight[:, order])
    assert torch.equal(before, net(x))


def layers_of(*weights: torch.Tensor) -> list[DistLinear]:
    made = []
    for k, weight in enumerate(weights):
        layer = DistLinear(weight.shape[1], weight.shape[0], last=k == len(weights) - 1).eval()
        layer.weight = torch.nn.Parameter(weight)
        made.append(layer)
    return made


def test_two_layers_interpolate_any_1_lipschitz_function():
    """McShane: hidden |x - x_i|, output max_i (f_i - |x - x_i|) equals f at every x_i."""
    torch.manual_seed(0)
    points = torch.rand(20, 4, dtype=torch.float64).float()
    values = points.sum(1) / 4  # 1-Lipschitz in l_inf
    hidden, out = layers_of(points, 10 + values[None])
    with torch.no_grad():
        out.offset.bias.fill_(-10.0)
    assert torch.allclose(out(hidden(points))[:, 0], values, atol=ROUNDING)


def test_three_layers_are_the_nearest_neighbour_classifier():
    """Margin = distance to the nearest point of another class: the optimal certified radius."""
    torch.manual_seed(1)
    points, labels = torch.rand(30, 6), torch.arange(30) % 3
    one = torch.where(labels[None] == torch.arange(3)[:, None], 1.5, 0.5)  # R = 1
    two = torch.ones(3, 3) + 1.5 * torch.eye(3)
    first, second, third = layers_of(points, one, two)
    with torch.no_grad():
        third.offset.bias.fill_(-1.0)
    logits = -third(second(first(points)))
    gap = torch.cdist(points, points, p=math.inf).masked_fill(labels[None] == labels[:, None], math.inf).amin(1)
    own = logits.gather(1, labels[:, None])[:, 0]
    rest = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    assert torch.allclose(own - rest, gap, atol=ROUNDING)
