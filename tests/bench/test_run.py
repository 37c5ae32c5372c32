"""One cell from data to record: what it leaves, what it never does twice, what it refuses."""

import errno
import fcntl
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import environment, reattack, registry
from bench import record as records
from bench import run as running
from bench.cell import plan
from bench.errors import BenchError, Interrupted
from bench.files import FileError, locked
from bench.options import Options
from bench.plan import Plan, Request
from bench.progress import Progress, StoppingProgress
from bench.report import detail
from bench.run import ARRAYS, EVALUATION, finished, progress_of, run
from bench.state import StateError, load_tensors, save_tensors, weights_sha256
from bench.trained import WEIGHTS, of_record

PLUGIN = Path(__file__).with_name("tiny_method.py")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    registry.add_file(PLUGIN)
    yield
    torch.set_num_threads(before)


def one(**selectors):
    return plan(["tiny"], ["synthetic"], **selectors)[0][0]


def options(folder, **more):
    return Options(results=str(folder / "results"), runs_dir=str(folder / "runs"), **more)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run: (planned, options, record)."""
    registry.add_file(PLUGIN)
    folder = tmp_path_factory.mktemp("done")
    planned, where = one(), options(folder)
    return planned, where, run(planned, where)


def test_the_record_is_valid_and_found_again(done):
    planned, where, record = done
    assert records.read(record.path).id == record.id
    assert finished(planned.cell, Path(where.results), Path(where.runs_dir)).id == record.id


def test_the_record_says_what_ran(done):
    planned, _, record = done
    data = record.data
    assert data["cell"] == planned.cell.as_record()
    assert data["recipe"]["hash"] == planned.cell.recipe_hash and not data["recipe"]["modified"]
    assert data["evaluation"]["n"] == data["data"]["n_test"]
    assert data["environment"]["threads"] == 1
    assert len(data["training"]["history"]) == planned.recipe.epochs
    assert data["code"]["source_sha256"]


def test_the_record_names_its_weights(done):
    _, where, record = done
    trained = of_record(record, Path(where.runs_dir), torch.device("cpu"))
    assert weights_sha256(trained.net) == record.data["weights_sha256"]


@pytest.mark.parametrize("seed", [0, 3])
def test_the_seed_of_the_cell_reaches_the_net_its_training_and_its_attacks(tmp_path, monkeypatch, seed):
    seen = {}

    def seeded(number, what):
        seen[what] = number

    def far_enough(*args, seed, **more):
        seen["evaluate"] = seed
        raise Interrupted("far enough")

    real = running.train
    monkeypatch.setattr(running, "seed_everything", seeded)
    monkeypatch.setattr(running, "train", lambda *a, seed, **k: seen.update(train=seed) or real(*a, seed=seed, **k))
    monkeypatch.setattr(running, "evaluate", far_enough)
    with pytest.raises(Interrupted, match="far enough"):
        run(one(changes={"epochs": "1"}, seeds=[seed]), options(tmp_path))
    assert seen == {"build": seed, "train": seed, "evaluate": seed}


def test_a_finished_cell_is_only_read(done, monkeypatch):
    planned, where, record = done
    monkeypatch.setattr(running, "load", lambda *a, **k: pytest.fail("data were loaded"))
    assert run(planned, where).id == record.id


def test_the_same_cell_gives_the_same_record_but_for_times(done, tmp_path):
    planned, _, record = done
    again = run(planned, options(tmp_path))
    assert again.data["weights_sha256"] == record.data["weights_sha256"]
    assert all(np.array_equal(v, again.arrays()[k]) for k, v in record.arrays().items())


def test_weights_are_not_trained_twice(done, tmp_path, monkeypatch):
    """A kill after training costs the evaluation only."""
    planned, where, record = done
    folder = tmp_path / "runs" / planned.cell.folder
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes((Path(where.runs_dir) / planned.cell.folder / WEIGHTS).read_bytes())
    monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("it trained again"))
    again = run(planned, options(tmp_path))
    assert again.data["training"] == record.data["training"]
    assert again.n_robust == record.n_robust


def test_an_evaluation_is_not_done_twice(done, tmp_path, monkeypatch):
    planned, where, record = done
    folder = tmp_path / "runs" / planned.cell.folder
    folder.mkdir(parents=True)
    for name in (WEIGHTS, EVALUATION, ARRAYS):
        (folder / name).write_bytes((Path(where.runs_dir) / planned.cell.folder / name).read_bytes())
    monkeypatch.setattr(running, "evaluate", lambda *a, **k: pytest.fail("it evaluated again"))
    assert run(planned, options(tmp_path)).data["evaluation"] == record.data["evaluation"]


def test_autoattack_evaluates_a_finished_cell_again_and_trains_nothing(done, tmp_path, monkeypatch):
    planned, where, _ = done
    folder = tmp_path / "runs" / planned.cell.folder
    folder.mkdir(parents=True)
    for name in (WEIGHTS, EVALUATION, ARRAYS):
        (folder / name).write_bytes((Path(where.runs_dir) / planned.cell.folder / name).read_bytes())
    asked = []

    def evaluate(*args, attacks, **more):
        asked.append(attacks.autoattack)
        raise BenchError("far enough")

    monkeypatch.setattr(running, "evaluate", evaluate)
    monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("it trained again"))
    assert finished(planned.cell, Path(where.results), Path(where.runs_dir), autoattack=True) is None
    with pytest.raises(BenchError, match="far enough"):
        run(planned, options(tmp_path, autoattack=True))
    assert asked == [True]


def test_the_evaluation_of_other_weights_is_not_used(done, tmp_path):
    planned, where, record = done
    folder = tmp_path / "runs" / planned.cell.folder
    folder.mkdir(parents=True)
    for name in (WEIGHTS, EVALUATION, ARRAYS):
        (folder / name).write_bytes((Path(where.runs_dir) / planned.cell.folder / name).read_bytes())
    kept = json.loads((folder / EVALUATION).read_text())
    (folder / EVALUATION).write_text(json.dumps({**kept, "weights_sha256": "0" * 64}))
    again = run(planned, options(tmp_path))
    assert again.data["weights_sha256"] == record.data["weights_sha256"]


def test_fresh_starts_over(done, tmp_path, monkeypatch):
    planned = one(changes={"epochs": "1"})
    run(planned, options(tmp_path))
    trained = []
    real = running.train
    monkeypatch.setattr(running, "train", lambda *a, **k: trained.append(1) or real(*a, **k))
    run(planned, options(tmp_path, fresh=True))
    assert trained == [1]


def test_an_interrupted_fresh_run_is_continued_although_an_old_record_exists(tmp_path):
    planned = one(changes={"epochs": "1"})
    run(planned, options(tmp_path))
    with pytest.raises(Interrupted):
        run(planned, options(tmp_path, fresh=True), should_stop=lambda: True)
    assert finished(planned.cell, tmp_path / "results", tmp_path / "runs") is None
    run(planned, options(tmp_path))
    assert finished(planned.cell, tmp_path / "results", tmp_path / "runs") is not None


def test_val_trains_without_the_validation_images_and_leaves_the_test_split_closed(tmp_path, monkeypatch):
    from bench.data import Dataset

    monkeypatch.setattr(Dataset, "test", lambda self: pytest.fail("the test split was opened"))
    planned = one(changes={"epochs": "1"}, split="val")
    sizes = []
    real = running.train
    monkeypatch.setattr(running, "train", lambda *a, **k: sizes.append(len(a[3])) or real(*a, **k))
    record = run(planned, options(tmp_path))
    data = record.data["data"]
    assert record.split == "val"
    assert (sizes, record.n) == ([data["n_train"] - data["n_val"]], data["n_val"])


def attack_later(record):
    """Beside the record an attack that breaks nothing more."""
    flags = record.arrays("index", "robust")
    robust = flags["robust"].astype(np.uint8)
    payload = {
        "attacked_with": {"suite": "pgd", "steps": 9, "restarts": 1, "seed": 1}, "attacks": [], "seconds": 1.0,
        "counts": reattack.counts(record, flags["index"], robust), "environment": {}, "code": {"dirty": False},
        "notes": [], "finished": "2026-01-31",
    }  # fmt: skip
    reattack.write(record, payload, {"index": flags["index"], "robust": robust})


def test_a_record_made_again_of_the_same_net_keeps_what_lies_beside_it(tmp_path):
    planned, where = one(changes={"epochs": "1"}), options(tmp_path)
    record = run(planned, where)
    attack_later(record)
    again = run(planned, Options(**{**asdict(where), "fresh": True}))
    (kept,), problems = reattack.of_record(again)
    assert again.id != record.id and again.data["weights_sha256"] == record.data["weights_sha256"]
    assert not problems and kept.data["record"] == again.id


def test_a_record_of_another_net_inherits_nothing_from_the_one_it_replaces(tmp_path, monkeypatch):
    planned, where, said = one(changes={"epochs": "1"}), options(tmp_path), []
    record = run(planned, where)
    attack_later(record)
    monkeypatch.setattr(running, "seed_everything", lambda *_: torch.manual_seed(99))
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "note", said.append)
    again = run(planned, replace(where, fresh=True), progress=progress)
    assert again.data["weights_sha256"] != record.data["weights_sha256"]
    assert reattack.of_record(again) == ([], []) and not said


def test_an_evaluation_elsewhere_makes_the_times_those_of_no_single_machine(tmp_path):
    """Trained on one thread and evaluated on two: its times may be averaged with nobody's."""
    planned, where = one(changes={"epochs": "1"}), options(tmp_path)
    weights = tmp_path / "runs" / planned.cell.folder / WEIGHTS
    with pytest.raises(Interrupted):
        run(planned, where, should_stop=weights.exists)
    record = run(planned, replace(where, threads=2))
    device = record.data["environment"]["device"]
    assert record.data["training"]["machines"] == [{"device": device, "threads": 1}]
    assert record.data["cost"]["machine"] == {"device": device, "threads": 2}
    assert record.machine == (f"{device} (also 1 thread)", 2)


