"""Who may be called best, and who cannot be told from it: over classes, over seeds, over machines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench import record
from bench.report import detail, figures, findings, league, rows, tables
from bench.report.blocks import Standing, paired_p
from bench.report.checked import Checked, check
from bench.report.pool import Pool


def gather(folder):
    return rows.gather(record.scan(folder)[0], [])


def remade(pool: Pool, *certified: np.ndarray) -> Pool:
    """The pool with these certified flags, a seed each; correct and robust follow."""
    members = []
    for seed, flags in enumerate(certified):
        one = pool.members[0].record
        data = {**one.data, "cell": {**one.data["cell"], "seed": seed}}
        evaluation = {**one.data["evaluation"], **{f"n_{k}": int(flags.sum()) for k in ("certified", "robust")}}
        made = replace(one, data={**data, "evaluation": evaluation})
        members.append(Checked(made, {"certified": flags, "robust": flags, "correct": flags}, None))
    return replace(pool, members=tuple(members))


@pytest.fixture
def pair(tmp_path, make):
    make(tmp_path, n=400, method="linf_dist")
    make(tmp_path, n=400, method="ibp")
    return gather(tmp_path).pools


def first(count: int) -> np.ndarray:
    return np.arange(400) < count


def test_seeds_that_disagree_leave_no_difference_to_claim(pair):
    """By the means a leads, on seed 0 b does: a test of one seed would crown the row that it says is worse."""
    a, b = remade(pair[0], first(198), first(331)), remade(pair[1], first(324), first(0))
    assert a.count("certified") > b.count("certified")
    assert paired_p(a, b, "certified") == 1.0
    assert paired_p(remade(pair[0], first(198)), remade(pair[1], first(324)), "certified") < 1e-6


def test_the_weakest_seed_decides_where_all_agree(pair):
    a, b = remade(pair[0], first(300), first(300)), remade(pair[1], first(200), first(296))
    alone = paired_p(remade(pair[0], first(300)), remade(pair[1], first(296)), "certified")
    assert paired_p(a, b, "certified") == alone > 0.05


def test_among_many_rows_a_difference_has_to_be_larger(tmp_path, make):
    """Six images apart is p = .031 for one rival; with three it happens by chance."""
    for method in ("linf_dist", "ibp", "crown_ibp", "groupsort"):
        make(tmp_path, n=400, method=method)
    pools = gather(tmp_path).pools
    (block,) = gather(tmp_path).blocks
    alone = (remade(pools[0], first(300)), remade(pools[1], first(294)))
    many = (alone[0], *(remade(p, first(294)) for p in pools[1:]))
    assert 0.03 < paired_p(*alone, "certified") < 0.05
    assert replace(block, pools=alone)._tied("certified", range(2)) == (0, [])
    assert replace(block, pools=many)._tied("certified", range(4)) == (0, [1, 2, 3])


def test_other_images_in_the_same_places_give_no_paired_test(pair):
    a, b = remade(pair[0], first(300)), remade(pair[1], first(100))
    assert paired_p(a, b, "certified") < 1e-6
    b.members[0].__dict__["index"] = a.members[0].index + 1
    assert paired_p(a, b, "certified") == 1.0


@pytest.mark.parametrize("change", [{"checksum": "f" * 64}, {"n": 300}, {"recipe": "9" * 64}])
def test_only_runs_of_one_recipe_on_the_same_images_are_seeds_of_a_row(tmp_path, make, change):
    one = make(tmp_path, n=400, method="ibp", seed=0)
    data = {k: v for k, v in change.items() if k != "recipe"}
    other = make(tmp_path, **{"n": 400, "method": "ibp", "seed": 1, **data})
    records = [one, other]
    if "recipe" in change:
        data = {**other.data, "recipe": {**other.data["recipe"], "hash": change["recipe"]}}
        records[1] = replace(other, data=data)
    inputs = rows.gather(records, [])
    assert [p.k for p in inputs.pools] == [1, 1]
    assert len(inputs.blocks) == (1 if "recipe" in change else 2)  # and other images in a block of their own
    assert [p.k for p in rows.gather([one, make(tmp_path, n=400, method="ibp", seed=2)], []).pools] == [2]


def test_counts_that_the_arrays_do_not_give_break_a_record(tmp_path, make):
    one = make(tmp_path, n=400)
    evaluation = {**one.data["evaluation"], "n_certified": one.n_certified - 1}
    broken = check(replace(one, data={**one.data, "evaluation": evaluation})).broken
    assert broken is not None and "certified in the record" in broken


def test_a_row_is_marked_by_its_weakest_seed(tmp_path, make):
    for seed, dirty in ((0, False), (1, True)):
        make(tmp_path, n=400, method="ibp", seed=seed, dirty=dirty)
    (pool,) = gather(tmp_path).pools
    weak = replace(pool.members[0].record)
    attacks = [{**a, "steps": 5} for a in weak.data["evaluation"]["attacks"]]
    data = {**weak.data, "evaluation": {**weak.data["evaluation"], "attacks": attacks}}
    mixed = replace(pool, members=(replace(pool.members[0], record=replace(weak, data=data)), pool.members[1]))
    assert mixed.is_weakly_attacked and not pool.is_weakly_attacked
    assert "+" in pool.marks() and "+" not in replace(pool, members=pool.members[:1]).marks()


def test_a_row_is_tied_with_the_best_of_all_classes(tmp_path, make):
    make(tmp_path, n=400, method="linf_dist", skill=1.5, reach=0.2, cls="D")
    make(tmp_path, n=400, method="ibp", skill=1.5, reach=0.2, cls="F32")
    make(tmp_path, n=400, method="crown_ibp", skill=1.5, reach=0.1, cls="F32")
    (block,) = gather(tmp_path).blocks
    leader, second, last = (block.standings.get((at, "certified"), Standing()) for at in range(3))
    assert {p.method for p in block.pools[:2]} == {"linf_dist", "ibp"}
    assert second.tied and not leader.tied and not last.tied  # of two classes, and as good as each other
    assert not leader.best and not second.best


def test_classes_that_speak_about_what_runs_share_one_bold(tmp_path, make):
    """A bold second row would read as the winner of the column."""
    make(tmp_path, n=4000, method="linf_dist", skill=1.5, reach=0.2, cls="D")
    make(tmp_path, n=4000, method="ibp", skill=1.5, reach=0.1, cls="F32")
    make(tmp_path, n=4000, method="crown_ibp", skill=1.5, reach=0.05, cls="F32")
    (block,) = gather(tmp_path).blocks
    best = [p.method for at, p in enumerate(block.pools) if block.standings.get((at, "certified"), Standing()).best]
    assert best == ["linf_dist"]


def test_seeds_of_other_classes_are_other_rows(tmp_path, make):
    make(tmp_path, method="ibp", seed=0, cls="F32")
    make(tmp_path, method="ibp", seed=1, cls="R")
    assert sorted(p.cls for p in gather(tmp_path).pools) == ["F32", "R"]


@pytest.fixture
def two_machines(tmp_path, make):
    make(tmp_path, method="ibp", seed=0, device="NVIDIA H100", train_s=10.0)
    make(tmp_path, method="ibp", seed=1, train_s=1000.0)
    make(tmp_path, method="linf_dist", seed=0, train_s=500.0)
    return gather(tmp_path)


def test_times_of_several_machines_have_no_mean(two_machines):
    pool = next(p for p in two_machines.pools if p.method == "ibp")
    assert pool.k == 2 and len(pool.machines) == 2
    assert pool.cost("certify_ms") is None and pool.cost("flops") is not None
    main = tables.main(two_machines, two_machines.blocks[0].setting)
    (row,) = [r for r in main.rows() if r.data["method"] == "ibp"]
    assert row["train_s"].text == "n/a"


def test_cost_table_league_and_figure_show_each_machine_by_itself(two_machines):
    cost = detail.cost(two_machines)
    by_head = {b.heading: [r["train_s"].sort for r in b.rows if r.data["method"] == "ibp"] for b in cost.blocks}
    assert by_head == {"CPU: Example 3000 (AVX2), 2 threads": [1000.0], "NVIDIA H100, 2 threads": [10.0]}
    assert len(league.league(two_machines, "cpu").blocks) == len(league.league(two_machines, "gpu").blocks) == 1
    (spec,) = [s for s in figures.build(two_machines) if s.kind == "cost"]
    assert {p["train_s"] for p in spec.data["points"]} == {1000.0, 500.0}
    assert spec.data["device"].endswith(", 2 threads")


def test_the_seeds_table_lists_the_numbers_its_mean_is_of(inputs):
    for row in detail.seed_table(inputs).rows():
        values = [float(part.split(": ")[1]) for part in row["values"].text.split(", ")]
        assert min(values) == float(row["low"].text) and max(values) == float(row["high"].text)


def test_at_the_rows_own_eps_the_radius_table_counts_certificates(inputs):
    table = detail.radius(inputs, "mnist")
    at = next(i for i, eps in enumerate(detail._GRIDS[False]) if eps == "0.1")
    counts = {
        p.first.id: p.first.n_certified for b in inputs.blocks for p in b.pools if p.first.eps == record.Eps("0.1")
    }
    shown = [row for row in table.rows() if row[f"at{at}"].ref in counts]
    assert shown and all(row[f"at{at}"].sort == counts[row[f"at{at}"].ref] for row in shown)


def test_a_figure_of_one_seed_says_so(tmp_path, make):
    for seed in (0, 1):
        make(tmp_path, method="ibp", seed=seed)
    specs = {s.kind: s for s in figures.build(gather(tmp_path))}
    for kind in ("curve", "radii", "train"):
        assert specs[kind].data["under"].endswith("; seed 0") and "; seed 0" in specs[kind].alt
    assert "seed" not in specs["fate"].data["under"]


def test_clean_accuracy_is_won_among_rows_that_certify(tmp_path, make):
    """Undefended training would be bold in every block: what it wins is another discipline."""
    make(tmp_path, n=4000, method="linf_dist", skill=1.2, reach=0.2)
    make(tmp_path, n=4000, method="ibp", skill=0.4, reach=0.2)
    make(tmp_path, n=4000, method="standard", skill=3.0, reach=1e-6)
    (block,) = gather(tmp_path).blocks
    best = {block.pools[at].method for (at, kind), found in block.standings.items() if kind == "correct" and found.best}
    assert best == {"linf_dist"}


def test_runs_of_other_presets_are_joined_on_in_the_cost_figure(tmp_path, make):
    for method in ("ibp", "linf_dist"):
        make(tmp_path, method=method, preset="quick", train_s=60.0)
    make(tmp_path, method="ibp", preset="hour", train_s=3000.0, skill=1.3)
    (cost,) = [s for s in figures.build(gather(tmp_path)) if s.kind == "cost"]
    (longer,) = cost.data["longer"]
    own = next(p for p in cost.data["points"] if p["method"] == "ibp")
    assert (longer["preset"], longer["train_s"], longer["base"]) == ("hour", 3000.0, [own["train_s"], own["y"]])
    assert {row["preset"] for row in cost.csv_rows} == {"quick", "hour"} and "IBP hour" in cost.alt
    figures.DRAW["cost"](cost.data)


def test_a_longer_run_of_a_row_that_is_not_drawn_is_in_no_caption(tmp_path, make):
    for method in ("ibp", "linf_dist", "crown_ibp"):
        make(tmp_path, method=method, preset="quick", reach=0.2)
    for preset in ("quick", "hour"):
        make(tmp_path, method="standard", preset=preset, reach=1e-6)
    (cost,) = [s for s in figures.build(gather(tmp_path)) if s.kind == "cost"]
    assert cost.data["longer"] == [] and "Joined" not in cost.alt and len(cost.csv_rows) == len(cost.records) == 4


@pytest.mark.parametrize(("skill", "begins"), [(3.0, True), (0.0, False)])
def test_a_curve_begins_where_its_rows_can_be_told_apart(tmp_path, make, skill, begins):
    for method in ("ibp", "linf_dist"):
        make(tmp_path, method=method, skill=skill, reach=0.2)
    (curve,) = [s for s in figures.build(gather(tmp_path)) if s.kind == "curve"]
    lowest = min(s["certified"] for s in curve.data["series"])
    assert (curve.data["bottom"] >= 50) is begins and curve.data["bottom"] < lowest
    figures.DRAW["curve"](curve.data)


def test_rows_below_a_curve_s_axis_are_named_in_its_caption(tmp_path, make):
    for method, reach in (("ibp", 0.2), ("linf_dist", 0.2), ("standard", 1e-6)):
        make(tmp_path, method=method, skill=4.0, reach=reach)
    (curve,) = [s for s in figures.build(gather(tmp_path)) if s.kind == "curve"]
    assert curve.data["bottom"] > 50 and curve.alt.endswith(" Below the axis at 0.1: Standard training 0.00 %.")


def test_training_without_a_radius_shows_none(tmp_path, make):
    """The loop keeps a schedule of eps for every method; what never looks at it must not seem to train in a ball."""
    for method in ("standard", "pgd", "groupsort", "ibp"):
        make(tmp_path, method=method)
    (train,) = [s for s in figures.build(gather(tmp_path)) if s.kind == "train"]
    shown = {s["method"] for s in train.data["series"] if any(v is not None for v in s["values"]["eps"])}
    assert shown == {"pgd", "ibp"}


def test_radii_are_told_by_their_mean_over_all_images(tmp_path, make):
    record = make(tmp_path, n=500, method="ibp")
    (radii,) = [s for s in figures.build(gather(tmp_path)) if s.kind == "radii"]
    mean = float(record.arrays("radius")["radius"].astype(np.float64).mean())
    assert radii.data["series"][0]["mean"] == pytest.approx(mean, abs=1e-6)
    assert sum(radii.data["series"][0]["counts"]) == record.n_correct


def test_two_seeds_are_still_few(tmp_path, make):
    for seed in (0, 1):
        make(tmp_path, method="ibp", seed=seed)
    assert any("1 of 1 rows rest on one or two seeds" in line for line in findings.build(gather(tmp_path)).limits)
