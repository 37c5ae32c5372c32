"""A report is a pure function of its inputs; --check finds every digit that is not theirs."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report import assemble, build

ROOT = Path(__file__).parents[3]
LIGHT = {"formats": ("svg",), "jobs": 1}


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture()
def copy(report, tmp_path):
    """The session's report, to be spoiled."""
    shutil.copytree(report.out, tmp_path / "reports")
    shutil.copy(report.readme, tmp_path / "README.md")
    return tmp_path


def check(report, copy):
    return build(report.results, copy / "reports", readme=copy / "README.md", check=True, jobs=1)


def test_a_broken_guard_makes_the_exit_code_1(report):
    assert report.result.exit_code == 1
    assert len(report.result.problems) == 1


def test_a_report_agrees_with_itself(report, copy):
    result = check(report, copy)
    assert result.differences == []


def test_a_second_build_writes_nothing(report):
    again = build(report.results, report.out, readme=report.readme, jobs=1)
    assert again.written == []
    assert "nothing to change" in again.lines[-1]


def test_two_processes_on_other_machines_write_the_same_bytes(tmp_path, make):
    """Another hash seed, time zone, locale, folder and order of files must not move a byte, drawings included."""
    for method, seed in (("linf_dist", 0), ("linf_dist", 1), ("my_plugin", 0)):
        make(tmp_path / "r", n=200, method=method, seed=seed, reach=0.1)
    build(tmp_path / "r", tmp_path / "here", jobs=1)
    moved = tmp_path / "elsewhere" / "deep"
    for file in sorted((tmp_path / "r").rglob("record.json"), reverse=True):
        shutil.copytree(file.parent, moved / file.parent.relative_to(tmp_path / "r"))
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from bench.report import build\n"
        f"build(Path({str(moved)!r}), Path('there'), jobs=2)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here, there = tree(tmp_path / "here"), tree(tmp_path / "there")
    assert list(here) == list(there)
    assert [name for name in here if here[name] != there[name]] == []


SPOIL = ("tables/gap.md", "tables/main_mnist_0.1.csv", "tables/cost.tex", "index.html", "README.md", "manifest.json",
         "figures/gap.csv", "figures/curve_mnist_0.1.svg")  # fmt: skip


