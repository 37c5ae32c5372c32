"""What was asked for is what the cells are told: no option of the command line may be lost on the way."""

from pathlib import Path

import pytest

from bench import planning, registry, worker
from bench.child import EXIT_INTERRUPTED, Outcome
from bench.errors import BenchError, UsageError
from bench.plan import Request
from bench.record import Record

PLUGIN = Path(__file__).with_name("tiny_method.py")


@pytest.fixture(autouse=True)
def _known():
    registry.add_file(PLUGIN)


def asked(tmp_path, **more):
    return Request(
        methods=("tiny",), datasets=("synthetic",), device="cpu", threads=1, quiet=True,
        results=str(tmp_path / "results"), runs_dir=str(tmp_path / "runs"), **more,
    )  # fmt: skip


def handed_on(monkeypatch, request):
    """The tasks that the launcher gets, and their slots."""
    seen = []

    def launch(tasks, slots, **_):
        seen.extend([tasks, slots])
        return [Outcome(task, EXIT_INTERRUPTED, "far enough") for task in tasks], True

    monkeypatch.setattr(planning, "launch", launch)
    code = planning.execute(request, plugins=(str(PLUGIN),), say=lambda line: None, ask=None)
    assert code == EXIT_INTERRUPTED
    return seen


@pytest.mark.parametrize(
    ("name", "value"),
    [("data_root", "somewhere"), ("offline", True), ("fresh", True), ("save_every_s", 7.0), ("autoattack", True)],
)
def test_every_option_reaches_the_cells(tmp_path, monkeypatch, name, value):
    monkeypatch.setattr("bench.autoattack.require", lambda: "stub 0")
    (task,), _ = handed_on(monkeypatch, asked(tmp_path, **{name: value}))
    (plain,), _ = handed_on(monkeypatch, asked(tmp_path))
    assert getattr(task.options, name) == value != getattr(plain.options, name)


def test_where_and_how_long_reach_the_cells(tmp_path, monkeypatch):
    (task,), (slot,) = handed_on(monkeypatch, asked(tmp_path, time_limit_s=9.0))
    assert (task.options.results, task.options.runs_dir) == (str(tmp_path / "results"), str(tmp_path / "runs"))
    assert (task.time_limit_s, task.plugins) == (9.0, (str(PLUGIN),))
    assert (slot.device, slot.threads) == ("cpu", 1)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_finished_cell_is_run_again_only_where_it_is_asked_for(tmp_path, monkeypatch, fresh):
    record = Record({}, tmp_path)
    monkeypatch.setattr("bench.run.finished", lambda *a, **k: record)
    made = planning.make_plan(asked(tmp_path, fresh=fresh), ())
    assert len(made.open) == fresh and len(made.done) == (not fresh)


def test_a_recipe_that_changed_since_the_plan_is_not_run(tmp_path, monkeypatch):
    """A worker reads the method's file anew: edited in between, it would run another cell under the planned id."""
    (task,), _ = handed_on(monkeypatch, asked(tmp_path))
    monkeypatch.setattr("bench.run.run", lambda *a, **k: pytest.fail("it ran"))
    job = {"plugins": [], "cell": {**task.cell.as_record(), "id": "0" * 12}, "options": {}}
    with pytest.raises(BenchError, match="changed while the run was starting"):
        worker._run(job, None, lambda: False)


@pytest.mark.parametrize(("where", "option"), [("results", "--results"), ("runs", "--runs-dir")])
def test_a_dry_run_says_that_a_folder_is_a_file_and_makes_none(tmp_path, monkeypatch, where, option):
    monkeypatch.setattr(planning, "estimate", lambda *_, **__: {})
    planning.make_plan(asked(tmp_path, dry_run=True), ())
    assert not any(tmp_path.iterdir())
    (tmp_path / where).write_text("a file")
    with pytest.raises(UsageError, match=f"is no folder; choose another one with {option}"):
        planning.make_plan(asked(tmp_path, dry_run=True), ())
