"""Training bounds: equal to a slow reference on every path, with the right gradients, at a bearable cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import DataSpec
from methods import box, box_ops
from methods.nets import Concat, NetRecipe, Normalize, ReluNet, Residual, build_net

RADIUS = 0.03
SAME = 1e-9  # relative, float64: both compute the same sums in another order


def reference(layers: object, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Interval propagation as the textbook has it: positive weights take one end, negative ones the other."""
    for layer in layers:  # type: ignore[attr-defined]
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
            if isinstance(layer, nn.Linear):
                f = functional.linear
            else:

                def f(x: Tensor, w: Tensor, b: Tensor | None = None, layer: nn.Conv2d = layer) -> Tensor:
                    return functional.conv2d(x, w, b, layer.stride, layer.padding, 1, layer.groups)  # type: ignore

            low, high = f(low, up, layer.bias) + f(high, down), f(high, up, layer.bias) + f(low, down)
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            a, b = layer(low), layer(high)
            low, high = torch.minimum(a, b), torch.maximum(a, b)
        elif isinstance(layer, Residual):
            (a, b), (c, d) = reference(layer.main, low, high), reference(layer.skip, low, high)
            low, high = a + c, b + d
        elif isinstance(layer, Concat):
            a, b = reference(layer.branch, low, high)
            low, high = torch.cat([a, low], 1), torch.cat([b, high], 1)
        elif isinstance(layer, (nn.ReLU, nn.Flatten, nn.AvgPool2d, Normalize, nn.Identity)):
            low, high = layer(low), layer(high)
        else:
            raise AssertionError(layer)
    return low, high


def reference_margins(net: ReluNet, x: Tensor, y: Tensor, radius: float) -> Tensor:
    low, high = reference([net.normalize, *net.body], (x - radius).clamp(0, 1), (x + radius).clamp(0, 1))
    weight, bias = net.head.weight, net.head.bias
    rows = weight[y].unsqueeze(1) - weight
    ends = torch.where(rows > 0, low.unsqueeze(1), high.unsqueeze(1))
    return (rows * ends).sum(2) + bias[y].unsqueeze(1) - bias


@pytest.mark.parametrize("tape", [False, True])
def test_margins_equal_the_textbook_in_float64(
    arch: str, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]], tape: bool
) -> None:
    net, (x, y) = small_net(arch).double(), images(arch, 6)
    passed = box.run(net, x.double(), RADIUS, tape=tape)
    wanted = reference_margins(net, x.double(), y, RADIUS)
    assert torch.allclose(passed.margins(y), wanted, rtol=SAME, atol=SAME * float(wanted.detach().abs().max()))
    assert torch.allclose(passed.logits(), net(x.double()), rtol=SAME, atol=1e-12)


def test_gradients_are_those_of_the_textbook(
    arch: str, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """The hand-written backward passes against autograd through the reference, every parameter."""
    net, (x, y) = small_net(arch).double(), images(arch, 6)
    weights = torch.randn(6, 5, dtype=torch.float64)
    parameters = [p for p in net.parameters()]
    ours = torch.autograd.grad((box.run(net, x.double(), RADIUS).margins(y) * weights).sum(), parameters)
    theirs = torch.autograd.grad((reference_margins(net, x.double(), y, RADIUS) * weights).sum(), parameters)
    for got, wanted in zip(ours, theirs, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-8, atol=1e-9 * float(wanted.abs().max()) + 1e-12)


def test_radius_zero_gives_the_clean_margins(
    arch: str, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    net, (x, y) = small_net(arch).double(), images(arch, 6)
    logits = net(x.double())
    assert torch.allclose(box.run(net, x.double(), 0.0).margins(y), logits.gather(1, y[:, None]) - logits, atol=1e-9)


def test_training_statistics_move_once_and_as_in_an_ordinary_pass(
    small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Running means, variances and counters after a bound pass equal those after net(x)."""
    x, _ = images("cnn7_bn_all", 8)
    plain, bounded = small_net("cnn7_bn_all").train(), small_net("cnn7_bn_all").train()
    plain(x)
    box.run(bounded, x, RADIUS)
    before = dict(small_net("cnn7_bn_all").named_buffers())
    for name, buffer in bounded.named_buffers():
        assert torch.allclose(buffer, dict(plain.named_buffers())[name], rtol=1e-6, atol=1e-7), name
        assert not torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("tape", [False, True])
def test_training_boxes_hold_the_clean_batch_under_its_own_statistics(
    arch: str, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]], tape: bool
) -> None:
    """At radius 0 in training mode the box is the clean activation: both use the statistics of the clean batch."""
    net, (x, _) = small_net(arch).train(), images(arch, 6)
    flow = box.run(net, x, 0.0, tape=tape).flow
    centre, reach = flow.box()
    assert flow.clean is not None
    assert torch.allclose(centre, flow.clean, atol=1e-5)
    assert float(reach.detach().abs().max()) == 0


def test_gradients_flow_through_the_batch_statistics() -> None:
    torch.manual_seed(0)
    z = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    gamma, beta = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def step(z: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        made: tuple[Tensor, ...] = box_ops.BatchStatistics.apply(z, gamma, beta, *running, 0.1, 1e-5)
        return made

    assert torch.autograd.gradcheck(step, (z, gamma, beta))


def test_merging_the_last_layer_is_never_looser(
    arch: str, small_net: Callable[..., ReluNet], images: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    net, (x, y) = small_net(arch).double(), images(arch, 6)
    passed = box.run(net, x.double(), RADIUS)
    low, high = reference([net.head], *(passed.flow.box()[0] + s * passed.flow.box()[1] for s in (-1, 1)))
    apart = low.gather(1, y[:, None]) - high
    merged = passed.margins(y)
    other = torch.ones_like(merged, dtype=torch.bool).scatter(1, y[:, None], False)
    assert bool((merged >= apart - 1e-9)[other].all())
    assert float((merged - apart)[other].detach().mean()) > 1e-3


def test_a_layer_without_a_bound_is_refused_by_name() -> None:
    net = ReluNet(None, nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="no interval bound is known for layer GELU"):
        box.run(net, torch.rand(1, 1, 2, 2), 0.1)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(1, 1, 3, dilation=2), nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")]
)
def test_a_convolution_the_bounds_do_not_know_is_refused(layer: nn.Conv2d) -> None:
    net = ReluNet(None, nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)))
    net(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="only zero padding without dilation"):
        box.run(net, torch.rand(1, 1, 8, 8), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["conv_small", "dm_small", "dm_medium"])
def test_a_step_costs_at_most_three_and_a_half_plain_ones(arch: str) -> None:
    """Best of several, in CPU time on one thread: forward and backward through bounds against a plain pass."""
    torch.set_num_threads(1)
    data = DataSpec("mnist", 1, 28, 28, 10, (0.13,), (0.31,))
    recipe = NetRecipe(dataset="mnist", eps="0.1", preset="quick", source="test", arch=arch, init="ibp")
    net, x, y = build_net(data, recipe), torch.rand(128, 1, 28, 28), torch.randint(0, 10, (128,))

    def plain() -> None:
        functional.cross_entropy(net(x), y).backward()

    def bounds() -> None:
        functional.cross_entropy(-box.run(net, x, 0.1, clean=False).margins(y), y).backward()

    def seconds(work: Callable[[], None]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    pairs = [(seconds(plain), seconds(bounds)) for _ in range(10 if arch == "dm_medium" else 40)][2:]
    ratio = min(b for _, b in pairs) / min(p for p, _ in pairs)
    print(f"{arch}: an interval step costs {ratio:.2f} plain forward-backward passes")
    assert ratio <= 3.5
