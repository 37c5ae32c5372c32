"""Attacks added to a record: what is stored, what is refused, and what reports say about it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import certification, reattack, record
from bench.errors import BenchError
from bench.reattack import Reattack, of_record, write
from bench.record import Record, canonical, identity
from bench.report import compare, figures, fmt, rows, tables

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "synthetic_records.py"))).make


def attacked(one: Record, count: int | None = None, breaks: Any = (), **changes: Any) -> Reattack:
    """What the record's attacks left standing and these, which break the examples at `breaks`, leave too."""
    theirs = {k: v[:count] for k, v in one.arrays("index", "robust").items()}
    robust = theirs["robust"].astype(np.uint8)
    robust[list(breaks)] = 0
    payload = {
        "attacked_with": {"suite": "autoattack", "steps": 100, "restarts": 3, "seed": 1},
        "attacks": [{"name": "apgd-ce", "steps": 100, "restarts": 1, "n_attacked": 9, "n_broken": len(breaks),
                     "seconds": 1.0}],
        "counts": reattack.counts(one, theirs["index"], robust), "seconds": 1.5, "environment": {},
        "code": {"dirty": False}, "notes": [], "finished": "2026-01-31", **changes,
    }  # fmt: skip
    return write(one, payload, {"index": theirs["index"], "robust": robust})


def uncertified(one: Record, count: int = 60) -> list[int]:
    """Rows that are robust by the record and not certified, so that an attack may break them."""
    flags = one.arrays("robust", "certified")
    return [int(at) for at in np.flatnonzero(flags["robust"] & ~flags["certified"]) if at < count]


@pytest.fixture
def one(tmp_path: Path) -> Record:
    return make(tmp_path, n=60)


def test_what_is_written_is_read_back_and_the_union_counts(one: Record) -> None:
    at = uncertified(one)[:1]
    kept = attacked(one, breaks=at)
    found, problems = of_record(one)
    assert not problems and [f.data for f in found] == [kept.data]
    assert found[0].count("newly_broken") == 1
    assert found[0].count("robust_both") == one.n_robust - 1
    assert found[0].count("certified") == one.n_certified
    assert found[0].path.name == "attacked-autoattack-100x3-s1.json"


def test_breaking_a_proved_example_cannot_be_stored(one: Record) -> None:
    assert one.certificate_class in ("D", "F32")
    proved = int(np.flatnonzero(one.arrays("certified")["certified"])[0])
    with pytest.raises(BenchError, match="certifies with class"):
        attacked(one, breaks=[proved])


def test_wrong_counts_are_refused(one: Record) -> None:
    with pytest.raises(BenchError, match=r"counts\.correct"):
        attacked(one, counts=dict.fromkeys(reattack.COUNTS, 0))


def test_a_forged_count_is_a_problem_even_with_a_mended_hash(one: Record) -> None:
    path = attacked(one, breaks=uncertified(one)[:1]).path
    data = json.loads(path.read_text(encoding="utf-8"))
    data["counts"]["newly_broken"] = 0
    path.write_bytes(canonical(data))
    assert "edited" in of_record(one)[1][0].reason
    data["id"] = identity(data)
    path.write_bytes(canonical(data))
    assert "newly_broken" in of_record(one)[1][0].reason


def test_a_sample_is_named_and_shown_with_its_mark(one: Record, tmp_path: Path) -> None:
    at = uncertified(one, 40)[:1]
    part = attacked(one, 40, breaks=at)
    assert part.path.name == "attacked-autoattack-100x3-s1-n40.json" and part.is_subset
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    found = next(t for t in tables.build(inputs) if t.name == "reattacks")
    (row,) = found.rows()
    assert "s" in row["both"].marks and row["newly"].text == str(len(at))
    assert "n = 40" in found.blocks[0].heading and "sample" in found.blocks[0].heading
    assert row["open"].text == str(part.count("robust_both") - part.count("certified"))


def test_what_a_later_attack_on_the_whole_split_broke_is_robust_in_no_table(one: Record, tmp_path: Path) -> None:
    at = uncertified(one)[:1]
    attacked(one, 40)  # a sample changes no share of the split
    (before,) = rows.gather(record.scan(tmp_path)[0], []).pools
    assert before.count("robust") == one.n_robust and "a" not in before.marks("robust")
    attacked(one, breaks=at)
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    (pool,) = inputs.pools
    assert pool.count("robust") == one.n_robust - 1 == int(pool.members[0].flags["robust"].sum())
    assert pool.count("certified") == one.n_certified
    assert "a" in pool.marks("robust") and "w" not in pool.marks("robust") and "a" not in pool.marks("clean")
    assert pool.suite.endswith("+ later autoattack")
    assert pool.csv_rows[0]["n_robust"] == one.n_robust - 1
    shown = [row for t in tables.build(inputs) if t.name.startswith("main_") for row in t.rows()]
    assert [row["method"].text for row in shown if "a" in row["robust"].marks] == [pool.title]


def test_the_order_of_the_attacked_examples_does_not_matter(one: Record, tmp_path: Path) -> None:
    flags = one.arrays("index", "robust", "certified")
    robust = flags["robust"].astype(np.uint8)
    robust[uncertified(one)[0]] = 0
    turned = np.argsort(-flags["index"])
    kept = attacked(one)
    same = ("attacked_with", "attacks", "seconds", "environment", "code", "notes", "finished")
    payload = {k: kept.data[k] for k in same}
    payload["counts"] = reattack.counts(one, flags["index"][turned], robust[turned])
    write(one, payload, {"index": flags["index"][turned], "robust": robust[turned]})
    (pool,) = rows.gather(record.scan(tmp_path)[0], []).pools
    assert (pool.members[0].flags["robust"] == (flags["robust"] & robust.astype(bool))).all()