def test_a_record_of_one_machine_names_it(done):
    _, _, record = done
    assert record.machine == (record.data["environment"]["device"], 1)


@pytest.mark.parametrize("changed", ["source_sha256", "method_sha256"])
def test_an_evaluation_by_other_code_is_not_taken_for_one_by_this(tmp_path, monkeypatch, changed):
    """A plugin whose bound was edited: the old certificates must not become a new record."""
    planned, where, said = one(changes={"epochs": "1"}), options(tmp_path), []
    run(planned, where)
    monkeypatch.setattr(running, changed, lambda *_: "0" * 64)
    real, seen = running.evaluate, []
    monkeypatch.setattr(running, "evaluate", lambda *a, **k: seen.append(1) or real(*a, **k))
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "note", said.append)
    run(planned, replace(where, results=str(tmp_path / "other")), progress=progress)
    assert seen == [1]
    assert any("another version of the method's file" in line for line in said) == (changed == "method_sha256")


def test_a_damaged_record_is_made_again_from_what_is_kept(tmp_path, monkeypatch):
    planned, where = one(changes={"epochs": "1"}), options(tmp_path)
    record = run(planned, where)
    (record.path / records.ARRAYS).write_bytes(b"cut off")
    monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("it trained again"))
    again = run(planned, where)
    assert again.check_arrays() is None and again.n_certified == record.n_certified


