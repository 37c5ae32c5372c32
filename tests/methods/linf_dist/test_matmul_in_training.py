"""Matrix products in training: who gets them, who never does, what the history says."""

import math

import pytest
import torch

from bench import DataSpec, Eps, registry
from bench.attack import AttackConfig, Ball, run, suite
from bench.data import load
from bench.errors import BenchError
from bench.exact import exact_eval
from bench.progress import Progress
from bench.recipe import override
from bench.train import train
from methods.linf_dist import layers, training
from methods.linf_dist.nets import DistNet, Smoothed
from methods.linf_dist.recipes import DistRecipe
from methods.linf_dist.training import matmul_at

DATA = DataSpec("synthetic", 1, 4, 4, 4, (0.5,), (0.5,))
OPTIONS = ("off", "auto", "float32", "tf32", "bf16x3")


def recipe_of(**changes):
    settings = {"dataset": "synthetic", "eps": "0.1", "preset": "quick", "source": "t", "widths": (12, 12),
                "identity": 0.0, "p_grid": "coarse"}  # fmt: skip
    return DistRecipe(**{**settings, **changes})


def net_of(matmul="", p=8.0, **changes):
    torch.manual_seed(0)
    net = DistNet(DATA, recipe_of(**changes))
    net.set_p(p)
    net.set_matmul(matmul)
    return net


def images(n=16):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 4, 4, generator=g), torch.randint(0, 4, (n,), generator=g)


@pytest.fixture
def calls(monkeypatch):
    """Formats of the products that layers ask for, as they come."""
    seen = []
    real = layers.dist_matmul
    monkeypatch.setattr(layers, "dist_matmul", lambda *a, **k: seen.append(k["format"]) or real(*a, **k))
    return seen


@pytest.fixture
def units(monkeypatch):
    """A device with matrix units; the products themselves stay emulated."""
    monkeypatch.setattr(training, "has_units", lambda x: True)


# --- who never gets them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matmul", OPTIONS[2:])
@pytest.mark.parametrize("p", [8.0, 12.0, math.inf])
def test_the_evaluated_net_is_the_same_bits_whatever_the_option(matmul, p, calls):
    x, _ = images()
    plain, other = net_of("", p).eval(), net_of(matmul, p).eval()
    assert torch.equal(plain(x), other(x))  # gradients on: only the mode keeps the products away
    with torch.no_grad():
        assert torch.equal(plain(x), other(x))
    assert not calls


@pytest.mark.parametrize("conv_channels", [(), (3,)])
def test_where_gradients_are_off_or_p_is_named_arithmetic_is_direct(conv_channels, calls):
    """Also in training mode: re-estimated means, surrogates."""
    x, _ = images()
    net = net_of("tf32", conv_channels=conv_channels, conv_strides=(1,) * len(conv_channels)).train()
    with torch.no_grad():
        net(x)
    Smoothed(net, 8.0)(x)
    net(x, p=8.0)
    assert not calls
    net(x)
    assert calls == ["tf32"] * (3 + len(conv_channels))


def test_certificates_and_attacks_never_see_a_product(calls):
    """On a net that was left in the middle of the p = 8 phase with its products on."""
    method, eps = registry.get("linf_dist"), Eps("0.1")
    x, y = images()
    found = []
    for matmul in ("", "bf16x3"):
        net = net_of(matmul)
        with exact_eval(net):
            everything = [net(x)]
            net.set_p(math.inf)
            everything += [b.lower for b in method.margin_bounds(net, x, y, eps)] + [method.radius(net, x, y)]
        ball = Ball((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1), torch.full((len(x), 1, 1, 1), 0.1))
        net.eval()
        for p in (8.0, math.inf):
            net.set_p(p)
            for attack in suite(AttackConfig(steps=2, restarts=1), method, net):
                everything.append(run(attack, net, x, y, ball, index=torch.arange(len(x)), seed=0).broken)
        found.append(everything)
    assert not calls and len(found[0]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_finished_net_asks_for_no_products():
    net = net_of("bf16x3")
    registry.get("linf_dist").finish(net, recipe_of(), lambda: [])
    assert all(layer.matmul == "" and layer.p == math.inf for layer in net.distance_layers())


# --- who gets them ----------------------------------------------------------------------------------------------------


def test_auto_wants_a_device_with_units(units):
    """Here that is pretended; without the fixture there is none."""
    like = torch.zeros(())
    served = {p: matmul_at(recipe_of(), p, like) for p in (8.0, 10.0, 12.0, 14.0, 8.5, 50.0, math.inf)}
    assert served == {8.0: "bf16x3", 10.0: "bf16x3", 12.0: "bf16x3", 14.0: "", 8.5: "", 50.0: "", math.inf: ""}


def test_auto_leaves_the_schedules_of_the_papers_alone(units):
    assert matmul_at(recipe_of(p_grid="real"), 8.0, torch.zeros(())) == ""


def test_auto_on_a_cpu_is_direct_arithmetic():
    assert matmul_at(recipe_of(), 8.0, torch.zeros(())) == ""


def test_off_is_off_everywhere(units):
    assert matmul_at(override(recipe_of(), {"matmul": "off"}), 8.0, torch.zeros(())) == ""


@pytest.mark.parametrize("matmul", OPTIONS[2:])
def test_a_named_format_is_used_on_a_cpu_and_on_any_grid(matmul):
    assert matmul_at(recipe_of(matmul=matmul, p_grid="real"), 8.0, torch.zeros(())) == matmul
    assert matmul_at(recipe_of(matmul=matmul), 14.0, torch.zeros(())) == ""


def test_a_named_format_without_its_kernels_is_refused_in_one_line():
    class OnGpu:
        is_cuda, device, dtype = True, "cuda:0", torch.float64  # float64: no kernels on any device

    with pytest.raises(BenchError, match=r"device cuda:0 lacks the kernels .* --set matmul=off"):
        matmul_at(recipe_of(matmul="tf32"), 8.0, OnGpu())


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="matmul = 'fp8'; choose one of auto, off, float32, tf32, bf16x3"):
        recipe_of(matmul="fp8")


