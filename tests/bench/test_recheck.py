"""Work on a finished run: two works do not disturb each other, a stopped one goes on, a weaker one replaces nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import posthoc, reattack, recheck, registry
from bench import record as records
from bench.attack import AttackConfig
from bench.cell import plan
from bench.data.dataset import Dataset
from bench.errors import BenchError
from bench.files import FileError
from bench.options import Options
from bench.progress import Progress
from bench.recheck import Again, CertifyOptions
from bench.run import run

PLUGIN = Path(__file__).with_name("tiny_method.py")
QUIET = Progress(quiet=True)


@pytest.fixture
def run_of(tmp_path):
    """(record, where its weights are)"""
    registry.add_file(PLUGIN)
    before = torch.get_num_threads()
    (planned,), _ = plan(["tiny"], ["synthetic"], changes={"epochs": "1"})
    record = run(planned, Options(results=str(tmp_path / "results"), runs_dir=str(tmp_path / "runs")))
    yield record, Again(tmp_path / "runs")
    torch.set_num_threads(before)


def parts(again, record, about):
    return again.parts(record, *again.open(record), about)


def test_a_short_work_leaves_the_parts_of_a_long_one_alone(run_of):
    record, again = run_of
    with pytest.raises(KeyboardInterrupt), parts(again, record, {"long": 1}) as keep:
        keep.save("attack-one", {"hours": 3}, {})
        raise KeyboardInterrupt
    recheck.attack(record, again, AttackConfig(steps=1), seed=1, progress=QUIET, examples=10)
    with parts(again, record, {"long": 1}) as keep:
        assert keep.load("attack-one")[0] == {"hours": 3}
    assert not any((again.runs_dir / record.path.name / "again").iterdir())  # finished works leave nothing


def test_the_same_work_twice_at_a_time_is_refused(run_of):
    record, again = run_of
    about = {"attack": "the same"}
    with (
        parts(again, record, about),
        pytest.raises(FileError, match="is being worked on"),
        parts(again, record, about),
    ):
        pass


def test_an_attack_is_told_of_the_record_that_is_there_when_it_ends(run_of, monkeypatch):
    """The same net evaluated again meanwhile, in hours of attacks: what was found is kept beside the new record."""
    record, again = run_of
    real = recheck.evaluate

    def slow(*args, **options):
        payload = {k: v for k, v in record.data.items() if k not in ("schema", "id", "arrays")}
        newer = records.write(record.path.parents[1], {**payload, "wall_s": 1.0}, record.arrays())
        assert newer.id != record.id
        return real(*args, **options)

    monkeypatch.setattr(recheck, "evaluate", slow)
    recheck.attack(record, again, AttackConfig(steps=1), seed=1, progress=QUIET)
    (found,), problems = reattack.of_record(records.read(record.path))
    assert not problems and found.data["record"] != record.id


def test_a_record_of_another_net_takes_no_attack_on_this_one(run_of, monkeypatch):
    record, _ = run_of
    other = replace(record, data={**record.data, "weights_sha256": "0" * 64})
    with pytest.raises(BenchError, match="replaced meanwhile by one of another net"):
        recheck._now(other)


def test_an_attack_that_leaves_out_more_does_not_replace_one_that_left_out_less(run_of, monkeypatch):
    record, again = run_of
    config = AttackConfig(steps=1)
    recheck.attack(record, again, config, seed=1, progress=QUIET)
    monkeypatch.setattr(reattack.Reattack, "n_certified_attacked", 5)
    with pytest.raises(BenchError, match=r"is kept: .*5 certified examples"):
        recheck.attack(record, again, replace(config, attack_certified=False), seed=1, progress=QUIET)
    recheck.attack(record, again, config, seed=1, progress=QUIET)  # as strong: may be done again


def edited(record, *path, value):
    data = json.loads(json.dumps(record.data))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return replace(record, data=data)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("weights_sha256",), "0" * 64, "are not those of record"),
        (("recipe", "hash"), "0" * 64, "has changed since"),
        (("data", "checksum"), "0" * 64, "these images are not those of record"),
    ],
)
def test_a_record_is_looked_at_with_its_own_net_recipe_and_images_only(run_of, path, value, said):
    record, again = run_of
    again.open(record)
    with pytest.raises(BenchError, match=said):
        again.open(edited(record, *path, value=value))


def test_a_validation_record_is_looked_at_on_validation_images(tmp_path, run_of, monkeypatch):
    (planned,), _ = plan(["tiny"], ["synthetic"], changes={"epochs": "1"}, split="val")
    record = run(planned, Options(results=str(tmp_path / "val"), runs_dir=str(tmp_path / "runs")))
    monkeypatch.setattr(Dataset, "test", lambda self: pytest.fail("the test split was opened"))
    _, split = Again(tmp_path / "runs").open(record)
    assert sorted(split.index.tolist()) == sorted(record.arrays("index")["index"].tolist())


def test_what_is_wrong_in_the_record_counts_as_wrong(run_of):
    """A margin near 0 may have another sign on another machine; a certificate of it counts nowhere."""
    record, _ = run_of
    flags = record.arrays("index", "correct")
    outcome = np.full(len(flags["index"]), posthoc.OUTCOMES.index("certified"), np.int8)
    found, notes = recheck._against_record(record, flags["index"], outcome)
    wrong = ~flags["correct"]
    assert wrong.any() and (found[wrong] == posthoc.OUTCOMES.index("misclassified")).all()
    assert f"{int(wrong.sum())} examples are right here and wrong in the record" in notes[0]


def test_a_weaker_attack_before_does_not_spare_a_stronger_one(run_of):
    record, again = run_of
    weak, strong = AttackConfig(steps=1), AttackConfig(steps=2)
    recheck.attack(record, again, weak, seed=1, progress=QUIET)
    for config, seed, there in ((weak, 1, True), (strong, 1, False), (weak, 2, False)):
        wanted = recheck.attacked_with(config, seed)
        assert (reattack.as_strong(record, wanted, None, certified_too=False) is not None) == there


def test_arrays_beside_a_record_that_were_altered_are_a_problem(run_of):
    record, again = run_of
    found = recheck.attack(record, again, AttackConfig(steps=1), seed=1, progress=QUIET)
    path = found.path.with_suffix(".npz")
    path.write_bytes(path.read_bytes() + b" ")
    kept, (problem,) = reattack.of_record(record)
    assert not kept and "sha256 differs" in problem.reason


def test_a_certification_that_was_stopped_goes_on(run_of, monkeypatch):
    record, again = run_of
    monkeypatch.setattr(posthoc, "SAVE_EVERY_S", 0.0)
    options = CertifyOptions("ibp")
    method = registry.get("tiny")
    seen, stop_after = [], [4]

    def bound(net, x, y, eps, certifier):
        if len(seen) == stop_after[0]:
            raise KeyboardInterrupt
        seen.append(len(y))
        return method.margin_bound(net, x, y, eps)

    monkeypatch.setattr(method, "posthoc_bound", bound, raising=False)
    monkeypatch.setitem(posthoc.ROWS, "ibp", 10)
    with pytest.raises(KeyboardInterrupt):
        recheck.certify(record, again, options, progress=QUIET)
    before = sum(seen[1:])  # the first call asks whether there is such a bound
    stop_after[0] = -1
    seen.clear()
    found = recheck.certify(record, again, options, progress=QUIET)
    assert before == 30 and sum(seen[1:]) == record.n_correct - before
    assert found.count("timeout") == 0
    wrong = found.outcome == posthoc.OUTCOMES.index("misclassified")
    assert np.array_equal(wrong, ~record.arrays("correct")["correct"])
