"""Plain words: they follow the numbers, claim no difference that the images do not show, and name what is missing."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import listing, reattack, record
from bench.report import assemble, compare, figures, findings, fmt, published, render, rows, tables, wording

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "synthetic_records.py"))).make


def found(folder: Path) -> findings.Findings:
    return findings.build(rows.gather(record.scan(folder)[0], []))


def test_without_records_there_is_nothing_to_say(tmp_path: Path) -> None:
    empty = found(tmp_path)
    assert not empty.says and not empty.limits
    assert "no records" in render.findings(empty)


def test_one_method_alone_leads_nothing(tmp_path: Path) -> None:
    make(tmp_path, method="ibp")
    told = found(tmp_path)
    assert not told.says and any("1 of 1 rows rest on one seed" in line for line in told.limits)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    make(tmp_path, n=2000, method="linf_dist", reach=0.08)
    make(tmp_path, n=2000, method="ibp", reach=0.04, skill=1.6)
    return tmp_path


def test_the_leader_is_the_row_of_most_certified_images_with_its_number(two: Path) -> None:
    pools = rows.gather(record.scan(two)[0], []).blocks[0].pools
    (_, sentences), *rest = found(two).says
    assert not rest
    best, second = (fmt.fixed(p.percent("certified"), fmt.decimals(2000)) for p in pools)
    assert sentences[0].startswith(f"{pools[0].title} certifies most, {best} %")
    assert f"{pools[1].title} follows with {second} %" in sentences[0]


def test_an_exact_tie_has_two_leaders_in_words_and_captions(tmp_path: Path) -> None:
    make(tmp_path, n=500, method="linf_dist")
    make(tmp_path, n=500, method="linf_dist_v2", noise="linf_dist")
    make(tmp_path, n=500, method="ibp", skill=0.2)
    sentence = found(tmp_path).says[0][1][0]
    assert sentence.startswith("l_inf-dist net and l_inf-dist net (improved) certify most, ")
    assert "cannot be told" not in sentence
    captions = {s.kind: s.alt for s in figures.build(rows.gather(record.scan(tmp_path)[0], []))}
    for kind in ("curve", "pareto", "cost"):
        assert "l_inf-dist net and l_inf-dist net, improved certify most" in captions[kind], kind


@pytest.mark.parametrize(("rivals", "told"), [(["ibp"], False), (["ibp", "crown_ibp"], True)])
def test_many_comparisons_make_a_leader_harder_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rivals: list[str], told: bool
) -> None:
    """p = 0.04 once is a difference; twice, corrected by Holm, it is none."""
    monkeypatch.setattr(findings, "paired_p", lambda *_: 0.04)
    for method in ["linf_dist", *rivals]:
        make(tmp_path, n=500, method=method, skill=1.0 if method == "linf_dist" else 0.5)
    assert ("cannot be told from it" in found(tmp_path).says[0][1][0]) is told


def test_a_run_far_below_the_published_clean_accuracy_is_called_failed(tmp_path: Path) -> None:
    theirs = [c for c in published.load() if (c.method, c.dataset, c.eps) == ("groupsort", "mnist", "0.3")]
    for clean, failed in ((-0.5, True), (0.8, False)):
        folder = tmp_path / str(failed)
        make(folder, method="groupsort", eps="0.3", skill=clean, preset="quick")
        make(folder, method="ibp", eps="0.3", preset="quick")
        ((_, sentences),) = findings.build(rows.gather(record.scan(folder)[0], theirs)).says
        assert any("GroupSort reached" in s and "a failed run" in s for s in sentences) == failed


def test_methods_that_ran_elsewhere_only_are_named(two: Path) -> None:
    make(two, n=2000, method="groupsort", eps="0.3")
    make(two, n=2000, method="ibp", eps="0.3")
    says = dict(found(two).says)
    missing = {heading.partition(",")[2][:10]: sentences[-1] for heading, sentences in says.items()}
    assert missing == {" eps = 0.1": "Not run here: GroupSort.", " eps = 0.3": "Not run here: l_inf-dist net."}


def test_the_spread_of_equal_work_is_told(two: Path) -> None:
    (line,) = [line for line in found(two).limits if line.startswith("Times")]
    assert "-fold" not in line
    make(two, n=2000, method="ibp", eps="0.3", train_s=3 * 61.5)
    (line,) = [line for line in found(two).limits if line.startswith("Times")]
    assert "lie up to 3.0-fold apart in training and 1.0-fold per certificate" in line


def test_rows_that_the_paired_test_cannot_separate_are_said_to_be_so(tmp_path: Path) -> None:
    make(tmp_path, n=100, method="linf_dist_v2")
    make(tmp_path, n=100, method="ibp")
    sentence = found(tmp_path).says[0][1][0]
    assert "cannot be told from it" in sentence and "follows" not in sentence
    assert "l_inf-dist net (improved)" in sentence  # its title holds a comma, which a list of names would split


def test_a_preset_other_than_paper_is_never_said_to_speak_for_the_method(two: Path) -> None:
    assert not any(line.startswith("Budgets") for line in found(two).limits)
    make(two, n=2000, method="groupsort", preset="quick")
    (line,) = [line for line in found(two).limits if line.startswith("Budgets")]
    assert line.startswith("Budgets: 1 of 3 rows") and "say nothing about what a method reaches" in line


def test_seed_spread_is_quoted_from_three_seeds_on(two: Path) -> None:
    assert not any("three or more seeds" in line for line in found(two).limits)
    for seed in (1, 2):
        make(two, n=2000, method="ibp", reach=0.04, skill=1.6, seed=seed)
    (pool,) = [p for p in rows.gather(record.scan(two)[0], []).pools if p.k == 3]
    spread = pool.over_seeds("certified")
    (line,) = [line for line in found(two).limits if "three or more seeds" in line]
    assert f"{spread.high - spread.low:.2f} points" in line


@pytest.mark.parametrize("proved", [0, 3])
def test_autoattack_counts_nets_and_what_it_broke(two: Path, proved: int) -> None:
    assert any("AutoAttack was run on 0 of 2 nets" in line for line in found(two).limits)
    one: Any = record.scan(two)[0][0]
    arrays = one.arrays("index", "robust", "certified")
    robust = arrays["robust"].astype(np.uint8)
    robust[np.flatnonzero(arrays["robust"] & ~arrays["certified"])[:2]] = 0
    payload = {
        "attacked_with": {"suite": "autoattack", "steps": 1, "restarts": 1, "seed": 1},
        "attacks": [{"name": "pgd", "n_attacked": one.n_correct - one.n_certified + proved},
                    {"name": "aa_apgd", "n_attacked": 17}],
        "counts": reattack.counts(one, arrays["index"], robust), "seconds": 1.0, "environment": {},
        "code": {"dirty": False}, "notes": [], "finished": "2026-01-31",
    }  # fmt: skip
    reattack.write(one, payload, {"index": arrays["index"], "robust": robust})
    (line,) = [line for line in found(two).limits if line.startswith("Attacks")]
    assert "on 1 of 2 nets, after the fact" in line and "broke 2 images" in line and "(17 in all)" in line
    (other,) = {"IBP", "l_inf-dist net"} - {one.title}
    assert f"Not attacked by AutoAttack on all images and seeds: {other}." in found(two).says[0][1]
    # That nothing certified broke is worth no word where nothing certified was attacked.
    assert ("not certified" in line) == (proved == 0)
    (table,) = [t for t in tables.build(rows.gather(record.scan(two)[0], [])) if t.name == "reattacks"]
    said = " ".join(table.notes)
    assert ("3 images with a certificate were attacked too" in said) == (proved == 3)
    assert ("Images with a certificate were not attacked again" in said) == (proved == 0)


def attacked_later(one: Any, suite: str, newly: int) -> None:
    """A later attack on the whole split that breaks so many more."""
    flags = one.arrays("index", "robust", "certified")
    robust = flags["robust"].astype(np.uint8)
    robust[np.flatnonzero(flags["robust"] & ~flags["certified"])[:newly]] = 0
    payload = {
        "attacked_with": {"suite": suite, "steps": 1, "restarts": 1, "seed": 1}, "attacks": [], "seconds": 1.0,
        "counts": reattack.counts(one, flags["index"], robust), "environment": {}, "code": {"dirty": False},
        "notes": [], "finished": "2026-01-31",
    }  # fmt: skip
    reattack.write(one, payload, {"index": flags["index"], "robust": robust})


def test_two_files_of_one_net_do_not_count_an_image_twice(two: Path) -> None:
    one: Any = record.scan(two)[0][0]
    for suite in ("pgd", "autoattack"):
        attacked_later(one, suite, 2)
    assert any("broke 2 images" in line for line in found(two).limits)


def test_a_block_in_which_nothing_is_proved_has_no_leader(tmp_path: Path) -> None:
    for method in ("pgd", "standard"):
        make(tmp_path, n=500, method=method, reach=1e-6)
    (sentences,) = [s for _, s in found(tmp_path).says]
    assert sentences[0] == "No row certifies more than almost nothing." and "leader" not in " ".join(sentences)


def test_rows_that_are_not_weighed_are_named(two: Path) -> None:
    make(two, n=2000, method="groupsort", dirty=True, skill=3.0, reach=1.0)
    (sentences,) = [s for _, s in found(two).says]
    assert "GroupSort" not in sentences[0] and "GroupSort" in sentences[-1] and "Not weighed" in sentences[-1]


@pytest.mark.parametrize(
    ("source", "tuned"),
    [
        ("ours, tuned on the validation split", True),
        ("ours: tuned on the validation split at eps 0.1", True),
        ("ours: tuned on the validation split at eps 0.3, n = 5,000", False),
        ("ours: tuned on the validation split at eps 8/255", False),
        ("ours: settings of the tuned quick recipes, not tuned for this cell", False),
        ("ours: settings chosen on held-out training images with a prototype", True),
        ("ours", False),
    ],
)
def test_a_recipe_counts_as_tuned_only_for_its_own_eps(two: Path, source: str, tuned: bool) -> None:
    (pool,) = [p for p in rows.gather(record.scan(two)[0], []).pools if p.method == "ibp"]
    one = pool.members[0]
    data = {**one.record.data, "recipe": {**one.record.data["recipe"], "source": source}}
    changed = replace(pool, members=(replace(one, record=replace(one.record, data=data)),))
    assert wording.is_tuned(changed) == tuned


def test_distance_nets_are_held_against_the_best_other_method_block_by_block(tmp_path: Path) -> None:
    make(tmp_path, n=2000, method="linf_dist", reach=0.08)
    make(tmp_path, n=2000, method="linf_dist_v2", reach=0.02)
    make(tmp_path, n=2000, method="ibp", reach=0.05)
    make(tmp_path, n=2000, method="ibp", eps="0.3")  # alone in its block
    make(tmp_path, n=2000, method="pgd", eps="0.3")
    ours, theirs = (p for p in rows.gather(record.scan(tmp_path)[0], []).blocks[0].pools if p.method != "linf_dist_v2")
    (line,) = found(tmp_path).across
    gap = fmt.points(ours.percent("certified") - theirs.percent("certified"), fmt.decimals(2000))
    assert line.startswith(f"MNIST, eps = 0.1, preset paper, n = 2000: {gap} points (l_inf-dist net ")


def test_seeds_that_met_different_attacks_have_no_spread_of_robust_accuracy(tmp_path: Path) -> None:
    """What one seed lost to AutoAttack is no spread of training, and the others' open images are not counted."""
    made = [make(tmp_path, n=2000, method="ibp", seed=seed) for seed in (0, 1, 2)]
    make(tmp_path, n=2000, method="linf_dist")
    attacked_later(made[0], "autoattack", 40)

    def sd() -> dict[str, str]:
        (table,) = [t for t in tables.build(rows.gather(record.scan(tmp_path)[0], [])) if t.name == "seeds"]
        return {row["kind"].text: row["sd"].text for row in table.rows()}

    assert sd()["robust"] == "n/a" and sd()["certified"] != "n/a"
    (line,) = [s for s in found(tmp_path).says[0][1] if s.startswith("Images that are neither")]
    left = made[0].n_robust - 40 - made[0].n_certified
    assert f"{left} (IBP)" in line
    for one in made[1:]:
        attacked_later(one, "autoattack", 3)
    assert sd()["robust"] != "n/a"


