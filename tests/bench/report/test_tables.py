"""What tables say and refuse to say: marks, blocks, ties, deltas, and the same numbers in every format."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest

from bench import record
from bench.report import checked, columns, fmt, league, page, paper, published, render, rows, tables
from bench.report.cells import daggers
from bench.report.model import BOLD, MARKS


@pytest.fixture(scope="module")
def made(inputs):
    return {t.name: t for t in tables.build(inputs)}


def gather(folder):
    return rows.gather(record.scan(folder)[0], published.load())


def find(table, text):
    return next(row for row in table.rows() if row["method"].text.startswith(text))


# --- honesty ----------------------------------------------------------------------------------------------------------


def test_every_accuracy_of_a_quick_run_carries_its_mark(made):
    """No number of a quick run can be copied without the sign that says so."""
    seen = 0
    for table in made.values():
        for row in table.rows():
            if row.data.get("preset") == "quick":
                for key in ("clean", "robust", "certified", "delta", "method"):
                    cell = row[key]
                    if cell.text not in (fmt.DASH, "n/a", "!") and cell.ref and "#" not in cell.ref:
                        assert "q" in cell.marks, (table.name, key, cell)
                        seen += 1
    assert seen > 50


def test_paper_presets_carry_no_preset_mark(made):
    row = find(made["main_cifar10_8_255"], "l_inf-dist net")
    assert row["certified"].marks == ()


def test_quick_and_paper_never_share_a_block(inputs):
    for block in inputs.blocks:
        assert {p.first.preset for p in block.pools} == {block.preset}
        assert len({(p.n, p.first.data["data"]["checksum"]) for p in block.pools}) == 1


def test_a_broken_guard_withholds_the_number_and_is_reported(made, inputs):
    row = find(made["main_mnist_0.1"], "CROWN-IBP")
    assert [row[k].text for k in ("clean", "robust", "certified")] == ["!"] * 3
    assert any("certified => robust => correct" in p for p in inputs.problems)


def test_a_withheld_number_stands_in_no_format(made):
    table = made["main_mnist_0.1"]
    lines = [line for line in render.csv(table).splitlines() if ",crown_ibp,CROWN-IBP,quick" in line]
    (values,) = csv.DictReader(io.StringIO(render.csv(table).splitlines()[0] + "\n" + lines[0]))
    assert values["broken"] == "1"
    assert values["certified"] == values["clean"] == values["n_certified"] == ""


def test_the_validation_split_enters_no_table(inputs, made):
    assert all(r.split == "test" for r in inputs.records)
    assert any("validation" in n for n in inputs.notices)


def test_a_subset_says_so_and_has_no_delta(made):
    table = made["main_mnist_0.1"]
    (row,) = (r for b in table.blocks if "n = 600" in b.heading for r in b.rows)
    assert "s" in row["certified"].marks
    assert row["delta"].text == "n/a"


def test_a_changed_recipe_is_named_and_never_best(made, inputs):
    row = find(made["main_mnist_0.1"], "IBP (lr=0.01)")
    assert "m" in row["certified"].marks
    assert not any(p.may_be_best for p in inputs.pools if p.overrides)


def test_a_contradicted_certificate_is_marked(made):
    row = next(r for r in made["main_mnist_0.1"].rows() if r.data["method"] == "my_plugin")
    assert {"c", "b"} <= set(row["certified"].marks)


def test_a_dirty_tree_is_marked(made):
    assert "+" in find(made["main_mnist_0.1"], "GroupSort")["clean"].marks


def test_weak_attacks_are_marked(tmp_path, make, monkeypatch):
    monkeypatch.setattr(checked, "STANDARD_STEPS", 100)
    make(tmp_path, n=100)
    table = tables.main(gather(tmp_path), rows.Setting.of("mnist", "linf", record.Eps("0.1").fraction))
    assert "w" in find(table, "l_inf-dist net")["robust"].marks


def test_a_number_far_above_the_paper_is_looked_at_twice(tmp_path, make):
    make(tmp_path, n=1000, method="groupsort", dataset="mnist", eps="0.3", reach=5.0, skill=3.0, preset="paper")
    assert any(n.startswith("look twice") for n in gather(tmp_path).notices)


# --- best and tied ----------------------------------------------------------------------------------------------------


def standing(tmp_path, make, **second):
    make(tmp_path, n=5000, method="linf_dist", skill=1.5, reach=0.2, preset="paper")
    make(tmp_path, **{"n": 5000, "method": "ibp", "skill": 1.5, "reach": 0.2, "preset": "paper", **second})
    return tables.main(gather(tmp_path), rows.Setting.of("mnist", "linf", record.Eps("0.1").fraction))


def bold(table):
    return [row["certified"].text for row in table.rows() if row["certified"].bold]


def test_a_clear_winner_is_bold(tmp_path, make):
    assert len(bold(standing(tmp_path, make, reach=0.1))) == 1


def test_overlapping_intervals_are_never_bold(tmp_path, make):
    assert bold(standing(tmp_path, make, reach=0.197)) == []


def test_what_cannot_be_separated_from_the_best_is_marked_tied(tmp_path, make):
    table = standing(tmp_path, make, noise="linf_dist")  # the very same images
    marks = [row["certified"].marks for row in table.rows() if row.data["kind"] == "measured"]
    assert [("t" in m) for m in marks] == [False, True]


def test_the_headline_names_the_two_best_of_every_preset_and_crowns_none_across_them(tmp_path, make):
    common = {"n": 4000, "dataset": "mnist", "eps": "0.3"}
    make(tmp_path, **common, method="linf_dist", preset="quick", skill=3.0, reach=0.4)
    make(tmp_path, **common, method="ibp", preset="quick", skill=0.5, reach=0.1)
    make(tmp_path, **common, method="crown_ibp", preset="quick", skill=0.5, reach=0.01)
    alone = tables.headline(gather(tmp_path))
    assert any(cell.bold for row in alone.rows() for cell in row.cells.values())
    for reach, method in ((0.5, "linf_dist_v2"), (0.2, "ibp"), (0.1, "ibp_shi")):
        make(tmp_path, **common, method=method, preset="hour", skill=3.0, reach=reach)
    rows_ = [row for row in tables.headline(gather(tmp_path)).rows() if row.data.get("kind") == "measured"]
    hour, quick = ("linf_dist_v2", "ibp", "ibp_shi"), ("linf_dist", "ibp")
    shown = [(row["preset"].text, row.data["method"]) for row in rows_]
    assert shown == [*(("hour", m) for m in hour), *(("quick", m) for m in quick)]
    assert not any(cell.bold for row in rows_ for cell in row.cells.values())


def test_class_d_and_class_r_never_compete(tmp_path, make):
    assert bold(standing(tmp_path, make, reach=0.1, cls="R")) == []


def test_rows_attacked_by_different_suites_have_no_bold_robust_accuracy(tmp_path, make, monkeypatch):
    """A row that leads only those attacked as weakly as itself must not look like the winner of the table."""

    def robust(**second):
        table = standing(tmp_path, make, skill=0.5, reach=0.1, **second)
        return [row["robust"].text for row in table.rows() if row["robust"].bold]

    assert len(robust()) == 1
    make(tmp_path, n=5000, method="groupsort", skill=1.0, reach=0.1, preset="paper")
    monkeypatch.setattr(rows.Pool, "suite", property(lambda pool: "b" if pool.method == "linf_dist" else "a"))
    assert robust() == []


def test_measured_and_published_never_compete(made):
    for table in made.values():
        assert not any(row["certified"].bold for row in table.rows() if row.data.get("kind") == "published")


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_are_pooled_into_one_row_with_their_spread(made):
    (row,) = (r for r in made["main_mnist_0.1"].rows() if r["seeds"].text.startswith("3"))
    assert re.match(r"3: sd \d+\.\d, [\d.]+\.\.[\d.]+$", row["seeds"].text)


def test_the_same_seed_twice_counts_once(tmp_path, make):
    make(tmp_path / "a", n=50, finished="2026-01-01")
    newer = make(tmp_path / "b", n=50, finished="2026-02-01", train_s=9.0)
    inputs = gather(tmp_path)
    assert [p.k for p in inputs.pools] == [1]
    assert inputs.pools[0].first.id == newer.id
    assert any("one cell and seed" in n for n in inputs.notices)


def test_every_seed_is_a_row_of_the_csv(made):
    lines = list(csv.DictReader(io.StringIO(render.csv(made["main_mnist_0.1"]))))
    mine = [x for x in lines if (x["method"], x["published"], x["n"]) == ("linf_dist", "0", "1000")]
    assert sorted(x["seed"] for x in mine) == ["0", "1", "2"]
    for x in mine:
        assert float(x["certified"]) == 100 * int(x["n_certified"]) / int(x["n"])


# --- published --------------------------------------------------------------------------------------------------------


def test_published_numbers_stand_beside_measured_ones_and_below(made):
    table = made["main_cifar10_8_255"]
    row = find(table, "l_inf-dist net")
    assert row["published"].text == "56.8 / 37.46 / 33.3"
    assert set(row["published"].marks) == {"\u2020", "e"}
    below = table.blocks[-1]
    assert below.heading == "Published, not measured here"
    assert not {r.data["method"] for r in below.rows} & {"linf_dist", "ibp"}


def test_published_marks_tell_whose_number_it_is_and_who_says_so(made):
    """Of the authors, of somebody else, or quoted by a later paper: three different things."""
    cells = {c.key: c for c in published.load()}
    own = next(c for c in cells.values() if c.method == "linf_dist" and c.source.citekey == "zhang2021linf")
    others = next(c for c in cells.values() if c.method == "ibp" and c.source.citekey == "zhang2021linf")
    quoted = next(c for c in cells.values() if c.tag == "secondary")
    assert daggers(own)[0] == "\u2020" and daggers(others)[0] == "\u2021"
    assert "v" in daggers(quoted) and "v" not in daggers(own)


@pytest.mark.parametrize("part", [False, True])
def test_part_of_the_images_has_no_difference_to_a_published_number(tmp_path, make, part):
    make(tmp_path, n=100, n_test=400 if part else 100, method="ibp", eps="0.3")
    (pool,) = gather(tmp_path).pools
    row = columns.record_row(pool, pool.members[0])
    assert row["published_certified"] is not None and ("delta_certified" in row) is not part


def test_delta_is_measured_minus_published(made, inputs):
    row = find(made["main_cifar10_8_255"], "l_inf-dist net")
    pool = next(p for p in inputs.pools if p.method == "linf_dist" and p.first.dataset == "cifar10")
    assert row["delta"].text == fmt.points(pool.percent("certified") - fmt.Fraction("33.3"), 2)


def test_paper_table_1_shows_every_published_row_in_order_with_ours_or_a_dash(made):
    table = made["paper_table1"]
    rows_ = [r for r in table.rows() if r.data["kind"] == "published"]
    assert len(rows_) == 19
    assert [b.heading for b in table.blocks] == [
        "MNIST, eps = 0.3",
        "Fashion-MNIST, eps = 0.1",
        "CIFAR-10, eps = 8/255",
    ]
    ours = {r.data["method"]: r for r in table.blocks[2].rows}
    assert ours["linf_dist"]["preset"].text == "paper"
    assert ours["colt"]["certified"].text == fmt.DASH
    assert ours["linf_dist"]["p_certified"].text == "33.3"


def test_our_row_beside_the_paper_is_of_the_best_preset(tmp_path, make):
    for preset in ("quick", "paper", "hour"):
        make(tmp_path, n=100, method="ibp", eps="0.3", preset=preset)
    table = paper.paper(gather(tmp_path), 1)
    assert next(r for r in table.rows() if r.data["method"] == "ibp")["preset"].text == "paper"


def test_table_2_and_4_are_there(made):
    assert len(list(made["paper_table2"].rows())) == 5
    assert [r["p_epoch"].text for r in made["paper_table4"].rows()] == ["17.4", "112.4", "43.3", "19.7", "19.7"]


# --- cost, league, radius ---------------------------------------------------------------------------------------------


def test_cost_never_mixes_devices_in_a_block(made):
    headings = [b.heading for b in made["cost"].blocks]
    assert len(headings) == len(set(headings)) == 2
    for block in made["cost"].blocks:
        assert len({r["device"].text for r in block.rows}) == 1


def test_the_league_counts_only_runs_within_the_budget(made):
    table = made["league_cpu"]
    ibp = find(table, "IBP")
    assert (
        ibp["b3600"].text == find(made["ablation"], "IBP")["certified"].text or ibp["b3600"].text != ibp["b14400"].text
    )
    values = [ibp[f"b{limit}"].sort for limit, _ in league.BUDGETS]
    known = [v for v in values if v is not None]
    assert known == sorted(known)


def test_the_league_has_a_column_only_for_budgets_that_a_run_filled_and_says_how_long_each_took(tmp_path, make):
    make(tmp_path, method="ibp", train_s=100.0)
    make(tmp_path, method="linf_dist", train_s=500.0, preset="hour")
    (table,) = [t for t in tables.build(gather(tmp_path)) if t.name == "league_cpu"]
    assert [c.key for c in table.columns] == ["method", "b300", "b1200"]
    ibp, dist = find(table, "IBP"), find(table, "l_inf-dist net")
    assert ibp["b1200"].text == ibp["b300"].text and ibp["b300"].text.endswith("(2 min)")
    assert dist["b300"].is_empty and dist["b1200"].text.endswith("(8 min)")
    assert any("hour was run for l_inf-dist net only" in note for note in table.notes)


def test_runs_on_part_of_the_images_are_in_no_league(tmp_path, make):
    make(tmp_path, method="ibp", train_s=100.0)
    make(tmp_path, method="linf_dist", train_s=100.0, n=100, n_test=400, skill=4.0, reach=0.5)
    (table,) = [t for t in tables.build(gather(tmp_path)) if t.name == "league_cpu"]
    assert [row["method"].text for row in table.rows()] == ["IBP"]


def test_radii_are_counted_from_the_arrays(made, inputs):
    pool = next(p for p in inputs.pools if p.method == "linf_dist" and p.first.dataset == "cifar10")
    radius = pool.first.arrays("radius")["radius"]
    row = find(made["radius_cifar10"], "l_inf-dist net")
    assert row["at4"].sort == int((radius.astype(float) >= 8 / 255).sum())
    assert row["at0"].sort == pool.first.n_correct


def test_runs_name_the_command_that_repeats_them(made):
    commands = [r["command"].text for r in made["runs"].rows()]
    assert "bench run -m ibp -d mnist --eps 0.1 --preset quick --seed 0 --set lr=0.01" in commands


# --- formats ----------------------------------------------------------------------------------------------------------


def test_markdown_has_at_most_nine_columns_and_equal_rows(made):
    for table in made.values():
        lines = [x for x in render.markdown(table).splitlines() if x.startswith("|")]
        for line in lines:
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            assert 1 <= len(cells) <= 9, (table.name, line)


def test_markdown_starts_with_setting_n_version_and_records(made):
    first = render.markdown(made["main_mnist_0.1"]).splitlines()[0]
    assert re.match(r"MNIST, eps = 0\.1; n = 600\.\.1000; certbench \S+; \d+ records$", first)


def test_a_hostile_title_is_only_text(made):
    table = made["main_mnist_0.1"]
    assert "<script>" not in render.markdown(table)
    assert "<script>" not in page._html_table(table, table.name)
    assert r"\textless{}script" in render.tex(table)


def test_tex_is_booktabs_with_equal_rows_and_balanced_braces(made):
    for table in made.values():
        lines = render.tex(table).splitlines()
        body = "\n".join(x for x in lines if not x.startswith("%"))
        assert body.isascii()
        bare = body.replace(r"\{", "").replace(r"\}", "")
        assert bare.count("{") == bare.count("}"), table.name
        assert body.count("\\toprule") == body.count("\\bottomrule") == 1
        width = len(re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", body)[1])
        for line in body.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert len(re.split(r"(?<!\\)&", line)) == width, (table.name, line)
            for char in "#%":
                assert char not in line.replace(f"\\{char}", ""), (table.name, line)


def test_legends_explain_exactly_the_signs_that_occur(made):
    for table in made.values():
        shown = {m for row in table.rows() for c in table.columns_for("md") for m in row[c.key].marks}
        assert shown <= {sign for sign, _ in table.legend("md")}, table.name
        assert {sign for sign, _ in table.legend("md")} - shown <= {fmt.DASH, "n/a", "!", BOLD}, table.name
        bold = any(row[c.key].bold for row in table.rows() for c in table.columns_for("md"))
        assert bold == (BOLD in dict(table.legend("md"))), table.name
        assert shown <= set(MARKS)


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.depth = [], 0

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.depth += tag in ("sup", "small")

    def handle_endtag(self, tag):
        self.depth -= tag in ("sup", "small")

    def handle_data(self, data):
        if self.rows and self.rows[-1] and not self.depth:
            self.rows[-1][-1] += data


def test_markdown_tex_and_html_carry_the_same_numbers(made):
    for name in ("main_mnist_0.1", "main_cifar10_8_255", "paper_table1", "cost", "league_cpu"):
        table = made[name]
        columns = [c.key for c in table.columns_for("md")]
        parser = Cells()
        parser.feed(page._html_table(table, name))
        shown = [c.key for c in table.columns_for("html")]
        body = [r for r in parser.rows[1:] if len(r) == len(shown)]
        assert len(body) == len(list(table.rows()))
        tex = render.tex(table)
        for row, cells in zip(table.rows(), body, strict=True):
            for key in columns:
                text = row[key].text
                assert cells[shown.index(key)].strip() == fmt.printable(text), (name, key)
                if re.fullmatch(r"[\d.]+", text):
                    assert text in tex


def test_the_long_csv_holds_one_number_per_line(inputs):
    from bench.report import assemble

    lines = list(csv.DictReader(io.StringIO(assemble._everything(inputs)["tables/long.csv"].decode())))
    certified = [x for x in lines if x["metric"] == "certified" and x["published"] == "0"]
    assert len(certified) == sum(r.id not in {p.first.id for p in inputs.pools if p.broken} for r in inputs.records)
    assert all(float(x["lo"]) <= float(x["value"]) <= float(x["hi"]) for x in certified)


def test_without_records_the_published_tables_remain(tmp_path):
    names = {t.name: t for t in tables.build(gather(tmp_path))}
    assert "main_mnist_0.3" in names
    assert len(list(names["paper_table1"].rows())) == 19
    assert "Nothing here yet" in render.markdown(names["cost"])


def test_the_best_published_number_is_the_best_of_all_cells():
    """Not the best of the one cell per method that stands beside our rows."""
    theirs = rows.Inputs(published=published.load())
    for setting in theirs.settings():
        cells = [c for found in theirs.published_of.get(setting, {}).values() for c in found]
        whole = [c.certified for c in cells if c.certified is not None and (c.n_test or 10_000) >= 1000]
        best = tables.best_published(theirs, setting)
        assert {c.certified for c in best} == ({max(whole)} if whole else set())
        tied = {c.method for c in cells if whole and c.certified == max(whole) and (c.n_test or 10_000) >= 1000}
        assert {c.method for c in best} == tied and len(best) == len(tied)
