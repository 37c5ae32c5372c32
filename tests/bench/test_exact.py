"""`exact_eval` forces every switch, restores everything, and notices what disobeys."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from bench import exact
from bench.errors import BenchError
from bench.exact import check_net, exact_eval, flush_to_zero, reduced_precision, subtraction_is_exact

BACK = torch.backends


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 3))


# name -> (write the bad value, read it back, bad value, what exact evaluation needs)
BAD = {
    "grad": (torch.set_grad_enabled, torch.is_grad_enabled, True, False),
    "default_dtype": (torch.set_default_dtype, torch.get_default_dtype, torch.float64, torch.float32),
    "matmul": (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision, "medium", "highest"),
    "deterministic": (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled, False, True),
    "autocast": (
        lambda v: torch.set_autocast_enabled("cpu", v), lambda: torch.is_autocast_enabled("cpu"), True, False,
    ),
    "autocast_cuda": (
        lambda v: torch.set_autocast_enabled("cuda", v), lambda: torch.is_autocast_enabled("cuda"), True, False,
    ),
    "cudnn_tf32": (lambda v: setattr(BACK.cudnn, "allow_tf32", v), lambda: BACK.cudnn.allow_tf32, True, False),
    "cuda_tf32": (
        lambda v: setattr(BACK.cuda.matmul, "allow_tf32", v), lambda: BACK.cuda.matmul.allow_tf32, True, False,
    ),
    "fp16_reduction": (
        lambda v: setattr(BACK.cuda.matmul, "allow_fp16_reduced_precision_reduction", v),
        lambda: BACK.cuda.matmul.allow_fp16_reduced_precision_reduction, True, False,
    ),
    "bf16_reduction": (
        lambda v: setattr(BACK.cuda.matmul, "allow_bf16_reduced_precision_reduction", v),
        lambda: BACK.cuda.matmul.allow_bf16_reduced_precision_reduction, True, False,
    ),
    "cudnn_benchmark": (lambda v: setattr(BACK.cudnn, "benchmark", v), lambda: BACK.cudnn.benchmark, True, False),
    "cudnn_deterministic": (
        lambda v: setattr(BACK.cudnn, "deterministic", v), lambda: BACK.cudnn.deterministic, False, True,
    ),
    "nnpack_winograd": (torch._C._set_nnpack_enabled, torch._C._get_nnpack_enabled, True, False),
    "cudnn_winograd": (lambda v: setattr(BACK.cudnn, "enabled", v), lambda: BACK.cudnn.enabled, True, False),
}  # fmt: skip


@pytest.fixture(autouse=True)
def switches_as_found():
    """No test of this file may leave a switch behind: the whole suite runs in one process."""
    table = exact._switches()
    before = [(s, s.read()) for s in table]
    yield
    torch.set_flush_denormal(False)
    for switch, value in before:
        switch.write(value)


@pytest.mark.parametrize("name", BAD)
def test_switch_is_forced_inside_and_restored_after(name):
    write, read, bad, wanted = BAD[name]
    net = small()
    write(bad)
    with exact_eval(net):
        assert read() == wanted
    assert read() == bad


@pytest.mark.parametrize("name", BAD)
def test_switch_is_restored_after_an_exception(name):
    write, read, bad, _ = BAD[name]
    net = small()
    write(bad)
    with pytest.raises(RuntimeError, match="inside"), exact_eval(net):
        raise RuntimeError("inside")
    assert read() == bad


@pytest.mark.parametrize("name", sorted(set(BAD) - {"grad"}))
def test_switch_turned_during_evaluation_costs_the_class(name):
    write, read, bad, wanted = BAD[name]
    with exact_eval(small()) as state:
        write(bad)
        state.check()
        assert read() == wanted
        assert (state.effective("D"), state.effective("F32")) == ("R", "R")
    assert any("switched" in reason for reason in state.downgrade)


@pytest.mark.parametrize("node", range(len(exact._precision_nodes())))
def test_every_precision_node_is_ieee_inside_and_restored(node):
    nodes = exact._precision_nodes()
    before = [n.fp32_precision for n in nodes]
    with exact_eval(small()):
        assert nodes[node].fp32_precision == "ieee"
    assert [n.fp32_precision for n in nodes] == before


def test_undisturbed_evaluation_keeps_every_class():
    with exact_eval(small()) as state:
        state.check()
    assert not state.downgrade
    assert [state.effective(c) for c in ("D", "F32", "R")] == ["D", "F32", "R"]


def test_switches_of_the_record_are_json():
    import json

    with exact_eval(small()) as state:
        assert json.loads(json.dumps(state.switches)) == state.switches
    assert state.switches["flush_to_zero"] == "off"


def test_modes_come_back_module_by_module():
    net = small()
    net.train()
    net[2].eval()  # a frozen batch norm in a net that trains
    with exact_eval(net):
        assert not any(m.training for m in net.modules())
    assert net[0].training and not net[2].training


def test_train_mode_during_evaluation_costs_the_class():
    net = small()
    with exact_eval(net) as state:
        net[3].train()
        state.check()
        assert not net[3].training
        assert state.effective("D") == "R"


def test_no_random_generator_moves():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with exact_eval(small_seeded()):
        draw()
    assert draw() == expected


def small_seeded():
    """A net made without touching the global generator."""
    with torch.random.fork_rng():
        return small()


@pytest.mark.parametrize("what", ["weight", "running_mean", "counter"])
def test_a_net_changed_by_evaluation_is_refused(what):
    net = small()
    targets = {"weight": net[1].weight, "running_mean": net[2].running_mean, "counter": net[2].num_batches_tracked}
    with pytest.raises(BenchError, match="changed the net"), exact_eval(net):
        targets[what].data.view(-1)[:1] += 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(BenchError, match=r"parameter 1\.weight"):
        check_net(small().to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value):
    net = small()
    net[4].bias.data[1] = value
    with pytest.raises(BenchError, match=r"parameter 4\.bias holds 1 non-finite"):
        check_net(net)


def test_an_infinite_buffer_is_an_exponent_and_a_nan_is_not():
    net = small()
    net.register_buffer("p", torch.tensor(float("inf")))
    check_net(net)
    net.p.fill_(float("nan"))
    with pytest.raises(BenchError, match="buffer p"):
        check_net(net)


def test_probe_is_silent_in_plain_float32():
    assert reduced_precision(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(300, 7))) == []


def test_probe_sees_autocast():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(300, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reduced_precision(net)
    assert "matmul of width 300" in found
    assert "convolution 3x3x3" in found


def test_probe_sees_a_kernel_that_is_wrong_for_large_shapes_only(monkeypatch):
    """CPU bf16 matmul is exact at 16 x 16: a probe at toy shapes would be blind."""
    real = nn.functional.linear

    def linear(x, w, b=None):
        return real(x.bfloat16().float(), w, b) if w.shape[1] >= 64 else real(x, w, b)

    monkeypatch.setattr(nn.functional, "linear", linear)
    assert reduced_precision(nn.Linear(10, 3))


@pytest.fixture
def without_onednn():
    """Convolutions as on a build without oneDNN: torch then takes NNPACK's Winograd ones for 16 images and more."""
    before = BACK.mkldnn.set_flags(False)
    yield
    BACK.mkldnn.set_flags(*before)


