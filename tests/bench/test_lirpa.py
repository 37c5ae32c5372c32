"""auto_LiRPA against our own bounds, and the adapter's manners. Skipped where auto_LiRPA is not installed."""

from __future__ import annotations

import logging
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bench import lirpa
from methods import box, crown
from methods.nets import ReluNet

needed = pytest.mark.skipif(not lirpa.is_installed(), reason=f"auto_LiRPA is not installed: {lirpa.INSTALL}")
RADIUS = 0.01
AGREE = 1e-9  # relative, float64: the same sums in another order
R = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "methods" / "conftest.py")))
LINEAR_KINDS = ["mlp", "conv_small", "cnn7_bn_all", "resnext", "wide_resnet"]


@pytest.fixture
def default_dtype() -> Iterator[None]:
    yield
    assert torch.get_default_dtype() == torch.float32


def ours(kind: str) -> tuple[ReluNet, Tensor, Tensor, Tensor, Tensor]:
    """A float64 net, images, labels, and the ends of the box."""
    net, (x, y) = R.make_net(kind).double(), R.make_images(kind, 5)
    x = x.double()
    return net, x, y, (x - RADIUS).clamp(0, 1), (x + RADIUS).clamp(0, 1)


def close(a: Tensor, b: Tensor) -> bool:
    kept = torch.isfinite(a)
    return bool(((a - b)[kept].abs() <= AGREE * b[kept].abs().max()).all())


@needed
@pytest.mark.parametrize("kind", [*LINEAR_KINDS, "densenet"])
def test_interval_bounds_agree(kind: str, default_dtype: None) -> None:
    net, x, y, low, high = ours(kind)
    theirs = lirpa.Bounds(net.layers, net.normalize, tuple(x.shape[1:])).margins(low, high, y, "ibp")
    assert close(theirs, box.run(net, x, RADIUS).margins(y).detach())


@needed
@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_crown_ibp_bounds_agree(kind: str, default_dtype: None) -> None:
    net, x, y, low, high = ours(kind)
    theirs = lirpa.Bounds(net.layers, net.normalize, tuple(x.shape[1:])).margins(low, high, y, "crown_ibp")
    assert close(theirs, crown.crown_ibp_margins(box.run(net, x, RADIUS, tape=True), y).detach())


@needed
@pytest.mark.parametrize("mode", ["matrix", "patches"])
def test_crown_improves_on_crown_ibp_in_both_convolution_modes(mode: str) -> None:
    net, x, y, low, high = ours("conv_small")
    shape = tuple(x.shape[1:])
    better = lirpa.Bounds(net.layers, net.normalize, shape, conv_mode=mode).margins(low, high, y, "crown")
    worse = lirpa.Bounds(net.layers, net.normalize, shape, conv_mode=mode).margins(low, high, y, "crown_ibp")
    kept = torch.isfinite(better)
    assert float((better - worse)[kept].mean()) > 0


@needed
def test_alpha_crown_improves_on_crown_and_stays_below_sampled_points() -> None:
    net, x, y, low, high = ours("mlp")
    shape = tuple(x.shape[1:])
    best = lirpa.Bounds(net.layers, net.normalize, shape, iterations=8).margins(low, high, y, "alpha_crown")
    plain = lirpa.Bounds(net.layers, net.normalize, shape).margins(low, high, y, "crown")
    kept = torch.isfinite(best)
    assert float((best - plain)[kept].sum()) > 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        point = torch.where(torch.rand(x.shape, generator=generator) < 0.5, low, high)
        logits = net(point).detach()
        assert bool((best <= logits.gather(1, y[:, None]) - logits + 1e-9)[kept].all())


@needed
def test_training_through_it_gives_our_margins_and_our_gradients() -> None:
    net, (x, y) = R.make_net("conv_small"), R.make_images("conv_small", 5)
    low, high = (x - RADIUS).clamp(0, 1), (x + RADIUS).clamp(0, 1)
    made = lirpa.trainer(net.layers, net.normalize, tuple(x.shape[1:]))
    assert lirpa.trainer(net.layers, net.normalize, tuple(x.shape[1:])) is made
    net.train()
    theirs = made.crown_ibp_margins(low, high, y)
    mine = crown.crown_ibp_margins(box.run(net, x, RADIUS, tape=True), y)
    assert torch.allclose(theirs, mine, atol=1e-5)
    parameters = list(net.parameters())
    for a, b in zip(
        torch.autograd.grad(theirs.sum(), parameters), torch.autograd.grad(mine.sum(), parameters), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()) + 1e-7)