# --- what comes of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def short_run(digits, name="linf_dist_v2", **changes):
    """(history, weights, certified on the validation images) of 6 epochs, of which products serve the first three."""
    method = registry.get(name)
    recipe = next(r for r in method.recipes() if r.dataset == "digits" and r.preset == "quick")
    settings = {"epochs": "6", "p_hold": "2.5", "p_inf_from": "5", "widths": "32,32", "p_jump": "50"}
    recipe = override(recipe, {**settings, **changes})
    torch.manual_seed(0)
    net = method.build(digits.spec, recipe)
    summary = train(method, recipe, net, digits.train, spec=digits.spec, seed=0, eps=recipe.radius, store=None,
                    progress=Progress(quiet=True))  # fmt: skip
    net.eval()
    x, y = digits.val.pixels(slice(None)), digits.val.labels
    with torch.no_grad():
        certified = (method.margin_bound(net, x, y, Eps("0.1")).lower > 0).double().mean().item()
    return summary["history"], net.dense[0].weight.detach().clone(), certified


def test_the_history_says_which_ran_and_what_was_flagged(digits):
    history, _, _ = short_run(digits, matmul="tf32")
    assert [row.get("matmul_tf32") for row in history[:2]] == [1.0, 1.0]
    assert 0.4 < history[2]["matmul_tf32"] < 0.6  # p jumps in the middle of the third epoch
    assert not [key for row in history[3:] for key in row if key.startswith(("matmul", "flagged"))]
    assert {key for key in history[0] if key.startswith("flagged")} == {"flagged_0", "flagged_1", "flagged_2"}
    assert all(0 <= row[f"flagged_{k}"] <= row["matmul_tf32"] for row in history[:3] for k in range(3))
    assert any(row[f"flagged_{k}"] > 0 for row in history[:3] for k in range(3))


def test_without_products_the_history_and_the_weights_are_those_of_before(digits):
    default, off = short_run(digits), short_run(digits, matmul="off")
    assert not [key for row in (*default[0], *off[0]) for key in row if key.startswith(("matmul", "flagged"))]
    assert torch.equal(default[1], off[1])


@pytest.mark.parametrize("name", ["linf_dist", "linf_dist_mlp", "linf_dist_v2"])
def test_every_method_trains_on_products_as_it_does_directly(digits, name):
    direct, products = short_run(digits, name, matmul="off"), short_run(digits, name, matmul="bf16x3")
    assert products[0][0]["matmul_bf16x3"] == 1.0 and not torch.equal(direct[1], products[1])
    first = [run[0][0]["loss"] for run in (direct, products)]
    assert first[1] == pytest.approx(first[0], rel=2e-2)
    assert abs(direct[2] - products[2]) < 0.08  # of 30 to 60 %; a run ruined by unguarded products falls far lower


def test_counting_what_is_flagged_leaves_the_share_on_the_device():
    net = net_of("bf16x3").train()
    net(images()[0])
    for layer in net.distance_layers():
        share = layer.stats.ratio()
        assert isinstance(share, torch.Tensor) and share.item() == pytest.approx(layer.stats.share, rel=1e-6)
    net.set_matmul("bf16x3")
    assert all(layer.stats.ratio() is None for layer in net.distance_layers())