def test_reports_without_any_have_no_such_table_and_name_broken_ones(one: Record, tmp_path: Path) -> None:
    path = attacked(one).path
    path.write_text("{", encoding="utf-8")
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    assert "reattacks" not in {t.name for t in tables.build(inputs)}
    assert any(path.name in line for line in inputs.problems)


def test_a_record_without_its_arrays_is_a_problem_and_not_the_end(one: Record, tmp_path: Path) -> None:
    attacked(one)
    (one.path / record.ARRAYS).unlink()
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    assert len(inputs.problems) == 2 and all(one.short in p for p in inputs.problems)


def test_a_warning_of_an_attack_keeps_the_mark_of_doubt(one: Record, tmp_path: Path) -> None:
    strong = {"name": "pgd", "steps": 100, "restarts": 3, "n_attacked": 9}
    attacked(one, attacks=[strong])
    assert "w" not in rows.gather(record.scan(tmp_path)[0], []).pools[0].marks("robust")
    note = "aa_square warns: square_gain (4); the robust accuracy may be too high"
    attacked(one, attacks=[strong, {"name": "aa_square", "n_attacked": 9, "flags": {"square_gain": 4}}], notes=[note])
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    assert "w" in inputs.pools[0].marks("robust")
    (table,) = [t for t in tables.build(inputs) if t.name == "reattacks"]
    assert any(note in line and "seed 0" in line for line in table.notes)


def test_a_later_attack_against_a_class_r_certificate_costs_it_everywhere(tmp_path: Path) -> None:
    one = make(tmp_path, n=60, cls="R")
    proved = int(np.flatnonzero(one.arrays("certified")["certified"])[0])
    found = attacked(one, breaks=[proved])
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    (pool,) = inputs.pools
    assert pool.count("certified") == one.n_certified - 1 and "c" in pool.marks("certified")
    every = {t.name: t for t in tables.build(inputs)}
    for name in ("main_mnist_0.1", "runs"):
        (row,) = every[name].rows()
        assert row["certified"].sort == 100 * (one.n_certified - 1) / 60, name
    assert reattack.n_open(one, found) == one.n_robust - 1 - (one.n_certified - 1)
    (curve,) = [spec for spec in figures.build(inputs) if spec.kind == "curve"]
    assert curve.data["series"][0]["certified"] == pytest.approx(100 * (one.n_certified - 1) / 60, abs=1e-4)
    assert fmt.percent(one.n_certified - 1, 60) in curve.alt


def test_a_sound_certificate_that_a_later_attack_refutes_is_a_problem(one: Record, tmp_path: Path) -> None:
    at = uncertified(one)[:1]
    theirs = one.arrays("index", "correct", "certified")
    outcome = np.where(theirs["correct"], 2, 0)
    outcome[theirs["certified"].astype(bool)] = 1
    outcome[at] = 1
    payload = {
        "certified_with": {"certifier": "exact", "certificate": "exact", "cls": "F32", "engine": "bench"},
        "counts": {name: int((outcome == code).sum()) for code, name in enumerate(certification.OUTCOMES)},
        "n_borderline": 0, "limits": {}, "seconds": 1.0, "environment": {}, "code": {"dirty": False}, "notes": [],
        "finished": "2026-01-31",
    }  # fmt: skip
    arrays = {"index": theirs["index"], "outcome": outcome, "bound": np.where(outcome == 1, 0.5, -1.0),
              "seconds": np.zeros(60)}  # fmt: skip
    certification.write(one, payload, arrays)
    assert not rows.gather(record.scan(tmp_path)[0], []).problems
    attacked(one, breaks=at)
    (problem,) = rows.gather(record.scan(tmp_path)[0], []).problems
    assert "1 certified examples were broken by later attacks" in problem


def test_compare_counts_later_attacks_as_reports_do(tmp_path: Path) -> None:
    a, b = make(tmp_path, n=60, method="linf_dist"), make(tmp_path, n=60, method="ibp")
    attacked(a, breaks=uncertified(a)[:2])
    (robust,) = [line for line in compare.compare(a, b).lines if line.metric == "robust"]
    assert robust.verdict == "not comparable: other attacks"  # b has not met them
    attacked(b)
    found = compare.compare(a, b)
    (robust,) = [line for line in found.lines if line.metric == "robust"]
    assert robust.a == 100 * (a.n_robust - len(uncertified(a)[:2])) / 60 and robust.p is not None
    assert any("later attacks" in note for note in found.notes)


def test_a_weaker_attack_later_takes_nothing_back(one: Record, tmp_path: Path) -> None:
    at = uncertified(one)[:1]
    attacked(one, breaks=at)
    attacked(one, attacked_with={"suite": "autoattack", "steps": 1, "restarts": 1, "seed": 1})
    (pool,) = rows.gather(record.scan(tmp_path)[0], []).pools
    assert len(of_record(one)[0]) == 2 and pool.count("robust") == one.n_robust - 1
    assert pool.suite.endswith("+ later autoattack")


def test_names_of_before_are_still_read(one: Record) -> None:
    made = attacked(one).path
    for kind in (".json", ".npz"):
        made.with_suffix(kind).rename(made.with_name(f"attacked-autoattack{kind}"))
    (found,), problems = of_record(one)
    assert not problems and found.path.name == "attacked-autoattack.json"
