"""AutoAttack as attacks of the cascade: judged by the deployed net, kept inside the exact ball, its warnings stored."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import Eps, autoattack, threat
from bench.attack import AttackConfig, Ball
from bench.errors import BenchError
from bench.evaluate import evaluate

S = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_ins.py"))))
EPS = Eps("0.1")
RECIPE = SimpleNamespace(crop=0)
NONE = AttackConfig(steps=0, surrogates=0)


@pytest.fixture
def library(monkeypatch):
    """The real library at a hundredth of its budget."""
    module = pytest.importorskip("pyautoattack")
    whole = module.AutoAttack

    def small(*args, **options):
        made = whole(*args, **options)
        made.apgd.n_iter = made.apgd_targeted.n_iter = made.fab.n_iter = 5
        made.square.n_queries = 20
        return made

    monkeypatch.setattr(module, "AutoAttack", small)
    return module


@pytest.fixture
def stub(monkeypatch):
    """A library that returns and says what a test wants."""

    class AutoAttack:
        answer, warnings = staticmethod(lambda x: x), ()

        def __init__(self, net, **options):
            self.apgd_targeted, self.fab = SimpleNamespace(), SimpleNamespace()

        def run_standard_evaluation(self, x, y, batch_size):
            import logging

            for text in self.warnings:
                logging.getLogger("auto-attack").warning(text)
            return self.answer(x), y

    module = SimpleNamespace(AutoAttack=AutoAttack, checks=SimpleNamespace(funcs={"grad": 3}))
    monkeypatch.setitem(sys.modules, "pyautoattack", module)
    monkeypatch.setattr(autoattack.importlib.metadata, "version", lambda name: "0.2.0")
    return module


def problem(classes=5, n=24, seed=0, scale=1.0):
    torch.manual_seed(seed)
    net = S.DistNet(6, 8, classes, scale=scale).eval()
    data = S.labelled_by(net, S.random_split(n, classes=classes))
    return net, data


def steep():
    """A linear net that no example survives for long, right everywhere."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 5)).eval()
    with torch.no_grad():
        net[1].weight *= 20
    return net, S.labelled_by(net, S.random_split(24, classes=5))


def run(net, data, config, method=None, eps=EPS, classes=5):
    method = method or S.DistMethod()
    return evaluate(method, RECIPE, net, data, spec=S.spec(classes=classes), eps=eps, seed=0, attacks=config)


def one(name="aa_apgd_ce", classes=5):
    return autoattack.Part(name, classes, "stub 0")


def strike(part, net, data, eps=EPS):
    x = data.pixels(slice(0, None))
    ball = Ball(*threat.inner_box(x, eps), float(eps))
    return x, ball, part.against(net, x, data.labels, ball, index=data.index, seed=0)


# --- with a stub: what is done with the answers -----------------------------------------------------------------------


def test_points_outside_the_ball_are_brought_back_before_they_are_judged(stub):
    net, data = steep()
    stub.AutoAttack.answer = staticmethod(lambda x: 1 - x.round())  # the far corner: outside of every ball here
    _, ball, outcome = strike(one(), net, data)
    assert bool(((outcome.adversarial >= ball.lower) & (outcome.adversarial <= ball.upper)).all())
    wrong = net(outcome.adversarial).argmax(1) != data.labels
    assert torch.equal(wrong, outcome.broken) and outcome.broken.any()


def test_nothing_counts_that_the_net_does_not_confirm(stub):
    net, data = problem()
    stub.AutoAttack.answer = staticmethod(lambda x: x.clone())
    assert not strike(one(), net, data)[2].broken.any()
    stub.AutoAttack.answer = staticmethod(lambda x: torch.full_like(x, float("nan")))
    assert not strike(one(), net, data)[2].broken.any()


def test_a_radius_of_zero_changes_nothing(stub):
    net, data = problem()
    stub.AutoAttack.answer = staticmethod(lambda x: 1 - x)
    x, _, outcome = strike(one(), net, data, Eps("0.0"))
    assert not outcome.broken.any()
    assert torch.equal(outcome.adversarial, x)


WARNINGS = {
    "probabilities": "it seems that the output is a probability distribution, please be sure",
    "zero_gradient": "there are 7 points with zero gradient! This might lead to",
    "dynamic": "it seems to be a dynamic defense! The evaluation",
    "few_classes": "it seems that more target classes (9) than possible (4) are used",
    "other": "something new",
}