def test_fresh_forgets_nothing_before_the_run_can_begin(done, tmp_path, monkeypatch):
    planned, where, _ = done
    weights = Path(where.runs_dir) / planned.cell.folder / WEIGHTS
    monkeypatch.setattr(running, "load", lambda *a, **k: (_ for _ in ()).throw(BenchError("no such data")))
    with pytest.raises(BenchError, match="no such data"):
        run(planned, replace(where, fresh=True))
    assert weights.exists()


def test_damaged_weights_name_their_mend(tmp_path):
    planned, where = one(changes={"epochs": "1"}), options(tmp_path)
    record = run(planned, where)
    (tmp_path / "runs" / planned.cell.folder / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(StateError, match="--fresh` trains it again"):
        of_record(record, tmp_path / "runs", torch.device("cpu"))


def test_a_recipe_that_lost_a_field_says_which_code_has_it(done):
    _, where, record = done
    data = {**record.data, "cell": {**record.data["cell"], "overrides": {"gone": 1}}}
    with pytest.raises(BenchError, match=r"no field gone any more; check out ([0-9a-f]{12}|the version)"):
        of_record(replace(record, data=data), Path(where.runs_dir), torch.device("cpu"))


def test_the_code_is_that_of_bench_and_methods_and_changes_with_either(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    found = []
    for package in ("bench", "methods"):
        (tmp_path / package).mkdir()
    for path, text in (("bench/a.py", "1"), ("methods/a.py", "1"), ("methods/a.py", "2"), ("methods/k.cpp", "1")):
        (tmp_path / path).write_text(text)
        environment.source_sha256.cache_clear()
        found.append(environment.source_sha256())
    environment.source_sha256.cache_clear()
    assert len(set(found)) == len(found)


def test_an_evaluation_without_square_counts_as_not_attacked_by_autoattack():
    attacks = [{"name": "aa_apgd_ce"}, {"name": "aa_square"}]
    assert running._has_autoattack({"attacks": attacks})
    assert not running._has_autoattack({"attacks": attacks[:1]}) and not running._has_autoattack({"attacks": []})


def test_a_papers_preset_is_attacked_harder_than_the_cheap_ones():
    paper, quick = running.attack_budget("paper"), running.attack_budget("quick", autoattack=True)
    assert (paper.steps, paper.restarts, paper.autoattack) == (100, 3, False)
    assert (quick.steps, quick.restarts, quick.autoattack) == (20, 1, True)


def test_costs_name_the_seconds_of_training_and_of_all_attacks(done):
    _, _, record = done
    cost, attacks = record.data["cost"], record.data["evaluation"]["attacks"]
    assert cost["train_s"] == record.train_s > 0
    assert cost["attack_s"] == sum(a["seconds"] for a in attacks) > 0
    assert record.data["wall_s"] >= record.train_s + cost["attack_s"]


@pytest.mark.parametrize("status", [None, "", " M bench/run.py"])
def test_a_tree_that_git_cannot_tell_is_not_called_clean(monkeypatch, status):
    monkeypatch.setattr(environment, "_git", lambda *a: "c" * 40 if a[0] == "rev-parse" else status)
    assert environment.code_version()["dirty"] is (None if status is None else bool(status))


def test_overrides_are_marked(tmp_path):
    record = run(one(changes={"epochs": "1", "lr": "0.01"}), options(tmp_path))
    assert record.data["cell"]["overrides"] == {"epochs": 1, "lr": 0.01}
    assert record.is_modified


def test_a_changed_tuple_is_the_same_run_when_it_comes_back_from_disk(tmp_path):
    """JSON has no tuples: the identity in a file must still be that of the run which wrote it."""
    planned = one(changes={"epochs": "1", "lr_milestones": "0.5"})
    record = run(planned, options(tmp_path))
    assert record.data["cell"]["overrides"] == {"epochs": 1, "lr_milestones": [0.5]}
    assert run(planned, options(tmp_path)).id == record.id


def test_the_record_names_the_code_that_trained(done, monkeypatch):
    planned, where, record = done
    (code,) = record.trained_by
    assert code["source_sha256"] == record.data["code"]["source_sha256"]
    assert code["method_sha256"] == hashlib.sha256(PLUGIN.read_bytes()).hexdigest()
    made = Plan(Request(), [planned], [], "cpu", [], Path(where.runs_dir), done={planned.cell.id: record})
    assert "source has changed" not in made.lines()[0]
    monkeypatch.setattr(environment, "method_sha256", lambda method: "0" * 64)
    assert "its source has changed since; --fresh replaces it" in made.lines()[0]
    assert detail.command(record).startswith("bench run --plugin FILE.py -m tiny -d synthetic")


def test_a_record_trained_from_a_dirty_tree_is_dirty(done):
    record = done[2]
    code = [{**record.trained_by[0], "dirty": True}, {**record.trained_by[0], "dirty": False}]
    data = {**record.data, "code": {**record.data["code"], "dirty": False}}
    assert not replace(record, data={**data, "training": {**data["training"], "code": code[1:]}}).is_dirty
    assert replace(record, data={**data, "training": {**data["training"], "code": code}}).is_dirty


def test_a_run_in_use_is_refused(tmp_path):
    planned = one()
    with locked(tmp_path / "runs" / planned.cell.folder), pytest.raises(FileError, match="worked on by process"):
        run(planned, options(tmp_path))


def test_a_file_system_without_locks_is_told_from_a_folder_in_use(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FileError, match="No locks available; its file system has no locks"), locked(tmp_path):
        pass


def test_weights_of_another_recipe_are_refused(done, tmp_path):
    planned, where, _ = done
    state = load_tensors(Path(where.runs_dir) / planned.cell.folder / WEIGHTS)
    folder = tmp_path / "runs" / planned.cell.folder
    folder.mkdir(parents=True)
    other = {**state.meta["identity"], "recipe": "f" * 64}
    save_tensors(folder / WEIGHTS, state.tensors, {**state.meta, "identity": other})
    with pytest.raises(StateError, match="its recipe is"):
        run(planned, options(tmp_path))


def test_results_that_cannot_be_written_are_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "results").write_text("a file, not a folder")
    monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("it trained"))
    with pytest.raises(FileError, match="--results"):
        run(one(), options(tmp_path))


