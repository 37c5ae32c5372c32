"""What is extrapolated from timed steps: by the schedule's phases, the batch and the number of steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import registry, timetable
from bench.attack import AttackConfig
from bench.data.loading import spec
from bench.timing import PHASES, Timer, Timing

PLUGIN = Path(__file__).with_name("tiny_method.py")
CPU = torch.device("cpu")
COST = {"forward_ms": 1.0, "certify_ms": 1.0, "peak_memory_bytes": 1}
ONE = Timing(
    params=1, flops=2, step_s=(1.0, 2.0, 3.0), batch=8, recipe_batch=8, per_epoch=10, epochs=5, steps=3, eval_s=0.0
)  # fmt: skip


@pytest.fixture
def timer():
    registry.add_file(PLUGIN)
    method = registry.get("tiny")
    recipe = replace(registry.recipe(method, "synthetic", "0.1", "quick"), batch_size=64, epochs=6)
    return Timer(method, recipe, spec("synthetic"), 640, CPU)


def test_an_epoch_is_the_mean_step_times_its_steps():
    assert (ONE.s_per_epoch, ONE.train_s) == (20.0, 100.0)


def test_steps_are_timed_over_the_whole_schedule(timer, monkeypatch):
    seen = []
    monkeypatch.setattr(timer.loop, "step_on", lambda x, y, step: seen.append(step.iteration))
    timer.batch = 64
    for place in range(PHASES):
        timer._step(place)
    assert seen == [int((place + 0.5) / PHASES * 60) for place in range(PHASES)]


def test_times_of_a_part_of_the_batch_are_scaled_to_the_whole(timer):
    timer.times = [[0.3, 0.1, 0.2]] * PHASES  # the least disturbed one counts
    timer.scale = 4.0
    timing = timer.result(0)
    assert timing.step_s == pytest.approx([0.4] * PHASES)
    assert timing.s_per_epoch == pytest.approx(4.0)


def test_an_evaluation_costs_by_its_images_and_its_attacks(timer):
    timer.times = [[0.1]] * PHASES
    none, some, many = (timer.result(n, AttackConfig(steps=20, restarts=1)).eval_s for n in (0, 1000, 2000))
    assert none == 0 and 0 < some < many
    assert timer.result(1000, AttackConfig(steps=400, restarts=3)).eval_s > some


def test_the_table_names_the_cheapest_and_the_dearest_phase(timer, monkeypatch):
    monkeypatch.setattr(timer, "result", lambda n: replace(ONE, step_s=(1.0, 3.0, 2.0)))
    monkeypatch.setattr(timetable, "measure_cost", lambda *a, **k: COST)
    row = timetable._row("tiny", timer)
    assert (row["lowest"], row["s_per_epoch"], row["highest"]) == (10.0, 20.0, 30.0)