def test_check_finds_one_changed_digit_in_every_kind_of_file(report, copy):
    for name in SPOIL:
        file = copy / "reports" / name
        text = file.read_text(encoding="utf-8")
        at = max(i for i, c in enumerate(text[: len(text) // 2 + 200]) if c in "0123456789")
        file.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :], encoding="utf-8")
    png = copy / "reports" / "figures" / "gap.png"
    png.write_bytes(png.read_bytes()[:-20] + bytes(20))
    (copy / "reports" / "notes.txt").write_text("stray")
    (copy / "reports" / "tables" / "runs.md").unlink()
    readme = (copy / "README.md").read_text(encoding="utf-8").replace("l_inf-dist net", "l_inf-dist-net", 1)
    (copy / "README.md").write_text(readme, encoding="utf-8")
    result = check(report, copy)
    found = {d.partition(" line ")[0].partition(":")[0] for d in result.differences}
    more = {"figures/gap.png", "notes.txt does not belong into the reports", "tables/runs.md is missing"}
    assert found == {*SPOIL, *more}  # README.md stands for both
    assert sum(d.startswith("README.md line") for d in result.differences) == 2
    assert result.exit_code == 1
    assert (copy / "README.md").read_text(encoding="utf-8") == readme, "a check writes nothing"


def test_a_difference_shows_both_sides(report, copy):
    file = copy / "reports" / "tables" / "gap.md"
    file.write_text(file.read_text(encoding="utf-8").replace("33.3", "33.9", 1), encoding="utf-8")
    (line,) = [d for d in check(report, copy).differences if d.startswith("tables/gap.md")]
    assert "33.9" in line
    assert "records give" in line


def test_under_another_matplotlib_drawings_are_not_compared_byte_by_byte(report, copy, monkeypatch):
    monkeypatch.setattr(assemble.draw, "matplotlib_version", lambda: "99.0")
    svg = copy / "reports" / "figures" / "gap.svg"
    svg.write_text(svg.read_text(encoding="utf-8").replace("0", "1", 3), encoding="utf-8")
    assert check(report, copy).differences == []
    table = copy / "reports" / "figures" / "gap.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("1", "2", 1), encoding="utf-8")
    assert check(report, copy).differences != []


def test_readme_prose_is_untouched_and_links_lead_into_the_reports(report):
    text = report.readme.read_text(encoding="utf-8")
    assert text.startswith("# A suite\n\nProse before, with \u00fcmlauts.\n")
    assert text.endswith("Prose after.\n")
    assert "](reports/figures/curve_" in text
    assert "](reports/tables/runs.md)" in text
    assert "```\n<!-- bench:begin example -->\n```" in text


def test_a_broken_marker_is_a_usage_error(report, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:begin headline -->\n", encoding="utf-8")
    with pytest.raises(assemble.ReportError, match=r"README.md line 1: block headline has no end marker") as error:
        build(tmp_path / "none", tmp_path / "out", readme=readme, **LIGHT)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_without_records_everything_published_is_there(tmp_path):
    result = build(tmp_path / "none", tmp_path / "out", **LIGHT)
    assert result.exit_code == 0
    assert "No records yet" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "tables" / "paper_table1.md").is_file()


def test_one_record_is_enough(tmp_path, make):
    make(tmp_path / "r", n=100)
    assert build(tmp_path / "r", tmp_path / "out", **LIGHT).exit_code == 0
    assert (tmp_path / "out" / "figures" / "curve_mnist_0.1.svg").is_file()


def test_an_unreadable_record_is_a_problem_and_not_the_end(tmp_path, make):
    made = make(tmp_path / "r", n=100)
    make(tmp_path / "r", n=100, seed=1)
    (made.path / "record.json").write_text("{")
    result = build(tmp_path / "r", tmp_path / "out", **LIGHT)
    assert result.exit_code == 1
    assert "record.json" in result.problems[0]
    assert result.records == 1
    assert result.problems[0].split(":")[0] in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_table_that_is_no_longer_made_is_removed(tmp_path, make):
    make(tmp_path / "r", n=100)
    make(tmp_path / "r", n=100, seed=1)
    build(tmp_path / "r", tmp_path / "out", **LIGHT)
    keep = tmp_path / "out" / "mine.txt"
    keep.write_text("kept")
    assert (tmp_path / "out" / "tables" / "seeds.md").is_file()
    shutil.rmtree(tmp_path / "r")
    result = build(tmp_path / "r", tmp_path / "out", **LIGHT)
    assert not (tmp_path / "out" / "tables" / "seeds.md").exists()
    assert result.removed
    assert keep.exists()


def test_only_changed_figures_are_drawn_again(tmp_path, make, monkeypatch):
    make(tmp_path / "r", n=100)
    build(tmp_path / "r", tmp_path / "out", **LIGHT)
    drawn = []
    real = assemble.draw.render
    monkeypatch.setattr(assemble.draw, "render", lambda spec, forms: drawn.append(spec.name) or real(spec, forms))
    make(tmp_path / "r", n=100, dataset="digits")
    result = build(tmp_path / "r", tmp_path / "out", **LIGHT)
    assert drawn
    assert all("digits" in name for name in drawn)
    assert any("row" in c and "new" in c for c in result.changes)


def test_a_figure_edited_by_hand_is_drawn_again(tmp_path, make):
    make(tmp_path / "r", n=100)
    build(tmp_path / "r", tmp_path / "out", **LIGHT)
    svg = tmp_path / "out" / "figures" / "curve_mnist_0.1.svg"
    right = svg.read_bytes()
    svg.write_bytes(right.replace(b"0", b"1", 5))
    build(tmp_path / "r", tmp_path / "out", **LIGHT)
    assert svg.read_bytes() == right


def test_the_manifest_names_inputs_and_outputs(report):
    data = json.loads((report.out / "manifest.json").read_text(encoding="utf-8"))
    assert set(data["outputs"]) == set(tree(report.out)) - {"manifest.json"}
    assert len(data["records"]) == report.result.records
    assert all(f["alt"] for f in data["figures"].values())


def test_no_file_names_a_folder_of_this_machine(report):
    here = str(report.results.parent).encode()
    for name, content in tree(report.out).items():
        assert here not in content, name


def test_every_csv_is_rectangular(report):
    for file in sorted(report.out.rglob("*.csv")):
        with file.open(newline="", encoding="utf-8") as handle:
            assert len({len(line) for line in csv.reader(handle)}) == 1, file.name


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(assemble.ReportError, match="choose another folder with --out"):
        build(tmp_path / "none", tmp_path / "out", **LIGHT)


def test_torch_is_never_imported(tmp_path):
    code = "import sys; sys.modules['torch'] = None; import bench.report, bench.report.compare; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.slow
def test_a_thousand_records_take_seconds(tmp_path, make):
    """5 s of wall time on two idle cores; CPU time is asserted, with room for a busy machine."""
    import itertools
    import time

    methods, presets = (
        ("linf_dist", "linf_dist_v2", "ibp", "crown_ibp", "groupsort"),
        ("paper", "short", "hour", "quick"),
    )
    settings = (("mnist", "0.1"), ("mnist", "0.3"), ("fashion_mnist", "0.1"), ("cifar10", "8/255"), ("digits", "0.1"))
    for seed, preset, method, (dataset, eps) in itertools.product(range(10), presets, methods, settings):
        make(tmp_path / "r", n=1000, dataset=dataset, eps=eps, method=method, preset=preset, seed=seed)
    started = time.process_time()
    result = build(tmp_path / "r", tmp_path / "out")
    assert result.records == 1000
    assert time.process_time() - started < 20
    started = time.process_time()
    assert build(tmp_path / "r", tmp_path / "out").written == []
    assert time.process_time() - started < 12