def test_a_net_with_hidden_state_is_refused(tmp_path, monkeypatch):
    """Anything that training leaves outside the tensors would be lost by a restart, silently."""
    method = registry.get("tiny")

    def finish(net, recipe, batches):
        net.register_forward_hook(lambda module, inputs, output: output + 1)

    monkeypatch.setattr(method, "finish", finish, raising=False)
    with pytest.raises(BenchError, match="must be a parameter or a buffer"):
        run(one(changes={"epochs": "1"}), options(tmp_path))


def test_progress_on_disk_is_known_from_headers(tmp_path):
    planned = one(changes={"epochs": "2", "batch_size": "64"})
    calls = [0]

    def stop():
        calls[0] += 1
        return calls[0] > 4

    with pytest.raises(Interrupted):
        run(planned, options(tmp_path), should_stop=stop)
    assert progress_of(planned.cell, tmp_path / "runs") == pytest.approx(4 / 16)
    assert progress_of(one().cell, tmp_path / "runs") is None


def test_a_stop_is_heard_in_the_middle_of_the_evaluation():
    """At the first report after it was asked for, not at the next part."""
    asked = []
    watched = StoppingProgress(Progress(quiet=True), lambda: bool(asked))
    watched.phase("attack", 10)
    watched.update(1)
    asked.append(True)
    with pytest.raises(Interrupted, match="the trained weights are saved"):
        watched.update(2)
    with pytest.raises(Interrupted):
        watched.phase("attack", 10)


def test_a_stop_in_the_evaluation_keeps_the_weights(tmp_path):
    planned = one(changes={"epochs": "1"})
    weights = tmp_path / "runs" / planned.cell.folder / WEIGHTS
    with pytest.raises(Interrupted, match="evaluation"):
        run(planned, options(tmp_path), should_stop=weights.exists)
    assert weights.exists() and progress_of(planned.cell, tmp_path / "runs") == 1.0
