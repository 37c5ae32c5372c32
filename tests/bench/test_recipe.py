"""Recipes refuse what cannot be, name the field, and hash by content."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import Recipe
from bench.contract import bounded
from bench.recipe import as_dict, content_hash, lr_factor, name_of, override, recorded


@dataclass(frozen=True, kw_only=True)
class Wide(Recipe):
    width: int = bounded(64, 1, 4096)
    widths: tuple[int, ...] = (8, 8)
    norm: str = dataclasses.field(default="l1", metadata={"choices": ("l1", "l2")})


def recipe(**changes: Any) -> Wide:
    return Wide(**({"dataset": "digits", "eps": "0.1", "preset": "quick", "source": "ours"} | changes))


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": "0.03137"}, "recipe digits/0.03137/quick: eps = '0.03137' is a rounded radius; did you mean 8/255?"),
        ({"preset": "fast"}, "preset = 'fast'; choose one of paper, short, hour, quick"),
        ({"lr_schedule": "linear"}, "lr_schedule = 'linear'; choose one of constant, cosine, step"),
        ({"crop_mode": "wrap"}, "crop_mode = 'wrap'; choose one of edge, zeros"),
        ({"norm": "l3"}, "norm = 'l3'; choose one of l1, l2"),
        ({"epochs": 0}, "epochs = 0 lies outside [1, 100000]"),
        ({"epochs": 1.5}, "epochs = 1.5 is not a whole number"),
        ({"epochs": True}, "epochs = True is not a whole number"),
        ({"lr": 0.0}, "lr = 0.0 lies outside (0.0, 10.0]"),
        ({"lr": math.nan}, "lr = nan is not a finite number"),
        ({"lr": math.inf}, "lr = inf is not a finite number"),
        ({"lr": "0.1"}, "lr = '0.1' is not a finite number"),
        ({"grad_clip": math.inf}, "grad_clip = inf is not a finite number"),
        ({"flip": 1}, "flip = 1 is not true or false"),
        ({"eps_train": 8}, "eps_train = 8 lies outside [0.0, 1.0]; eps is in pixel units of [0, 1], write 8/255"),
        ({"eps_ramp": (10.0, 5.0)}, "eps_ramp = (10.0, 5.0) must not end before it starts"),
        ({"eps_ramp": (1.0,)}, "eps_ramp = (1.0,) is not tuple[float, float]"),
        ({"lr_milestones": [1.0]}, "lr_milestones = [1.0] is not tuple[float, ...]"),
        ({"widths": (8, 2.5)}, "widths = (8, 2.5) is not tuple[int, ...]"),
        ({"width": 5000}, "width = 5000 lies outside [1, 4096]"),
        ({"dataset": 3}, "dataset = 3 is not a word"),
    ],
)
def test_impossible_value_is_refused_with_field_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        recipe(**changes)
    assert message in str(caught.value) and str(caught.value).startswith("recipe ")


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe().lr = 1.0  # type: ignore[misc]


def test_name_is_data_set_radius_and_preset() -> None:
    assert name_of(recipe(eps="8/255")) == "digits/8/255/quick"


def test_training_radius_is_the_test_radius_unless_given() -> None:
    assert recipe(eps="8/255").train_radius == 8 / 255
    assert recipe(eps_train=0.45).train_radius == 0.45


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("lr", "1e-3", 1e-3),
        ("lr", "1", 1.0),
        ("eps_train", "8/255", 8 / 255),
        ("epochs", "7", 7),
        ("flip", "true", True),
        ("flip", "NO", False),
        ("crop_mode", "zeros", "zeros"),
        ("eps_ramp", "0,10", (0.0, 10.0)),
        ("lr_milestones", "", ()),
        ("lr_milestones", "3,", (3.0,)),
        ("widths", "16,32,16", (16, 32, 16)),
        ("width", "128", 128),
    ],
)
def test_override_replaces_one_field(field: str, text: str, value: Any) -> None:
    changed = override(recipe(), {field: text})
    assert getattr(changed, field) == value and type(getattr(changed, field)) is type(value)
    assert dataclasses.replace(changed, **{field: getattr(recipe(), field)}) == recipe()


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("widht", "3", 'no such field in recipe digits/0.1/quick; did you mean "width"? (fields: epochs'),
        ("eps", "0.2", "--set eps: this names the recipe itself; choose it with -d, --eps or --preset"),
        ("dataset", "mnist", "this names the recipe itself"),
        ("source", "me", "this names the recipe itself"),
        ("epochs", "3.5", "--set epochs=3.5: epochs must be a whole number"),
        ("epochs", "many", "--set epochs=many: epochs must be a whole number"),
        ("lr", "1/0", "--set lr=1/0: lr must be a finite number"),
        ("lr", "1e999", "lr = inf is not a finite number"),
        ("lr", "20", "lr = 20.0 lies outside (0.0, 10.0]"),
        ("flip", "maybe", "flip must be true or false"),
        ("eps_ramp", "1,2,3", "eps_ramp = (1.0, 2.0, 3.0) is not"),
        ("eps_ramp", "5,1", "must not end before it starts"),
        ("widths", "8,x", "widths"),
    ],
)
def test_wrong_override_is_refused_with_the_field(field: str, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        override(recipe(), {field: text})
    assert message in str(caught.value)


def test_no_override_changes_nothing() -> None:
    assert override(recipe(), {}) == recipe()


# --- hashes -----------------------------------------------------------------------------------------------------------


def test_hash_does_not_depend_on_the_prose_of_the_source() -> None:
    assert content_hash(recipe(source="Table 3")) == content_hash(recipe(source="table 3 of the paper"))


@pytest.mark.parametrize(
    "changes", [{"lr": 2e-3}, {"epochs": 2}, {"widths": (8,)}, {"flip": True}, {"eps": "0.2"}, {"preset": "hour"}]
)
def test_hash_depends_on_every_other_field(changes: dict[str, Any]) -> None:
    assert content_hash(recipe(**changes)) != content_hash(recipe())


def test_a_field_added_later_changes_no_hash_until_it_is_used() -> None:
    """Records made before it came keep their ids."""

    @dataclass(frozen=True, kw_only=True)
    class Wider(Wide):
        dropout: float = bounded(0.0, 0.0, 1.0, added=True)
        block: tuple[int, ...] = dataclasses.field(default=(), metadata={"added": True})

    shared = dict(dataset="digits", eps="0.1", preset="quick", source="ours")
    assert content_hash(Wider(**shared)) == content_hash(recipe())
    assert content_hash(Wider(**shared, dropout=0.1)) != content_hash(recipe())
    assert recorded(Wider(**shared)) == as_dict(recipe())
    assert recorded(Wider(**shared, block=(2,))) == {**as_dict(recipe()), "block": [2]}
    assert as_dict(Wider(**shared))["dropout"] == 0.0


def test_overriding_a_value_by_itself_keeps_the_hash() -> None:
    """lr=1 in a recipe and `--set lr=1` are the same number."""
    written = recipe(lr=1, eps_ramp=(0, 10))
    assert content_hash(override(written, {"lr": "1", "eps_ramp": "0,10"})) == content_hash(written)


def test_hash_of_a_known_recipe_stays() -> None:
    """Cell ids and old records rest on it; a new base field with a default changes it, which must be on purpose."""
    assert content_hash(recipe())[:16] == "917c6ac1a1c818c5"


@given(st.floats(1e-6, 10), st.integers(1, 1000), st.lists(st.integers(1, 9), max_size=4).map(tuple))
def test_dict_is_json_and_makes_the_same_recipe_again(lr: float, epochs: int, widths: tuple[int, ...]) -> None:
    before = recipe(lr=lr, epochs=epochs, widths=widths)
    read = json.loads(json.dumps(as_dict(before), allow_nan=False))
    after = Wide(**{k: tuple(v) if isinstance(v, list) else v for k, v in read.items()})
    assert after == before and content_hash(after) == content_hash(before)


# --- the learning rate ------------------------------------------------------------------------------------------------


def factor(epoch: float, epochs: int = 10, **changes: Any) -> float:
    return lr_factor(SimpleNamespace(recipe=recipe(**changes), epochs=epochs, epoch_float=epoch))  # type: ignore[arg-type]


@pytest.mark.parametrize(("epoch", "wanted"), [(0, 1.0), (4, 1.0), (7, 0.5), (10, 0.0)])
def test_cosine_holds_then_falls_to_0(epoch: float, wanted: float) -> None:
    assert factor(epoch, lr_hold=4.0) == pytest.approx(wanted, abs=1e-12)


def test_cosine_that_holds_to_the_end_never_falls() -> None:
    assert [factor(e, lr_hold=10.0) for e in (0, 5, 9.99)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("epoch", "wanted"), [(2.9, 1.0), (3, 0.1), (5.99, 0.1), (6, 0.01)])
def test_steps_multiply_at_their_epochs(epoch: float, wanted: float) -> None:
    assert factor(epoch, lr_schedule="step", lr_milestones=(3.0, 6.0)) == pytest.approx(wanted)


def test_constant_is_constant() -> None:
    assert [factor(e, lr_schedule="constant") for e in (0, 9)] == [1.0, 1.0]


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 20))
def test_cosine_never_rises(a: float, b: float, hold: float) -> None:
    early, late = sorted((a, b))
    assert 0 <= factor(late, lr_hold=hold) <= factor(early, lr_hold=hold) <= 1
