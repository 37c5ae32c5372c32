"""Comparing two records: paired where it may be, refused with a reason where it may not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bench import record
from bench.report import compare, detail, stats


@pytest.fixture()
def pair(tmp_path, make):
    a = make(tmp_path, n=2000, method="linf_dist", skill=1.5, reach=0.2)
    b = make(tmp_path, n=2000, method="ibp", skill=1.5, reach=0.12)
    return a, b


def line(comparison, metric):
    return next(item for item in comparison.lines if item.metric == metric)


def test_discordant_counts_and_p_are_of_the_same_images(pair):
    a, b = pair
    found = line(compare.compare(a, b), "certified")
    one, two = a.arrays("certified")["certified"], b.arrays("certified")["certified"]
    assert (found.only_a, found.only_b) == (int((one & ~two).sum()), int((two & ~one).sum()))
    assert found.p == stats.mcnemar(found.only_a, found.only_b)
    assert found.delta == pytest.approx(b.certified - a.certified)
    assert found.verdict == "worse"


def test_swapping_the_sides_swaps_the_verdict(pair):
    assert line(compare.compare(*reversed(pair)), "certified").verdict == "better"


def test_a_record_against_itself_is_the_same(pair):
    found = compare.compare(pair[0], pair[0])
    assert {item.verdict for item in found.lines[:3]} == {"same within noise"}
    assert "same record" in found.text()[-1]


def test_one_run_on_each_side_is_said_to_be_one(pair):
    assert "these two runs only" in compare.compare(*pair).text()[-1]


@pytest.mark.parametrize(
    ("change", "metric", "said"),
    [
        ({"preset": "paper"}, "certified", "preset quick and paper"),
        ({"eps": "0.3"}, "certified", "eps 0.1 and 0.3"),
        ({"dataset": "digits"}, "clean", "data mnist and digits"),
        ({"checksum": "f" * 64}, "clean", "other data checksum"),
        ({"n": 500}, "certified", "n 2000 and 500"),
        ({"split": "val"}, "clean", "split test and val"),
        ({"device": "NVIDIA H100"}, "train s", "other device"),
    ],
)
def test_what_may_not_be_compared_is_refused_with_the_reason(tmp_path, make, change, metric, said):
    a = make(tmp_path / "a", n=2000, preset="quick")
    b = make(tmp_path / "b", **{"n": 2000, "preset": "quick", **change})
    found = line(compare.compare(a, b), metric)
    assert found.verdict == f"not comparable: {said}"
    assert found.p is None


def test_records_of_other_images_are_not_paired(tmp_path, make):
    """As many, of the same data set, but others: image by image there is nothing to compare."""
    a = make(tmp_path / "a", n=500)
    arrays = {name: values.copy() for name, values in a.arrays().items()}
    arrays["index"] += 500
    payload = {k: v for k, v in a.data.items() if k not in ("schema", "id", "arrays")}
    b = record.write(tmp_path / "b", payload, arrays)
    found = line(compare.compare(a, b), "certified")
    assert found.verdict == "not comparable: other images" and found.p is None


def test_other_norms_are_not_compared(tmp_path, make):
    a, b = make(tmp_path / "a", n=500), make(tmp_path / "b", n=500)
    b = replace(b, data={**b.data, "method": {**b.data["method"], "norm": "l2"}})
    assert line(compare.compare(a, b), "certified").verdict == "not comparable: norm linf and l2"


def test_clean_accuracy_is_comparable_across_eps(tmp_path, make):
    a, b = make(tmp_path, n=500), make(tmp_path, n=500, eps="0.3")
    assert line(compare.compare(a, b), "clean").p is not None


def test_classes_are_named_when_they_differ(tmp_path, make):
    a, b = make(tmp_path, n=500), make(tmp_path, n=500, method="ibp", cls="R")
    assert line(compare.compare(a, b), "certified").verdict.endswith("(class D and R)")


def test_the_gate_closes_on_a_real_drop_only(pair):
    found = compare.compare(*pair)
    assert found.exit_code() == 0
    assert found.exit_code(0.5) == 1
    assert found.exit_code(90.0) == 0
    assert compare.compare(*reversed(pair)).exit_code(0.5) == 0


def test_a_gate_that_cannot_compare_does_not_open(tmp_path, make):
    a, b = make(tmp_path, n=500), make(tmp_path, n=500, eps="0.3")
    assert compare.compare(a, b).exit_code(90.0) == 1


def test_a_drop_that_may_be_chance_does_not_close_the_gate(tmp_path, make):
    a = make(tmp_path, n=40, skill=1.5, reach=0.2)
    flags = {name: values.copy() for name, values in a.arrays().items()}
    one = int(np.flatnonzero(flags["certified"])[0])
    flags["certified"][one] = False
    flags["bound_interval"][one] = -1.0
    payload = {k: v for k, v in a.data.items() if k not in ("schema", "id", "arrays")}
    evaluation = {**payload["evaluation"], "n_certified": a.n_certified - 1}
    b = record.write(tmp_path / "b", {**payload, "evaluation": evaluation}, flags)
    found = compare.compare(a, b)
    assert line(found, "certified").delta == -2.5 and found.exit_code(1.0) == 0


@pytest.mark.parametrize("where", ["threads", "dataset"])
def test_times_of_other_threads_and_other_data_are_not_compared(tmp_path, make, where):
    a = make(tmp_path / "a", n=500)
    b = make(tmp_path / "b", n=500, **({"dataset": "digits"} if where == "dataset" else {}))
    if where == "threads":
        b = replace(b, data={**b.data, "environment": {**b.data["environment"], "threads": 7}})
    assert line(compare.compare(a, b), "train s").verdict.startswith("not comparable")


def test_json_and_text_say_the_same(pair):
    found = compare.compare(*pair)
    data = json.loads(json.dumps(found.as_dict()))
    assert [m["metric"] for m in data["metrics"]] == [item.metric for item in found.lines]
    text = "\n".join(found.text())
    for item in data["metrics"]:
        assert item["verdict"] in text


def test_two_folders_are_compared_cell_by_cell(tmp_path, make):
    a = [make(tmp_path / "a", n=50), make(tmp_path / "a", n=50, method="ibp")]
    b = [make(tmp_path / "b", n=50), make(tmp_path / "b", n=50, method="groupsort")]
    words = [what if done is None else "both" for what, done in compare.folders(a, b)]
    assert sorted(w.rpartition(" ")[2] for w in words) == ["both", "gone", "new"]


def test_runs_that_differ_in_their_recipe_are_told_apart(tmp_path, make):
    a = make(tmp_path, method="ibp", overrides={"widths": [64, 32], "lr": 0.1})
    b = make(tmp_path, method="ibp", overrides={"lr": 0.2})
    head = compare.compare(a, b).text()
    assert "lr=0.1, widths=64,32" in head[0] and "lr=0.2" in head[1]
    names = [name for name, _ in compare.folders([a, b], [a])]
    assert any("lr=0.2: gone" in name for name in names)
    assert detail.command(a).endswith("--set lr=0.1 --set widths=64,32")  # as a shell and bench run take it
