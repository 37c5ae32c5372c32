"""Cells: identity by content, selectors multiplied, what has no recipe stays a reason."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import registry
from bench.cell import default_preset, plan, reopen, resolve
from bench.errors import UsageError

PLUGIN = Path(__file__).with_name("tiny_method.py")


@pytest.fixture(autouse=True, scope="module")
def _tiny():
    registry.add_file(PLUGIN)


def base():
    return registry.recipe("tiny", "digits", "0.1", "quick")


def cell(**more):
    arguments = {"seed": 0, "changes": {}} | more
    return resolve("tiny", arguments.pop("base", base()), **arguments).cell


def test_the_id_is_12_hex_digits_and_stable():
    """Changing how ids are made orphans every run and record: this value may only change with the schema."""
    assert cell().id == "0698fc9c81b7"


@pytest.mark.parametrize("other", [{"seed": 1}, {"changes": {"lr": "0.1"}}, {"split": "val"}])
def test_everything_that_changes_the_run_changes_the_id(other):
    assert cell(**other).id != cell().id


def test_a_changed_recipe_changes_the_id():
    assert cell(base=replace(base(), epochs=9)).id != cell().id


def test_prose_about_the_source_does_not_change_the_id():
    assert cell(base=replace(base(), source="elsewhere")).id == cell().id


def test_an_override_is_the_same_however_it_is_written():
    assert cell(changes={"lr": "1e-1"}).id == cell(changes={"lr": "0.10"}).id


def test_an_override_with_the_recipes_own_value_is_none():
    assert cell(changes={"epochs": str(base().epochs)}) == cell()


def test_a_record_leads_back_to_its_cell():
    made = resolve("tiny", base(), seed=3, changes={"lr": "0.1", "lr_milestones": "1,2"}, split="val")
    assert reopen(made.cell.as_record()) == made


def test_selectors_are_multiplied():
    cells, missing = plan(["tiny"], ["digits", "synthetic"], presets=["quick"], seeds=[0, 1, 2])
    assert [(p.cell.dataset, p.cell.seed) for p in cells] == [(d, s) for d in ("digits", "synthetic") for s in range(3)]
    assert missing == []


def test_selectors_given_twice_count_once():
    assert len(plan(["tiny", "tiny"], ["digits", "digits"], seeds=[0, 0], eps=["0.1", "0.1"])[0]) == 1


@pytest.mark.parametrize(
    ("selectors", "reason"),
    [
        ({"datasets": ["mnist"]}, "no recipe for this data set (it has: digits, synthetic, cifar10)"),
        ({"datasets": ["digits"], "eps": ["0.2"]}, "no recipe for this eps (it has: 0.1)"),
        ({"datasets": ["digits"], "presets": ["paper"]}, "no recipe for this preset (it has: quick)"),
    ],
)
def test_what_has_no_recipe_is_a_reason_that_lists_what_exists(selectors, reason):
    cells, missing = plan(["tiny"], selectors.pop("datasets"), **selectors)
    assert (cells, [m.reason for m in missing]) == ([], [reason])


def test_gaps_do_not_stop_the_rest():
    cells, missing = plan(["tiny"], ["mnist", "digits"])
    assert (len(cells), len(missing)) == (1, 1)


def test_eps_is_compared_as_a_number():
    assert plan(["tiny"], ["digits"], eps=["1/10"])[0][0].cell.eps == "0.1"


def test_an_unknown_method_is_a_usage_error_with_a_suggestion():
    with pytest.raises(UsageError, match='did you mean "tiny"'):
        plan(["tinny"], [])


@pytest.mark.parametrize("eps", ["0.03137", "-1", "2", "abc", "8/0"])
def test_a_bad_eps_is_refused(eps):
    with pytest.raises(ValueError, match="eps = "):
        plan(["tiny"], ["digits"], eps=[eps])


@pytest.mark.parametrize(
    "changes", [{"lr": "fast"}, {"lrr": "1"}, {"lr": "-1"}, {"dataset": "mnist"}, {"epochs": "1.5"}]
)
def test_a_bad_override_is_refused_by_name(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        plan(["tiny"], ["digits"], changes=changes)


@pytest.mark.parametrize(
    ("dataset", "device", "preset"),
    [
        ("digits", "cpu", "quick"),
        ("mnist", "cpu", "quick"),
        ("cifar10", "cpu", "paper"),
        ("cifar10", "cuda", "paper"),
        ("digits", "cuda", "paper"),
    ],
)
def test_default_preset(dataset, device, preset):
    assert default_preset(dataset, device) == preset


def test_where_the_default_preset_is_missing_the_nearest_cheaper_one_is_taken():
    assert plan(["tiny"], ["digits"], device_type="cuda")[0][0].cell.preset == "quick"


def test_the_folder_holds_no_slash():
    assert "/" not in plan(["tiny"], ["cifar10"], presets=["quick"])[0][0].cell.folder