@pytest.mark.parametrize("flag", WARNINGS)
def test_warnings_of_the_library_are_kept_in_the_record(stub, flag):
    net, data = problem()
    stub.AutoAttack.warnings = (WARNINGS[flag],)
    found = run(net, data, replace(NONE, autoattack=True))
    first = found.summary["attacks"][0]
    assert first["flags"] == {flag: 7 if flag == "zero_gradient" else 1}
    assert first["library"] == "pyautoattack 0.2.0"
    assert any(flag in note and "aa_apgd_ce" in note for note in found.summary["notes"])


def test_a_randomized_net_is_an_error(stub):
    net, data = problem()
    stub.AutoAttack.warnings = ("it seems to be a randomized defense! Please use",)
    with pytest.raises(BenchError, match="randomized"):
        strike(one(), net, data)


def test_a_square_attack_that_gains_much_is_a_flag(stub):
    net, data = problem(scale=0.1)

    def answer(x):
        return threat.corner(x, Eps("0.5"), 3)

    stub.AutoAttack.answer = staticmethod(answer)
    parts = {"aa_square": autoattack.PARTS["aa_square"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autoattack, "PARTS", parts)
        line = run(net, data, replace(NONE, autoattack=True), eps=Eps("0.5")).summary["attacks"][0]
    assert line["n_broken"] > 0
    assert line["flags"] == {"square_gain": line["n_broken"]}


def test_tracing_and_the_logger_are_as_before(stub):
    import logging

    net, data = problem()

    def tracer(frame, event, arg):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        strike(one(), net, data)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert not logging.getLogger("auto-attack").handlers
    assert stub.checks.funcs == {"grad": 0}


def test_its_absence_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(BenchError, match=r"pip install pyautoattack") as caught:
        autoattack.parts(10)
    assert "\n" not in str(caught.value)


def test_fewer_than_four_classes_leave_the_targeted_loss_out_and_say_so(stub):
    names = {p.name: p.flags for p in autoattack.parts(3)}
    assert names == {"aa_apgd_ce": {"few_classes": 1}, "aa_fab_t": {}, "aa_square": {}}
    assert [p.name for p in autoattack.parts(4)] == list(autoattack.PARTS)


# --- with the library -------------------------------------------------------------------------------------------------


def test_every_part_breaks_an_undefended_net_from_inside_the_ball(library):
    net, data = steep()
    for name in autoattack.PARTS:
        part = one(name)
        _, ball, outcome = strike(part, net, data, Eps("0.3"))
        assert outcome.broken.float().mean() > 0.5, name
        assert bool(((outcome.adversarial >= ball.lower) & (outcome.adversarial <= ball.upper)).all())
        assert not part.flags, name


def test_no_certified_example_falls_and_adding_it_is_never_weaker(library):
    net, data = problem(n=32)
    few = run(net, data, AttackConfig(steps=3, surrogates=0))
    more = run(net, data, AttackConfig(steps=3, surrogates=0, autoattack=True))
    assert not (more.arrays["robust"] & ~few.arrays["robust"]).any()
    assert more.summary["n_certified"] > 0  # and none fell, or it would have raised
    assert np.array_equal(more.arrays["survived_pgd"], few.arrays["survived_pgd"])
    assert {f"survived_{name}" for name in autoattack.PARTS} <= set(more.arrays)


def test_masked_gradients_are_flagged(library):
    class Step(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net((x * 4).round() / 4)

    net, data = problem()
    found = run(Step(net), S.labelled_by(Step(net), data), replace(NONE, autoattack=True), method=Uncertified())
    assert any("zero_gradient" in line["flags"] for line in found.summary["attacks"])


class Uncertified(S.DistMethod):
    def margin_bound(self, net, x, y, eps):
        from bench import Bound

        return Bound(torch.full((len(x),), -1.0, dtype=torch.float64), "interval", "R")

    def radius(self, net, x, y):
        return torch.zeros(len(x))

    def attack_models(self, net):
        return ()


def test_the_same_seed_gives_the_same_outcome(library):
    net, data = problem()
    a = strike(one("aa_square"), net, data)[2]
    b = strike(one("aa_square"), net, data)[2]
    assert torch.equal(a.adversarial, b.adversarial)