def test_autoattack_on_some_seeds_is_neither_all_nor_none(tmp_path: Path) -> None:
    made = [make(tmp_path, n=2000, method="ibp", seed=seed) for seed in (0, 1, 2)]
    other = make(tmp_path, n=2000, method="linf_dist")
    attacked_later(made[1], "autoattack", 5)
    attacked_later(other, "autoattack", 0)
    for suite in ("pgd", "pgd_long"):
        attacked_later(made[0], suite, 30)  # more attacks, and weaker ones
    sentences = found(tmp_path).says[0][1]
    assert "Not attacked by AutoAttack on all images and seeds: IBP; it met 1 of 3 seeds of IBP." in sentences
    left = made[1].n_robust - 5 - made[1].n_certified
    assert any(f"{left} (IBP)" in s for s in sentences if s.startswith("Images that are neither"))


def test_a_row_that_every_attack_breaks_has_nothing_standing(tmp_path: Path) -> None:
    make(tmp_path, n=500, method="ibp")
    make(tmp_path, n=500, method="standard", reach=1e-6)
    (line,) = [s for s in found(tmp_path).says[0][1] if s.startswith("The certificate of the table")]
    assert line == "The certificate of the table (interval) proves almost nothing for Standard training."


def test_programs_are_told_what_later_attacks_left_as_readers_are(tmp_path: Path) -> None:
    one = make(tmp_path, n=2000, method="ibp")
    attacked_later(one, "autoattack", 40)
    (row,), _ = listing.runs(tmp_path)
    assert row["robust"] == pytest.approx(one.robust - 2.0) and row["later_attacks"] == "autoattack"
    assert compare.compare(one, one).as_dict()["a"]["robust"] == row["robust"]


def test_page_and_index_carry_it(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports"
    assemble.build(two, out, published_dir=None, formats=("svg",), jobs=1)
    for name in ("index.html", "README.md"):
        text = (out / name).read_text(encoding="utf-8")
        assert "certifies most" in text and "What it does not say" in text, name
