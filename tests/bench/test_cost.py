"""Costs: counted by formula, timed by median, unaffected by what a method lacks."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bench import Eps
from bench.cost import measure_cost, peak_memory_bytes, seconds

S = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_ins.py"))))
CPU = torch.device("cpu")


class Recipe:
    crop = 0


def cost(method, net, data, **options):
    return measure_cost(method, Recipe(), net, data, spec=S.spec(), eps=Eps("0.1"), repeats=3, **options)


@pytest.fixture(scope="module")
def measured():
    return cost(S.LinearMethod(), S.linear(), S.random_split(50))


def test_parameters_and_operations_are_those_of_the_formula(measured):
    assert measured["params"] == 6 * 3 + 3
    assert measured["flops"] == 6 * 3


def test_times_are_positive(measured):
    assert measured["forward_ms"] > 0
    assert measured["certify_ms"] > 0


def test_a_gpu_is_waited_for_by_its_number(monkeypatch):
    """Without it another card is waited for, and a time is that of a launch."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    seconds(lambda: None, torch.device("cuda:1"), repeats=3)
    assert waited == [torch.device("cuda:1")] * 4


def test_times_are_milliseconds_per_example(monkeypatch):
    """A batch of 50 that takes 2 s is 40 ms an example."""
    monkeypatch.setattr("bench.cost.seconds", lambda work, device, repeats: 2.0)
    found = cost(S.LinearMethod(), S.linear(), S.random_split(50))
    assert (found["forward_ms"], found["certify_ms"]) == (40.0, 40.0)


def test_fields_are_those_of_a_record(measured):
    assert set(measured) == {"params", "flops", "forward_ms", "certify_ms", "peak_memory_bytes"}


def test_unknown_layers_have_no_operation_count_but_a_cost():
    found = cost(S.DistMethod(), S.DistNet(6, 3), S.random_split(10))
    assert found["flops"] is None
    assert found["params"] == 6 * 3 + 3


def test_out_of_memory_halves_the_timed_batch():
    class Hungry(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = S.linear()

        def __getitem__(self, i):
            return self.net[i]

        def forward(self, x):
            if len(x) > 8:
                raise MemoryError
            return self.net(x)

    assert cost(S.LinearMethod(), Hungry(), S.random_split(50))["forward_ms"] > 0


def test_the_median_ignores_a_burst(monkeypatch):
    clock = iter([0, 1, 1, 2, 2, 102, 102, 103, 103, 104])
    monkeypatch.setattr("bench.cost.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("bench.cost.BUDGET_S", 1e9)
    assert seconds(lambda: None, CPU, repeats=5) == 1


def test_a_slow_certificate_is_timed_once(monkeypatch):
    clock = iter([0, 100])
    monkeypatch.setattr("bench.cost.time.perf_counter", lambda: next(clock))
    calls = []
    assert seconds(lambda: calls.append(1), CPU, repeats=5) == 100
    assert len(calls) == 2  # one to warm up


def test_peak_memory_is_at_least_that_of_the_interpreter():
    assert peak_memory_bytes(CPU) > 20 * 2**20
