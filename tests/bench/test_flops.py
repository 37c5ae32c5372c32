"""Operations are counted by the papers' convention, against counts done by hand, and never silently left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bench import DataSpec
from bench.flops import count_ops

IMAGE = DataSpec("synthetic", channels=3, height=8, width=8, classes=10, mean=(0.5,) * 3, std=(0.2,) * 3)
DENSE = 3 * 8 * 8


class OwnLayer(nn.Module):
    """|x - w| for every pair of input and output, with its own formula."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, DENSE))
        self.inner = nn.Linear(DENSE, outputs)  # its business, not the counter's

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, None] - self.weight).abs().amax(2) + 0 * self.inner(x.flatten(1))

    def count_ops(self, inputs: Tensor, output: Tensor) -> int:
        return output.numel() * inputs[0].numel()


class Nameless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, DENSE))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Container(nn.Module):
    """A matrix of its own beside a layer: the layer must not hide it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(DENSE, DENSE))
        self.layer = nn.Linear(DENSE, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) @ self.weight)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.ones(())), nn.Linear(DENSE, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x.flatten(1))


class Functional(nn.Module):
    """Uses its layer's weight without calling the layer, which would count as nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DENSE, 10)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flatten(1), self.layer.weight)


def _twice() -> nn.Module:
    layer = nn.Linear(DENSE, DENSE)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("net", "operations"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(DENSE, 10)), DENSE * 10),
        (nn.Sequential(nn.Flatten(), nn.Linear(DENSE, 7), nn.ReLU(), nn.Linear(7, 10)), DENSE * 7 + 70),
        (nn.Conv2d(3, 16, 3, padding=1), 16 * 8 * 8 * 3 * 9),
        (nn.Conv2d(3, 16, 3, stride=2, padding=1), 16 * 4 * 4 * 3 * 9),
        (nn.Conv2d(3, 6, 3, groups=3), 6 * 6 * 6 * 9),
        (nn.Sequential(nn.Conv2d(3, 4, (1, 8)), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(32, 10)), 32 * 24 + 320),
        (nn.Linear(8, 5), 3 * 8 * 5 * 8),
        (OwnLayer(10), 10 * DENSE),
        (nn.Sequential(OwnLayer(10), nn.Linear(10, 10)), 10 * DENSE + 100),
        (nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(DENSE, 10))), DENSE * 10),
        (Scaled(), DENSE * 10),
        (_twice(), 2 * DENSE * DENSE),
        (nn.Sequential(nn.LayerNorm([3, 8, 8]), nn.PReLU(), nn.Flatten(), nn.Linear(DENSE, 10)), DENSE * 10),
    ],
)
def test_count_equals_the_count_by_hand(net: nn.Module, operations: int) -> None:
    assert count_ops(net, IMAGE) == operations


@pytest.mark.parametrize(
    ("net", "what"),
    [(Nameless(), "layer Nameless"), (Container(), "layer Container"), (Functional(), "layer layer holds weights")],
)
def test_weights_that_cannot_be_counted_are_refused_with_the_layer(net: nn.Module, what: str) -> None:
    with pytest.raises(ValueError, match=f"{what}.*count_ops"):
        count_ops(net, IMAGE)


def test_counting_leaves_no_trace() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(DENSE), nn.Dropout(), nn.Linear(DENSE, 10))
    net.train()
    net[1].eval()  # a frozen normalisation in a net that trains
    before = [tensor.clone() for tensor in net.state_dict().values()]
    generator = torch.get_rng_state()
    count_ops(net, IMAGE)
    assert [m.training for m in net.modules()] == [True, True, False, True, True]
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert torch.equal(generator, torch.get_rng_state()) and not net[3]._forward_hooks


def test_hooks_are_gone_after_a_failure() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 10))
    with pytest.raises(RuntimeError):
        count_ops(net, IMAGE)
    assert not net[1]._forward_hooks and net.training
