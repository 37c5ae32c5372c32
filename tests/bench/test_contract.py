"""What the contract's own code promises a plugin author: margins, schedules, and a guard around every certificate."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bench import Bound, DataSpec, Eps, Losses, Method, Recipe, Step, margin

SPEC = DataSpec("synthetic", channels=1, height=2, width=3, classes=4, mean=(0.5,), std=(0.2,))


class Plain(Method):
    name, title = "plain", "Plain"

    def recipes(self):  # type: ignore[no-untyped-def]
        return [recipe()]

    def build(self, data: DataSpec, recipe: Recipe) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(data.pixels, data.classes))

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
        return Losses(net(x).sum())

    def margin_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> Bound:
        """Of nothing."""
        return Bound(torch.zeros(len(y), dtype=torch.float64), certificate="none", cls="R")

    def radius(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros(len(y))


def recipe(**changes: Any) -> Recipe:
    return Recipe(**({"dataset": "digits", "eps": "0.1", "preset": "quick", "source": "ours"} | changes))


# --- margin -----------------------------------------------------------------------------------------------------------

LOGITS = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=6)


@given(LOGITS, st.data())
def test_margin_is_the_exact_difference_to_the_best_other(rows: list[list[float]], data: st.DataObject) -> None:
    """Exact as a sign and to a float64 rounding as a value, whatever the float32 logits are."""
    y = [data.draw(st.integers(0, 3)) for _ in rows]
    found = margin(torch.tensor(rows, dtype=torch.float32), torch.tensor(y))
    assert found.dtype == torch.float64
    for value, row, label in zip(found.tolist(), rows, y, strict=True):
        best = max(Fraction(v) for k, v in enumerate(row) if k != label)
        assert value == float(Fraction(row[label]) - best)


def test_tie_has_margin_0_and_is_not_positive() -> None:
    assert margin(torch.ones(1, 3), torch.tensor([1])).tolist() == [0.0]


def test_margin_of_nan_logits_is_not_positive() -> None:
    assert not bool((margin(torch.tensor([[1.0, torch.nan]]), torch.tensor([0])) > 0).any())


def test_margin_is_differentiable_towards_both_classes() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    margin(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None and logits.grad.tolist() == [[1.0, 0.0, -1.0]]


def test_float32_difference_would_have_the_wrong_sign() -> None:
    """Why margins are float64: these two logits differ, their float32 difference under flush-to-zero is 0."""
    tiny = torch.tensor([[1.5e-38, 1.4e-38]])
    assert float(margin(tiny, torch.tensor([0]))) > 0


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ["d", "float", "", "FP32"])
def test_bound_refuses_an_unknown_class(cls: str) -> None:
    with pytest.raises(ValueError, match=f"cls = '{cls}' must be one of D, F32, R"):
        Bound(torch.zeros(2), certificate="a", cls=cls)


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_bound_refuses_anything_but_one_number_per_example(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"lower has shape .*; a bound per example, \[B\], is needed"):
        Bound(torch.zeros(shape), certificate="a", cls="R")


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ramp", "epoch", "wanted"),
    [
        ((0, 0), 0, 0.1),
        ((2, 6), 0, 0.0),
        ((2, 6), 2, 0.0),
        ((2, 6), 4, 0.05),
        ((2, 6), 6, 0.1),
        ((2, 6), 99, 0.1),
        ((5, 5), 4.9, 0.0),
        ((5, 5), 5, 0.1),
        ((0, 4), 0, 0.0),
        ((0, 4), 1, 0.025),
    ],
)
def test_eps_climbs_linearly_over_its_ramp(ramp: tuple[float, float], epoch: float, wanted: float) -> None:
    assert Plain().eps_schedule(recipe(eps_ramp=ramp), epoch) == pytest.approx(wanted)


def test_step_counts_in_epochs_and_shares() -> None:
    step = Step(1, 4, 15, 40, 10, Eps("0.1"), 0.1, recipe(), torch.Generator())
    assert (step.progress, step.epoch_float) == (0.375, 1.5)


def test_data_spec_counts_pixels_and_crops() -> None:
    assert SPEC.pixels == 6 and SPEC.cropped(0) is SPEC
    assert (SPEC.cropped(2).height, SPEC.cropped(2).width, SPEC.cropped(2).name) == (2, 2, "synthetic")


def test_default_optimizer_leaves_frozen_weights_alone() -> None:
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    (group,) = Plain().optimizer(net, recipe(lr=0.5)).param_groups
    assert group["params"] == [net.weight] and group["lr"] == 0.5


@pytest.mark.parametrize("member", ["recipes", "build", "loss", "margin_bound"])
def test_missing_member_says_which(member: str) -> None:
    empty = type("Empty", (Method,), {})()
    count = {"recipes": 0, "build": 2, "loss": 4, "margin_bound": 4}[member]
    with pytest.raises(NotImplementedError, match=f"Empty must define {member}\\(\\)"):
        getattr(empty, member)(*[None] * count)


# --- the guard --------------------------------------------------------------------------------------------------------

X, Y, EPS = torch.full((2, 1, 2, 3), 0.5), torch.tensor([0, 3]), Eps("0.1")


def ask(method: Method, question: str, x: Any = X, y: Any = Y, eps: Any = EPS, net: Any = None) -> Any:
    net = method.build(SPEC, recipe()) if net is None else net
    return method.radius(net, x, y) if question == "radius" else getattr(method, question)(net, x, y, eps)


@pytest.mark.parametrize("question", ["margin_bound", "margin_bounds", "radius"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": X.double()}, "x must be a float32 tensor"),
        ({"x": X[0]}, "x has shape"),
        ({"x": X + 1}, "x has values outside"),
        ({"x": X[..., :2]}, r"x has shape \(2, 1, 2, 2\); this net takes \[B, 1, 2, 3\]"),
        ({"y": Y.int()}, "y must be an int64 tensor, not torch.int32"),
        ({"y": [0, 1]}, "y must be an int64 tensor, not list"),
        ({"y": Y[:1]}, r"y has shape \(1,\); one label per image, \[2\], is needed"),
        ({"y": Y + 1}, "y holds labels from 1 to 4; this net knows 0 to 3"),
        ({"y": Y - 1}, "y holds labels from -1 to 2"),
        ({"net": "net"}, "net must be a torch.nn.Module, not str"),
    ],
)
def test_certificate_refuses_what_it_cannot_be_asked(question: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(Plain(), question, **wrong)


@pytest.mark.parametrize("eps", [0.1, "0.1", 0, None])
def test_certificate_refuses_a_radius_that_is_not_exact(eps: object) -> None:
    with pytest.raises(ValueError, match=r"eps = .* must be an exact radius"):
        ask(Plain(), "margin_bound", eps=eps)


def test_guard_is_inherited_overridden_and_called_by_keyword() -> None:
    class Child(Plain):
        def margin_bound(self, net: nn.Module, x: Tensor, y: Tensor, eps: Eps) -> Bound:
            return super().margin_bound(net, x, y, eps)

    net = Child().build(SPEC, recipe())
    assert len(Child().margin_bound(net, X, Y, eps=EPS).lower) == 2
    with pytest.raises(ValueError, match=r"eps = 0\.1 must be an exact radius"):
        Child().margin_bound(net, x=X, y=Y, eps=0.1)  # type: ignore[arg-type]


def test_guard_keeps_name_and_docstring() -> None:
    assert Plain.margin_bound.__name__ == "margin_bound" and Plain.margin_bound.__doc__ == "Of nothing."


def test_guard_lets_a_net_that_was_built_elsewhere_take_any_image() -> None:
    assert len(ask(Plain(), "margin_bound", x=torch.zeros(2, 3, 9, 9), net=nn.Identity()).lower) == 2


def test_empty_batch_is_a_batch() -> None:
    assert len(ask(Plain(), "margin_bound", x=X[:0], y=Y[:0]).lower) == 0


def test_note_of_the_guard_is_no_part_of_the_state() -> None:
    net = Plain().build(SPEC, recipe())
    assert list(net.state_dict()) == ["1.weight", "1.bias"]