needs_nnpack = pytest.mark.skipif(not torch._nnpack_available(), reason="this build has no NNPACK")


@needs_nnpack
def test_probe_sees_winograd_convolutions(without_onednn):
    torch._C._set_nnpack_enabled(True)
    assert reduced_precision(nn.Conv2d(3, 8, 3)) == ["convolution 3x3x3"]


@needs_nnpack
def test_without_onednn_convolutions_of_a_batch_are_those_of_one_image(without_onednn):
    """Beside a bright patch Winograd's sums leave something where nothing is; its error is no rounding of a sum."""
    torch._C._set_nnpack_enabled(True)
    torch.manual_seed(0)
    net = nn.Conv2d(3, 8, 3, 1, 1)
    x = torch.zeros(32, 3, 16, 16)
    x[:, :, 6:8, 6:8] = 1.0
    with torch.no_grad():
        assert not torch.equal(net(x)[:1], net(x[:1])), "no Winograd kernel ran: the test is toothless"
    with exact_eval(net) as state:
        assert torch.equal(net(x)[:1], net(x[:1]))
        assert state.effective("F32") == "F32"


def test_reduced_precision_costs_f32_only(monkeypatch):
    monkeypatch.setattr(exact, "reduced_precision", lambda net, device: ["matmul of width 256"])
    with exact_eval(small()) as state:
        assert (state.effective("D"), state.effective("F32")) == ("D", "R")


def test_probe_numbers_use_all_24_bits():
    """A bf16 or TF32 product would leave numbers with trailing zeros unchanged."""
    bits = exact._full_bits((1000,), "cpu").view(torch.int32)
    assert (bits & 1).all()


def test_subtraction_is_ieee_here():
    assert subtraction_is_exact()


needs_ftz = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormals")


@needs_ftz
def test_flush_to_zero_is_seen_and_costs_f32():
    torch.set_flush_denormal(True)
    with exact_eval(small()) as state:
        assert state.switches["flush_to_zero"] in ("on", "mixed")
        assert state.effective("F32") == "R"


@needs_ftz
def test_flush_to_zero_turned_on_during_evaluation_costs_both_classes():
    assert flush_to_zero() == "off"
    with exact_eval(small()) as state:
        torch.set_flush_denormal(True)
    assert (state.effective("D"), state.effective("F32")) == ("R", "R")
