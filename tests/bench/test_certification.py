"""Certificates added to a record: what is stored, what is refused, and what reports say about it."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import certification, record
from bench.certification import OUTCOMES, Certification, of_record, own_count, write
from bench.errors import BenchError
from bench.record import Record, canonical, identity
from bench.report import rows, tables

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "synthetic_records.py"))).make

CERTIFIED, UNKNOWN, TIMEOUT = (OUTCOMES.index(name) for name in ("certified", "unknown", "timeout"))


def added(one: Record, count: int | None = None, **changes: Any) -> Certification:
    """Certify what the record certifies, all other right examples unknown."""
    theirs = {name: values[:count] for name, values in one.arrays("index", "correct", "certified").items()}
    outcome = np.where(theirs["correct"], UNKNOWN, OUTCOMES.index("misclassified"))
    outcome = changes.pop("outcome", np.where(theirs["certified"], CERTIFIED, outcome)).astype(np.int8)
    bound = changes.pop("bound", np.where(outcome == CERTIFIED, 0.5, -1.0))
    payload = {
        "certified_with": {"certifier": "crown", "certificate": "crown", "cls": "R", "engine": "auto_LiRPA 0.3"},
        "counts": {name: int((outcome == code).sum()) for code, name in enumerate(OUTCOMES)},
        "n_borderline": 0, "limits": {"all_s": None, "example_s": None}, "seconds": 1.5, "environment": {},
        "code": {"dirty": False}, "notes": [], "finished": "2026-01-31", **changes,
    }  # fmt: skip
    arrays = {"index": theirs["index"], "outcome": outcome, "bound": bound, "seconds": np.zeros(len(outcome))}
    return write(one, payload, arrays)


@pytest.fixture
def one(tmp_path: Path) -> Record:
    return make(tmp_path, n=60, method="standard")


def test_what_is_written_is_read_back_beside_its_record(one: Record) -> None:
    kept = added(one)
    found, problems = of_record(one)
    assert not problems
    assert [f.data for f in found] == [kept.data]
    assert (found[0].outcome == kept.outcome).all()
    assert found[0].data["trained_with"]["method"] == "standard"
    assert found[0].data["certified_with"]["certifier"] == "crown"


def test_the_record_itself_stays_as_it_was(one: Record, tmp_path: Path) -> None:
    before = (one.path / record.FILE).read_bytes()
    added(one)
    assert (one.path / record.FILE).read_bytes() == before
    assert len(record.scan(tmp_path)[0]) == 1


def test_a_subset_is_named_and_does_not_replace_the_whole(one: Record) -> None:
    added(one)
    part = added(one, 20)
    assert part.path.name == "certified-crown-n20.json"
    assert [f.is_subset for f in of_record(one)[0]] == [True, False]  # by name
    assert own_count(one, part.index, "certified") == int(one.arrays("certified")["certified"][:20].sum())


def test_an_example_that_an_attack_broke_cannot_be_stored_as_certified(one: Record) -> None:
    flags = one.arrays("correct", "robust")
    assert (flags["correct"] & ~flags["robust"]).any()
    with pytest.raises(BenchError, match="attacks broke"):
        added(one, outcome=np.where(flags["correct"], CERTIFIED, 0))


def test_an_example_without_a_bound_above_zero_cannot_be_stored_as_certified(one: Record) -> None:
    with pytest.raises(BenchError, match="bound"):
        added(one, bound=np.zeros(one.n))


def test_wrong_counts_are_refused(one: Record) -> None:
    with pytest.raises(BenchError, match=r"counts\.misclassified"):
        added(one, counts={name: 0 for name in OUTCOMES} | {"misclassified": 60})


@pytest.mark.parametrize("field", ["seconds", "counts"])
def test_an_edited_file_is_a_problem_and_no_number(one: Record, field: str) -> None:
    path = added(one).path
    data = json.loads(path.read_text(encoding="utf-8"))
    data[field] = 99 if field == "seconds" else {**data[field], "unknown": 0, "certified": 60}
    path.write_bytes(canonical(data))
    assert "edited" in of_record(one)[1][0].reason
    data["id"] = identity(data)
    path.write_bytes(canonical(data))
    assert bool(of_record(one)[1]) is (field == "counts")  # a forger who mends the hash still cannot count


@pytest.mark.parametrize("damage", ["[]", "{", '{"version": 2}', ""])
def test_a_damaged_file_is_one_line(one: Record, damage: str) -> None:
    added(one).path.write_text(damage, encoding="utf-8")
    found, problems = of_record(one)
    assert not found
    assert len(problems) == 1
    assert "\n" not in problems[0].reason


def test_files_of_another_run_are_refused(one: Record, tmp_path: Path) -> None:
    other = make(tmp_path, n=60, method="pgd")
    for path in (added(one).path, added(one).path.with_suffix(".npz")):
        shutil.copy(path, other.path)
    assert "speaks about record" in of_record(other)[1][0].reason


def test_reports_show_it_with_its_subset_mark_and_every_kind_of_no(one: Record, tmp_path: Path) -> None:
    correct = one.arrays("correct")["correct"][:20]
    added(one, 20, outcome=np.where(correct, TIMEOUT, 0))
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    found = next(t for t in tables.build(inputs) if t.name == "posthoc")
    (row,) = found.rows()
    assert "s" in row["certified"].marks
    assert row["certifier"].text == "crown (R)"
    assert (row["unknown"].text, row["timeout"].text) == ("0", str(int(correct.sum())))
    assert "n = 20" in found.blocks[0].heading


def test_reports_without_any_have_no_such_table_and_name_broken_ones(one: Record, tmp_path: Path) -> None:
    path = added(one).path
    path.write_text("{", encoding="utf-8")
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    assert "posthoc" not in {t.name for t in tables.build(inputs)}
    assert any(path.name in line for line in inputs.problems)


def test_names_say_certifier_and_part() -> None:
    assert certification.name_of("ibp", 10, 10) == "certified-ibp"
    assert certification.name_of("ibp", 9, 10) == "certified-ibp-n9"


def test_a_result_cut_short_does_not_replace_a_better_one(one: Record) -> None:
    whole = added(one)
    outcome = np.where(whole.outcome == CERTIFIED, TIMEOUT, whole.outcome)
    with pytest.raises(BenchError, match="is kept: it certifies"):
        added(one, outcome=outcome)
    assert of_record(one)[0][0].count("certified") == whole.count("certified")
    worse = np.where(whole.outcome == CERTIFIED, UNKNOWN, whole.outcome)  # decided otherwise: a new answer
    assert added(one, outcome=worse).count("certified") == 0
