"""Figures show the stored radii, never more; and every kind can be drawn."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from bench import record
from bench.report import draw, figures, published, rows
from bench.report.figures.spec import lowest_shown


@pytest.fixture(scope="module")
def specs(inputs):
    return {s.name: s for s in figures.build(inputs)}


def test_every_kind_is_there(specs):
    assert {s.kind for s in specs.values()} == set(figures.DRAW)


def test_the_curve_is_the_count_of_radii_that_reach_so_far(specs, inputs):
    spec = specs["curve_cifar10_8_255"]
    for series in spec.data["series"]:
        pool = next(p for p in inputs.pools if p.method == series["method"] and p.first.dataset == "cifar10")
        radius = pool.first.arrays("radius")["radius"]
        for x, y in list(zip(spec.data["x"], series["y"], strict=True))[1::17]:
            assert y <= round(100 * float((radius.astype(float) >= x - 5e-8).mean()), 4) + 1e-9
        assert series["y"][0] == pytest.approx(pool.first.clean, abs=1e-3)
        assert series["y"] == sorted(series["y"], reverse=True)


def test_a_step_never_overstates_between_two_points(specs):
    """Drawn as steps-pre: between two radii the line has the value of the larger one."""
    figure = figures.DRAW["curve"](specs["curve_mnist_0.1"].data)
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 10]
    assert curves
    assert {line.get_drawstyle() for line in curves} == {"steps-pre"}


def test_the_csv_holds_the_plotted_points(specs):
    spec = specs["curve_mnist_0.1"]
    series = spec.data["series"][0]
    rows = [r for r in spec.csv_rows if r["method"] == series["method"]]
    assert [round(r["certified"], 4) for r in rows] == series["y"]


def test_fates_sum_to_a_hundred(specs):
    for bar in specs["fate_mnist_0.1"].data["bars"]:
        assert sum(bar[k] for k in ("certified", "undecided", "broken", "wrong")) == pytest.approx(100, abs=0.01)


def test_a_broken_guard_is_in_no_figure(specs):
    for spec in specs.values():
        if "mnist_0.1" in spec.name:
            assert "crown_ibp" not in {row.get("method") for row in spec.csv_rows if not row.get("published")}


def test_every_figure_of_a_block_says_preset_and_n(specs):
    for spec in specs.values():
        if spec.kind not in ("gap", "seeds") and spec.records:
            assert "preset " in spec.data["under"]
            assert "n = " in spec.data["under"]
            assert "preset" in spec.alt


def test_bars_of_cheaper_presets_are_named_in_the_gap(specs):
    for bar in specs["gap"].data["bars"]:
        assert (bar["preset"] == "paper") != ("(quick" in bar["label"])


def test_the_distribution_counts_every_right_image(specs, inputs):
    for series in specs["radii_mnist_0.1"].data["series"]:
        pool = next(p for p in inputs.pools if p.method == series["method"] and p.n == 1000)
        radius = pool.first.arrays("radius")["radius"]
        assert sum(series["counts"]) == int((radius > 0).sum())


def test_an_infinite_p_is_drawn_at_its_own_tick(specs):
    figure = figures.DRAW["train"](specs["train_mnist_0.1"].data)
    axes = next(a for a in figure.axes if a.get_title(loc="left") == "Exponent p")
    assert "\u221e" in [t.get_text() for t in axes.get_yticklabels()]


@pytest.mark.parametrize("kind", sorted(figures.DRAW))
def test_a_drawing_is_whole_and_of_final_size(specs, kind):
    spec = next(s for s in specs.values() if s.kind == kind)
    made = draw.render(spec, ("svg", "png"))
    root = ElementTree.fromstring(made["svg"])
    titles = [e.text for e in root if e.tag.endswith("title")]
    assert titles == [spec.title]
    width, height = struct.unpack(">II", made["png"][16:24])
    assert width in (650, 1350)
    assert 100 < height < 4000


def test_no_label_leaves_the_paper(specs):
    """Every text lies inside the figure: nothing is cut off at the edge."""
    from matplotlib import rc_context

    cost = specs["cost_mnist_0.1"]
    close = [{**p, "y": 96.0 + i / 10, "yerr": [95.71, 96.89]} for i, p in enumerate(cost.data["points"])]
    for spec in (*specs.values(), replace(cost, data={**cost.data, "points": close})):
        with rc_context(fname=str(draw.STYLE)):
            figure = figures.DRAW[spec.kind](spec.data)
            figure.canvas.draw()
            drawn = figure.get_tightbbox()  # in inches, of what is really drawn
        width, height = figure.get_size_inches()
        assert drawn.x0 >= -0.01, (spec.name, drawn)
        assert drawn.y0 >= -0.01, (spec.name, drawn)
        assert drawn.x1 <= width + 0.01, (spec.name, drawn)
        assert drawn.y1 <= height + 0.01, (spec.name, drawn)


def test_a_user_configuration_does_not_matter(specs, drawn_once):
    import matplotlib

    spec = specs["seeds"]
    before = drawn_once(spec, ("svg",))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert drawn_once(spec, ("svg",)) == before


def test_a_worker_that_fails_costs_no_figure(specs, monkeypatch):
    some = [specs["seeds"], specs["gap"]] * 4
    painter = draw.Painter(("svg",), jobs=2)
    monkeypatch.setattr(draw.sys, "executable", "/bin/false")
    painter.start(some)
    try:
        assert set(painter.finish()) == {"seeds", "gap"}
    finally:
        painter.close()


def test_a_plugin_without_history_or_radius_is_left_out_quietly(tmp_path, make):
    make(tmp_path, n=50, epochs=1, skill=-9.0)  # nothing right, nothing certified, no history to draw
    inputs = rows.gather(record.scan(tmp_path)[0], published.load())
    kinds = {s.kind for s in figures.build(inputs) if s.records}
    assert "train" not in kinds
    assert "radii" not in kinds
    for spec in figures.build(inputs):
        if spec.records:
            draw.render(spec, ("svg",))


def test_drawing_leaves_the_global_generator_alone(specs, drawn_once):
    state = np.random.get_state()[1].copy()
    drawn_once(specs["seeds"], ("png",))
    assert (np.random.get_state()[1] == state).all()


def test_methods_far_below_are_told_not_drawn():
    """An uncertified net at 0 % would squash nine methods into a line; without such a gap every point is drawn."""
    assert lowest_shown([98.1, 97.0, 94.2, 93.5, 66.6, 0.0, 0.0]) == 93.5
    assert lowest_shown([40.4, 35.0, 29.2, 26.7, 23.2]) == 23.2
    assert lowest_shown([97.0, 92.0, 88.0, 79.0, 2.0]) == 79.0
    assert lowest_shown([90.0, 10.0]) == 10.0  # two points have nothing to be squashed
    assert lowest_shown([40.4, 35.0, 32.6, 29.2, 23.2, 6.4, 0.0]) == 23.2


def test_a_far_method_keeps_its_row_in_the_csv_and_a_line_in_the_picture(tmp_path, make):
    for method, reach in (("linf_dist", 0.2), ("ibp", 0.19), ("crown_ibp", 0.18), ("standard", 0.001)):
        make(tmp_path, n=1000, method=method, skill=1.5, reach=reach, preset="paper")
    inputs = rows.gather(record.scan(tmp_path)[0], published.load())
    (spec,) = (s for s in figures.build(inputs) if s.name == "pareto_mnist_0.1")
    assert "standard" in {row["method"] for row in spec.csv_rows}
    assert "standard" not in {point["method"] for point in spec.data["measured"]}
    assert any(text.startswith("below: Standard training 0.0 %") for text in spec.data["below"])
