"""Which code a tensor goes to, and why: needs neither a device nor Triton."""

import importlib.util
import math
from collections.abc import Iterator

import pytest
import torch

from methods.linf_dist.kernels import dist, interval, kernel_info, ops, reference
from methods.linf_dist.kernels.gpu import dispatch


@pytest.fixture(autouse=True)
def forget_verdicts() -> Iterator[None]:
    dispatch._verdict.cache_clear()
    yield
    dispatch._verdict.cache_clear()


@pytest.fixture
def pretend_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device of capability 9.0 that no code may touch."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("p", [8.0, math.inf])
def test_operations_go_to_the_gpu_kernels_where_these_are_available(monkeypatch: pytest.MonkeyPatch, p: float) -> None:
    calls: list[str] = []

    def backward(grad, x, w, y, code, p, need_x, need_w):  # type: ignore[no-untyped-def]
        calls.append(f"backward {need_x} {need_w}")
        dx, dw = reference.backward(grad, x, w, y, code, p)
        return dx if need_x else x.new_empty(0, 0), dw if need_w else w.new_empty(0, 0)

    monkeypatch.setattr(ops.gpu, "available", lambda x: True)
    monkeypatch.setattr(ops.gpu, "forward", lambda *a: calls.append("forward") or reference.forward(*a))
    monkeypatch.setattr(ops.gpu, "interval", lambda *a: calls.append("interval") or reference.interval(*a))
    monkeypatch.setattr(ops.gpu, "backward", backward)
    x = torch.ones(2, 3, dtype=torch.float64)  # float64: the CPU library does not take it first
    w = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    dist(x, w, p).sum().backward()
    interval(x, x, w)
    assert calls == ["forward", "backward False True", "interval"]


def test_cpu_tensors_and_other_types_never_go_to_the_gpu_kernels() -> None:
    assert not dispatch.available(torch.zeros(2, 2))
    assert not dispatch.available(torch.zeros(2, 2, dtype=torch.float64))


def test_without_triton_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, pretend_device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in dispatch._verdict(0, "")
    assert dispatch._verdict(0, "")  # asked again, said once
    said = capsys.readouterr().err
    assert said.count("plain torch") == 1 and said.count("\n") == 2


def test_an_old_device_is_refused(monkeypatch: pytest.MonkeyPatch, pretend_device: None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert dispatch._verdict(0, "") == "compute capability 7.5 is below 8.0"


def test_a_failure_of_any_kind_means_plain_torch(
    monkeypatch: pytest.MonkeyPatch, pretend_device: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here: no device behind the pretended one. Unless native kernels were asked for, a run goes on."""
    assert dispatch._verdict(0, "") != ""
    assert "plain torch" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="BENCH_KERNELS=native"):
        dispatch._verdict(0, "native")


def test_the_reference_can_be_asked_for() -> None:
    assert dispatch._verdict(0, "reference") == "BENCH_KERNELS=reference"


def test_a_device_is_not_tested_inside_a_graph_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="graph capture"):
        dispatch._verdict(0, "")


def test_the_record_says_what_ran_on_the_gpu() -> None:
    info = kernel_info()
    assert info["gpu_backend"] in ("triton", "reference", "none")
    assert {"gpu_reason", "triton", "gpu_source_sha256"} <= info.keys()
