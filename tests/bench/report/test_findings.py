"""Plain words: they follow the numbers, claim no difference that the images do not show, and name what is missing."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import reattack, record
from bench.report import assemble, findings, fmt, render, rows

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
    assert sentences[0].startswith(f"{pools[0].title} proves most, {best} %")
    assert f"{pools[1].title} follows with {second} %" in sentences[0]


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


def test_autoattack_counts_nets_and_what_it_broke(two: Path) -> None:
    assert any("AutoAttack was run on 0 of 2 nets" in line for line in found(two).limits)
    one: Any = record.scan(two)[0][0]
    arrays = one.arrays("index", "robust", "certified")
    robust = arrays["robust"].astype(np.uint8)
    robust[np.flatnonzero(arrays["robust"] & ~arrays["certified"])[:2]] = 0
    payload = {
        "attacked_with": {"suite": "autoattack", "steps": 1, "restarts": 1, "seed": 1}, "attacks": [],
        "counts": reattack.counts(one, arrays["index"], robust), "seconds": 1.0, "environment": {},
        "code": {"dirty": False}, "notes": [], "finished": "2026-01-31",
    }  # fmt: skip
    reattack.write(one, payload, {"index": arrays["index"], "robust": robust})
    (line,) = [line for line in found(two).limits if line.startswith("Attacks")]
    assert "on 1 of 2 nets" in line and "broke 2 images" in line and "at least 2000 images" in line


def test_page_and_index_carry_it(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "reports"
    assemble.build(two, out, published_dir=None, formats=("svg",), jobs=1)
    for name in ("index.html", "README.md"):
        text = (out / name).read_text(encoding="utf-8")
        assert "proves most" in text and "What it does not say" in text, name