@needed
def test_training_with_batch_norm_is_refused() -> None:
    net = R.make_net("cnn7_bn_all")
    with pytest.raises(lirpa.Unsupported, match="engine=own"):
        lirpa.trainer(net.layers, net.normalize, (1, 12, 12))


@needed
def test_fused_cross_entropy_is_theirs() -> None:
    """The upper bound of the fused loss, CROWN-IBP, against auto_LiRPA's loss fusion."""
    module = lirpa.load()
    from auto_LiRPA.utils import Flatten  # noqa: F401  (its import must work after load)

    net, (x, y) = R.make_net("mlp"), R.make_images("mlp", 4)
    x = x.clamp(0.2, 0.8)
    from auto_LiRPA.wrapper import CrossEntropyWrapper

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = module.BoundedModule(
            CrossEntropyWrapper(net.layers), (x, y), bound_opts={"loss_fusion": True}, device=torch.device("cpu")
        )
        image = module.BoundedTensor(x, module.PerturbationLpNorm(norm=float("inf"), x_L=x - RADIUS, x_U=x + RADIUS))
        wrapped.train()
        wrapped(image, y)
        _, upper = wrapped.compute_bounds(x=(image, y), method="CROWN-IBP", C=None, bound_lower=False, bound_upper=True)
    shift = next(node.max_input for node in wrapped.modules() if type(node).__name__ == "BoundExp")
    theirs = torch.log(upper.flatten()) + shift.flatten()
    mine = crown.fused_cross_entropy(box.run(net, x, RADIUS, tape=True), y, 1.0)
    assert torch.allclose(mine, theirs.detach(), rtol=1e-5)


@needed
def test_bounding_leaves_the_network_as_it_was() -> None:
    net, (x, y) = R.make_net("cnn7_bn_all"), R.make_images("cnn7_bn_all", 3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    bounds = lirpa.Bounds(net.layers, net.normalize, tuple(x.shape[1:]))
    bounds.margins((x - RADIUS).clamp(0, 1), (x + RADIUS).clamp(0, 1), y, "crown_ibp")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.modules())


@needed
def test_what_it_cannot_bound_is_said_in_one_line() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x.flatten(1)).real[:, :3] * self.weight

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    with pytest.raises(lirpa.Unsupported, match="cannot bound this network") as caught:
        lirpa.Bounds(Odd(), nn.Identity(), (1, 4, 4))
    assert "\n" not in str(caught.value)


@needed
def test_loading_disturbs_neither_warnings_nor_logging() -> None:
    """In a fresh interpreter: 0.3 rewrites filters and hangs a stdout handler on the root logger."""
    code = (
        "import logging, warnings, numpy, torch; f, h = list(warnings.filters), list(logging.getLogger().handlers)\n"
        "from bench import lirpa; lirpa.load()\n"
        "assert warnings.filters == f, 'filters'\nassert logging.getLogger().handlers == h, 'handlers'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not any(h for h in logging.getLogger().handlers if getattr(h, "stream", None) is sys.__stdout__)


def test_its_absence_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lirpa, "is_installed", lambda: False)
    lirpa.load.cache_clear()
    try:
        with pytest.raises(lirpa.LirpaUnavailable, match=r"not installed: pip install --no-deps auto-LiRPA==0\.3"):
            lirpa.load()
    finally:
        lirpa.load.cache_clear()


@needed
def test_loading_twice_and_the_recursion_limit():
    """The import raises the limit to a million: deeply nested JSON would then overflow the C stack, not raise."""
    script = (
        "import sys; before = sys.getrecursionlimit()\n"
        "from bench import lirpa\n"
        "lirpa.load(); lirpa.load.cache_clear(); lirpa.load()\n"
        "sys.exit(sys.getrecursionlimit() != before)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
