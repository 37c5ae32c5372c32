"""The checks of `checks.py`, and what only a CUDA device can show: large shapes, graphs, streams, a whole layer."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from methods.linf_dist.kernels import dist, gpu, kernel_info, reference

pytestmark = pytest.mark.gpu
P = [8.0, 8.5, 12.0, 20.0, 20.3, 48.0, 63.9, 64.0, 100.0, 1000.0, math.inf]


def _load(path: Path):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("kernels_gpu_checks", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = _load(Path(__file__).with_name("checks.py"))


@pytest.mark.parametrize("check", checks.CHECKS.values(), ids=list(checks.CHECKS))
def test_the_kernels_pass_on_the_device(check: Callable[[str], None]) -> None:
    check("cuda")


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("shape", [(512, 784, 256), (512, 1024, 1024), (37, 133, 45), (64, 784, 70)], ids=str)
def test_layers_of_real_size_match_the_oracle(shape: tuple[int, int, int], p: float) -> None:
    x, w, g = checks.operands(shape, "cuda")
    y, code = gpu.forward(x, w, p, True)
    rows = slice(0, 8)  # the oracle broadcasts [B, O, I]
    want = reference.oracle_dist(x[rows], w, p)
    assert ((y[rows] - want).abs() <= 1e-5 * want).all()
    dx, dw = gpu.backward(g, x, w, y, code, p, True, True)
    exact_y = reference.forward(x.double(), w.double(), p, True)[0]
    exact = reference.backward(g.double(), x.double(), w.double(), exact_y, code, p)
    checks.assert_grad(dx, exact[0], 5e-4)
    checks.assert_grad(dw, exact[1], 5e-4)


def test_p_inf_of_a_large_layer_has_the_bits_of_the_reference() -> None:
    x, w, _ = checks.operands((512, 1024, 1024), "cuda", levels=64)
    y, code = gpu.forward(x, w, math.inf, True)
    want = reference.forward(x, w, math.inf, True)
    assert torch.equal(y, want[0]) and torch.equal(code, want[1])


@pytest.mark.parametrize("p", [8.5, 100.0, math.inf])
def test_a_captured_graph_replays_with_new_data_and_a_new_exponent(p: float) -> None:
    x, w, g = checks.operands((64, 200, 70), "cuda")
    exponent = torch.tensor([p], device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        y, code = gpu.forward(x, w, p, True, exponent)
        return y, *gpu.backward(g, x, w, y, code, p, True, True, exponent)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    if not math.isinf(p):
        exponent.fill_(p + 0.75)
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


def test_kernels_run_on_the_current_stream() -> None:
    """Behind a long sleep on a side stream, a kernel on another stream would read the operands too early."""
    x, w, _ = checks.operands((64, 200, 70), "cuda")
    want = gpu.forward(x + 1, w, math.inf, False)[0]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        got = gpu.forward(x + 1, w, math.inf, False)[0]
    torch.cuda.synchronize()
    assert torch.equal(got, want)


def test_no_call_waits_for_the_device() -> None:
    x, w, g = checks.operands((64, 200, 70), "cuda")
    for p in (8.0, 20.3, 100.0, math.inf):
        gpu.forward(x, w, p, True)
        with torch.no_grad():
            torch.cuda.set_sync_debug_mode("error")
            try:
                y, code = gpu.forward(x, w, p, True)
                gpu.backward(g, x, w, y, code, p, True, True)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_the_layer_runs_on_triton_and_says_so() -> None:
    x, w, _ = checks.operands((64, 200, 70), "cuda")
    assert gpu.available(x)
    assert torch.equal(dist(x, w, math.inf), gpu.forward(x, w, math.inf, False)[0])
    assert kernel_info()["gpu_backend"] == "triton"
