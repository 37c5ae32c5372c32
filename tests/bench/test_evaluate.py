"""Evaluation: what it reports is right on nets with known answers, and a false certificate never gets through."""

import copy
import itertools
import json
import math
import runpy
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bench import Bound, Eps, margin, record_arrays
from bench.attack import AttackConfig
from bench.cascade import Cascade
from bench.chunks import Chunks
from bench.errors import BenchError
from bench.evaluate import evaluate
from bench.guards import Violation
from bench.threat import box

S = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_ins.py"))))
SPEC = S.spec()
NO_ATTACK = AttackConfig(steps=0, surrogates=0)
QUICK = AttackConfig(steps=8, surrogate_steps=8)


@dataclass
class Cropped:
    crop: int = 0


def judge(method, net, data, eps="0.1", attacks=QUICK, spec=SPEC, seed=0, recipe=None, **options):
    return evaluate(
        method, recipe or Cropped(), net, data, spec=spec, eps=Eps(eps), seed=seed, attacks=attacks, **options
    )


@pytest.fixture(scope="module")
def tiny():
    """A random distance net and 32 images, 3 in 4 labelled by the net itself: wrong, broken and certified ones."""
    torch.manual_seed(4)
    net = S.DistNet(6, 8, 8, 3)
    data = S.labelled_by(net, S.random_split(32))
    data.labels[::4] = (data.labels[::4] + 1) % 3
    return net, data


@pytest.fixture(scope="module")
def honest(tiny):
    return judge(S.DistMethod(), *tiny)


# --- what is reported -------------------------------------------------------------------------------------------------


def test_arrays_are_those_of_a_record(honest):
    assert record_arrays.check(honest.summary, honest.arrays) is None
    assert {k: str(v.dtype) for k, v in honest.arrays.items()} == {k: record_arrays.dtype_of(k) for k in honest.arrays}
    assert {"bound_interval", "survived_pgd", "survived_pgd_p8", "survived_pgd_p32"} <= set(honest.arrays)


def test_summary_is_json(honest):
    assert json.loads(json.dumps(honest.summary)) == honest.summary


def test_the_example_set_is_a_mixed_one(honest):
    """Without examples of every kind the tests below would say nothing."""
    s = honest.summary
    assert 0 < s["n_certified"] < s["n_robust"] < s["n_correct"] < s["n"]


def test_margins_and_predictions_are_the_nets_own(tiny, honest):
    net, data = tiny
    z = net(data.pixels(slice(0, None)))
    assert np.array_equal(honest.arrays["margin"], margin(z, data.labels).detach().numpy())
    assert np.array_equal(honest.arrays["pred"], z.argmax(1).numpy())
    assert np.array_equal(honest.arrays["label"], data.labels.numpy())
    assert np.array_equal(honest.arrays["index"], data.index.numpy())


def test_margins_are_kept_in_float64():
    """Rounded to float32 a margin can fall below the class D bound of its own logits."""
    net, data = S.linear(), S.random_split(40)
    kept = judge(S.LinearMethod(), net, data, attacks=NO_ATTACK).arrays["margin"]
    assert np.array_equal(kept, margin(net(data.pixels(slice(0, None))), data.labels).detach().numpy())
    assert (kept != kept.astype(np.float32)).any()


def test_certified_needs_a_right_prediction(tiny, honest):
    assert not (honest.arrays["certified"] & ~honest.arrays["correct"]).any()
    assert not honest.arrays["radius"][~honest.arrays["correct"]].any()


def test_radius_and_verdict_agree(honest):
    at = np.float32(0.1)
    certified, radius = honest.arrays["certified"], honest.arrays["radius"]
    assert (radius[certified] >= np.nextafter(at, np.float32(0))).all()
    assert (radius[~certified] < at).all()


def test_cascade_attacks_only_what_stands(honest):
    attacks = honest.summary["attacks"]
    assert attacks[0]["n_attacked"] == honest.summary["n_correct"]
    for earlier, later in itertools.pairwise(attacks):
        assert later["n_attacked"] == earlier["n_attacked"] - earlier["n_broken"]
    assert honest.summary["n_robust"] == attacks[-1]["n_attacked"] - attacks[-1]["n_broken"]


def test_broken_examples_are_the_ones_marked(tiny, honest):
    """No index shift: every example marked as broken by PGD must fall when it is attacked alone."""
    net, data = tiny
    rows = np.flatnonzero(~honest.arrays["survived_pgd"])
    assert len(rows)
    for row in rows[:5]:
        alone = judge(S.DistMethod(), net, data.subset(torch.tensor([row])))
        assert not alone.arrays["survived_pgd"][0]


@pytest.mark.parametrize("batch_size", [5, 31])
def test_class_d_results_do_not_depend_on_the_batch_size(tiny, honest, batch_size):
    other = judge(S.DistMethod(), *tiny, batch_size=batch_size)
    assert all(np.array_equal(honest.arrays[k], other.arrays[k]) for k in honest.arrays)


def test_class_d_results_do_not_depend_on_the_order(tiny, honest):
    net, data = tiny
    order = torch.arange(31, -1, -1)
    other = judge(S.DistMethod(), net, data.subset(order))
    assert all(np.array_equal(honest.arrays[k][order], other.arrays[k]) for k in honest.arrays)


def test_class_d_results_do_not_depend_on_the_thread_count(tiny, honest):
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        other = judge(S.DistMethod(), *tiny)
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(honest.arrays[k], other.arrays[k]) for k in honest.arrays)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_class_d_certificates_are_the_same_on_a_gpu(tiny, honest):
    """P29: bounds, margins and radii bit for bit; attacks may differ, their gradients are sums."""
    net, data = tiny
    moved = type(data)(data.images.cuda(), data.labels.cuda(), data.index.cuda(), data.levels)
    other = judge(S.DistMethod(), copy.deepcopy(net).cuda(), moved)
    for name in ("margin", "bound_interval", "radius", "pred", "certified"):
        assert np.array_equal(honest.arrays[name], other.arrays[name]), name


def test_evaluating_twice_gives_the_same(tiny, honest):
    torch.rand(17)  # wherever the global generator stands
    again = judge(S.DistMethod(), *tiny)
    assert all(np.array_equal(honest.arrays[k], again.arrays[k]) for k in honest.arrays)


def test_the_seed_reaches_the_random_starts(tiny):
    starts = AttackConfig(steps=1, restarts=3, step_rel=1e-6, surrogates=0)
    outcomes = [judge(S.DistMethod(), *tiny, attacks=starts, seed=s).arrays["survived_pgd"].tolist() for s in range(4)]
    assert any(o != outcomes[0] for o in outcomes[1:])


def test_at_radius_zero_certified_is_correct(tiny):
    """P9, P31: class D has no slack, so nothing is lost at eps = 0, and an attack finds nothing."""
    arrays = judge(S.DistMethod(), *tiny, eps="0").arrays
    assert np.array_equal(arrays["certified"], arrays["correct"])
    assert np.array_equal(arrays["robust"], arrays["correct"])
    assert np.array_equal(arrays["bound_interval"], arrays["margin"])


def test_verdicts_fall_with_eps(tiny):
    """P9: certified and the bound are monotone, exactly."""
    last = None
    for k in range(0, 16, 2):
        arrays = judge(S.DistMethod(), *tiny, eps=f"{k}/50", attacks=NO_ATTACK).arrays
        if last is not None:
            assert (arrays["bound_interval"] <= last["bound_interval"]).all()
            assert not (arrays["certified"] & ~last["certified"]).any()
        last = arrays


def test_generic_radius_is_below_the_closed_form(tiny, honest):
    """Two ways to the same radius: the grid search may not exceed the bisection, nor stay a grid step below."""
    found = judge(S.DistMethod(closed=False), *tiny, attacks=NO_ATTACK).arrays["radius"]
    exact = np.minimum(honest.arrays["radius"], 0.4)
    assert (found <= exact).all()
    assert (exact - found <= 0.1 / 256 * 1.001).all()


def test_ties_are_wrong():
    class Tied(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 3)

    result = judge(S.Uncertified(), Tied(), S.random_split(12))
    assert result.summary["n_correct"] == 0


def test_without_the_option_certified_examples_are_left_out_and_the_record_says_so(tiny, honest):
    config = AttackConfig(steps=8, surrogate_steps=8, attack_certified=False)
    other = judge(S.DistMethod(), *tiny, attacks=config)
    assert other.summary["attacks"][0]["n_attacked"] == (honest.summary["n_correct"] - honest.summary["n_certified"])
    assert any("were not attacked" in note for note in other.summary["notes"])
    assert np.array_equal(other.arrays["robust"], honest.arrays["robust"])


def test_without_radii_nothing_but_the_radii_is_missing(tiny, honest):
    other = judge(S.DistMethod(), *tiny, radii=False)
    assert not other.arrays["radius"].any() and honest.arrays["radius"].any()
    for name in ("correct", "robust", "certified", "margin"):
        assert np.array_equal(other.arrays[name], honest.arrays[name])


def test_the_crop_of_the_recipe_is_what_the_net_sees():
    data = S.random_split(10, shape=(1, 5, 5))
    net = S.DistNet(9, 3)
    result = judge(S.DistMethod(), net, data, recipe=Cropped(3), spec=S.spec((1, 5, 5)))
    centre = data.pixels(slice(0, None))[:, :, 1:4, 1:4]
    assert np.array_equal(result.arrays["margin"], margin(net(centre), data.labels).detach().numpy())


def test_fewer_grey_levels_have_their_own_grid():
    data = S.random_split(10, levels=17)
    result = judge(S.DistMethod(), S.DistNet(6, 3), data, spec=S.spec(levels=17))
    assert result.summary["n"] == 10


def test_progress_reaches_its_totals(tiny):
    seen = []

    class Watcher:
        def phase(self, name, total):
            seen.append([name, total, 0])

        def update(self, done, **values):
            seen[-1][2] = done

    judge(S.DistMethod(), *tiny, progress=Watcher())
    assert [name for name, _, _ in seen] == ["certify", "radius", "attack pgd", "attack pgd_p8", "attack pgd_p32"]
    assert all(total == done for _, total, done in seen)


def test_an_undefended_net_is_not_robust():
    """P30 through the whole evaluation, on real images."""
    net, data, spec = S.trained_digits()
    result = judge(S.Uncertified(), net, data, "0.3", AttackConfig(), spec)
    assert result.summary["n_correct"] > 0.9 * result.summary["n"]
    assert result.summary["n_robust"] <= 0.01 * result.summary["n"]


# --- truth by brute force ---------------------------------------------------------------------------------------------


def test_no_integer_image_flips_inside_a_radius():
    """P3, P6 with two pixels: every one of the 65,536 images, against every example's own radius."""
    every = torch.cartesian_prod(torch.arange(256), torch.arange(256)).to(torch.uint8).reshape(-1, 1, 1, 2)
    checked = 0
    for seed in range(3):
        torch.manual_seed(seed)
        net = S.DistNet(2, 6, 3)
        data = S.labelled_by(net, S.random_split(30, (1, 1, 2), seed=seed))
        arrays = judge(S.DistMethod(), net, data, attacks=NO_ATTACK, spec=S.spec((1, 1, 2))).arrays
        with torch.no_grad():
            answer = net(S.split(every, [0] * len(every)).pixels(slice(0, None))).argmax(1)
        for i in np.flatnonzero(arrays["radius"] > 0):
            levels = (every.int() - data.images[i].int()).abs().flatten(1).amax(1)
            within = levels.double() / 255 <= float(arrays["radius"][i])
            assert (answer[within] == data.labels[i]).all(), f"seed {seed}, example {i}"
            checked += int(within.sum())
    assert checked > 10_000


def test_no_float_flips_inside_a_certified_ball():
    """P3 with one pixel: every float32 of the ball of 8/255, about a million each."""
    seen = 0
    for seed in range(2):
        torch.manual_seed(seed)
        net = S.DistNet(1, 6, 5, 3)
        data = S.labelled_by(net, S.random_split(20, (1, 1, 1), seed=seed))
        result = judge(S.DistMethod(), net, data, "8/255", NO_ATTACK, S.spec((1, 1, 1)))
        certified = np.flatnonzero(result.arrays["certified"] & (data.images.flatten() > 100).numpy())
        x = data.pixels(slice(0, None))[certified[:1]]
        y = int(data.labels[certified[0]])
        lower, upper = (t.view(torch.int32).item() for t in box(x, Eps("8/255")))
        ball = torch.arange(lower, upper + 1, dtype=torch.int32).view(torch.float32).reshape(-1, 1, 1, 1)
        for part in ball.split(200_000):
            with torch.no_grad():
                assert (margin(net(part), torch.full((len(part),), y)) > 0).all()
        seen += len(ball)
    assert seen > 1_000_000


def test_a_linear_bound_agrees_with_fractions():
    """P7: the exact minimum over the exact ball, in whole-number arithmetic, is what a class R bound approximates."""
    net = S.linear()
    data = S.labelled_by(net, S.random_split(20))
    result = judge(S.LinearMethod(), net, data, "8/255", NO_ATTACK)
    weight, bias = ([[Fraction(v) for v in row] for row in net[1].weight.tolist()], net[1].bias.tolist())
    for i, (x, y) in enumerate(zip(data.pixels(slice(0, None)).flatten(1).tolist(), data.labels.tolist(), strict=True)):
        worst = min(
            sum(
                (w - v) * (max(Fraction(0), Fraction(p) - Eps("8/255").fraction) if w > v
                           else min(Fraction(1), Fraction(p) + Eps("8/255").fraction))
                for w, v, p in zip(weight[y], weight[j], x, strict=True)
            ) + Fraction(bias[y]) - Fraction(bias[j])
            for j in range(3) if j != y
        )  # fmt: skip
        assert abs(float(worst) - result.arrays["bound_linear"][i]) < 1e-7
        assert Fraction(float(result.arrays["bound_linear"][i])) <= worst + Fraction(1, 10**14)


# --- false certificates are caught ------------------------------------------------------------------------------------


def test_a_bound_without_a_ball_is_caught_by_an_attack(tiny):
    """A class D certificate that only looks at the image: the attack finds a flip and evaluation refuses."""
    with pytest.raises(Violation, match="class D certificate"):
        judge(S.DistMethod("clean"), *tiny)


def test_the_violating_point_is_kept_bit_for_bit(tiny, tmp_path):
    net, data = tiny
    with pytest.raises(Violation, match=r"violation-\d+\.json"):
        judge(S.DistMethod("clean"), net, data, bundle_dir=tmp_path / "run")
    (file,) = (tmp_path / "run").iterdir()
    bundle = json.loads(file.read_text())
    x, other = (
        torch.frombuffer(bytearray.fromhex(bundle[k]["float32_le"]), dtype=torch.float32).reshape(bundle[k]["shape"])
        for k in ("x", "adversarial")
    )
    row = (data.index == bundle["index"]).nonzero().item()
    assert torch.equal(x, data.pixels(slice(0, None))[row])
    assert (other.double() - x.double()).abs().max() <= 0.1
    assert [float(v).hex() for v in net(other[None])[0].tolist()] == bundle["adversarial_logits"]["hex"]
    assert not margin(net(other[None]), data.labels[row : row + 1]) > 0


def test_the_bundle_is_of_the_example_that_was_certified(tiny, tmp_path):
    """Only some of the broken examples of a batch are certified; the point kept must be one of those."""
    net, data = tiny
    chosen = judge(S.DistMethod(), net, data).arrays
    bright = torch.from_numpy(np.flatnonzero(chosen["correct"] & ~chosen["robust"])[-1:])

    def some(self, net, x, y, eps):
        mine = (x == data.pixels(bright)).flatten(1).all(1)
        return Bound(torch.where(mine, margin(net(x), y), -math.inf), "interval", "D")

    with pytest.raises(Violation, match=f"example {int(data.index[bright])} "):
        judge(altered(S.DistMethod, margin_bound=some), net, data, bundle_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    pixels = torch.frombuffer(bytearray.fromhex(json.loads(file.read_text())["x"]["float32_le"]), dtype=torch.float32)
    assert torch.equal(pixels, data.pixels(bright).flatten())


def test_a_wrong_example_with_a_positive_bound_is_not_certified():
    """Class R bounds may exceed the margin by rounding; where the margin is 0 that must not certify a tie."""

    class Tied(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 3) + 0 * x.flatten(1)[:, :1]

    data = S.random_split(5)
    method = altered(S.Uncertified, margin_bound=bound_of(lambda x: torch.full((len(x),), 5e-5)))
    assert judge(method, Tied(), data).summary["n_certified"] == 0


def test_class_r_bounds_within_rounding_are_counted_as_borderline(tiny):
    """n_borderline: certified by less than float32 rounding of the logits could undo. Wrong examples are none."""

    def barely(self, net, x, y, eps):
        return Bound(margin(net(x), y).clamp(max=5e-5), "c", "R")

    result = judge(altered(S.DistMethod, margin_bound=barely), *tiny, attacks=NO_ATTACK, eps="0.001")
    assert result.summary["n_correct"] < result.summary["n"]
    assert result.summary["n_borderline"] == result.summary["n_certified"] > 0


def test_a_broken_certificate_that_slipped_through_is_still_refused(tiny, monkeypatch):
    """The order is asserted on the arrays themselves, whatever the attacks reported."""
    monkeypatch.setattr(Cascade, "run", lambda self, *a: self.broken.__setitem__(slice(None), True))
    with pytest.raises(Violation, match="certified => robust => correct"):
        judge(S.DistMethod(), *tiny)


def test_the_first_certificate_is_the_headline(tiny):
    def two(self, net, x, y, eps):
        honest = S.DistMethod.margin_bound(self, net, x, y, eps)
        return [honest, Bound(honest.lower - 0.5, "weaker", "F32")]

    result = judge(altered(S.DistMethod, margin_bounds=two), *tiny)
    first, second = result.summary["certificates"]
    assert (first["name"], first["headline"], second["headline"]) == ("interval", True, False)
    assert second["n_certified"] < first["n_certified"] == result.summary["n_certified"]


def test_a_second_certificate_is_held_against_the_attacks_too(tiny):
    """The headline is honest; the other one claims what a point of the ball refutes."""

    def two(self, net, x, y, eps):
        return [S.DistMethod.margin_bound(self, net, x, y, eps), Bound(margin(net(x), y), "wishful", "F32")]

    with pytest.raises(Violation, match=r"class F32 certificate \(wishful"):
        judge(altered(S.DistMethod, margin_bounds=two), *tiny)


def test_a_radius_that_contradicts_the_bound_at_eps_is_noted(tiny):
    def halved(self, net, x, y):
        return 0.5 * S.DistMethod.radius(self, net, x, y)

    honest, off = judge(S.DistMethod(), *tiny), judge(altered(S.DistMethod, radius=halved), *tiny)
    said = [note for note in off.summary["notes"] if "disagreed with the bound at eps" in note]
    assert len(said) == 1 and int(said[0].split("radius of ")[1].split()[0]) > 0
    assert not any("disagreed" in note for note in honest.summary["notes"])
    assert off.summary["n_certified"] == honest.summary["n_certified"]


def test_class_r_loses_the_example_and_counts_it(tiny):
    result = judge(S.DistMethod("clean R"), *tiny)
    s, a = result.summary, result.arrays
    assert s["n_contradicted"] > 0
    assert s["n_certified"] == s["n_robust"] == s["n_correct"] - s["n_contradicted"]
    assert not a["radius"][a["correct"] & ~a["robust"]].any()
    assert record_arrays.check(s, a) is None


def test_too_small_a_ball_is_caught_on_a_canary():
    """P5: a box of 0.999 eps. The canary's only bad direction lies a thousandth beyond the certified radius."""
    caught = 0
    for seed in range(8):
        net, data = S.canary(seed)
        exact = Fraction(margin(net(data.pixels(slice(0, 1))), data.labels).item() / 2)
        eps = str((exact * (1 + Fraction(1, 2000))).limit_denominator(10**6 - 1))  # inside the gap of the cheat
        spec = S.spec((1, 3, 4), 2)
        assert judge(S.DistMethod(), net, data, eps, spec=spec).summary["n_certified"] == 0, f"seed {seed}"
        try:
            judge(S.DistMethod("radius"), net, data, eps, spec=spec)
        except Violation:
            caught += 1
    assert caught == 8


def test_a_bound_above_the_margin_is_refused_at_once(tiny):
    with pytest.raises(Violation, match="exceeds the margin"):
        judge(S.DistMethod("above"), *tiny, attacks=NO_ATTACK)


def test_a_tie_at_the_edge_of_the_ball_is_not_certified():
    """M11: x = 1/2, two centres; at x' = 3/4 both are equally far, and 1/4 is a radius that must not be certified."""
    net = S.DistNet(1, 2)
    layer = net.layers[0]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5], [1.0]]))
        layer.bias.zero_(), layer.mean.zero_()
    data = S.split([[[[2]]]], [0], levels=5)  # pixel 2/4
    spec = S.spec((1, 1, 1), 2, 5)
    edge = judge(S.DistMethod(), net, data, "1/4", spec=spec)
    assert edge.arrays["bound_interval"][0] == 0
    assert edge.summary["n_certified"] == 0
    assert judge(S.DistMethod(), net, data, "0.24", spec=spec).summary["n_certified"] == 1
    with pytest.raises(Violation):
        judge(S.DistMethod("not strict"), net, data, "1/4", spec=spec)
    searched = judge(S.DistMethod(closed=False), net, data, "1/8", spec=spec)  # whose grid holds 1/4 itself
    assert 0.249 < searched.arrays["radius"][0] < 0.25


def test_a_hidden_counterexample_is_not_certified():
    """P13: a spike in one vertex that the attack misses; a certifier must refuse whatever the attack says."""
    data = S.split(torch.full((1, 1, 3, 4), 128), [0])
    pattern = torch.tensor([1.0, -1, -1, 1] * 3)
    net = S.Spike(data.pixels(slice(0, 1)).flatten() + 0.09 * pattern)
    result = judge(S.DistMethod(surrogates=()), net, data, "0.1", AttackConfig(restarts=3), S.spec((1, 3, 4), 2))
    assert result.summary["n_robust"] == 1
    assert result.summary["n_certified"] == 0
    assert "gradient masking" in " ".join(result.summary["notes"])
    with torch.no_grad():
        there = net(data.pixels(slice(0, 1)) + 0.09 * pattern.reshape(1, 1, 3, 4))
    assert not margin(there, data.labels) > 0


# --- vices of plugins -------------------------------------------------------------------------------------------------


def altered(base, **members):
    """An instance of a subclass with some members replaced."""
    return type("Altered", (base,), members)()


def bound_of(lower, name="c", cls="R"):
    return lambda self, net, x, y, eps: Bound(lower(x), name, cls)


VICES = {
    "bounds that are NaN": bound_of(lambda x: torch.full((len(x),), math.nan)),
    "bounds that are NaN or infinite": bound_of(lambda x: torch.full((len(x),), math.inf)),
    "3 bounds for": bound_of(lambda x: torch.zeros(3)),
    "the name must be": bound_of(lambda x: torch.full((len(x),), -1.0), name="../../etc"),
}


@pytest.mark.parametrize("message", VICES)
def test_impossible_bounds_are_refused_with_the_methods_name(tiny, message):
    with pytest.raises(BenchError, match=f"method dist.*{message}"):
        judge(altered(S.DistMethod, margin_bound=VICES[message]), *tiny)


def test_images_changed_in_place_are_noticed(tiny):
    def vandal(self, net, x, y, eps):
        x.zero_()
        return Bound(torch.full((len(x),), -1.0), "c", "R")

    with pytest.raises(BenchError, match="changed the images"):
        judge(altered(S.DistMethod, margin_bound=vandal), *tiny)


def test_certificates_that_change_between_batches_are_refused(tiny):
    def moody(self, net, x, y, eps):
        return Bound(torch.full((len(x),), -math.inf), f"c{len(x)}", "R")

    with pytest.raises(BenchError, match="change from batch to batch"):
        judge(altered(S.DistMethod, margin_bound=moody), *tiny, batch_size=20)


@pytest.mark.parametrize("radius", [lambda x: torch.full((len(x),), math.nan), lambda x: -torch.ones(len(x))])
def test_impossible_radii_are_refused(tiny, radius):
    with pytest.raises(BenchError, match="radius must give"):
        judge(altered(S.DistMethod, radius=lambda self, net, x, y: radius(x)), *tiny)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: torch.zeros(len(x), 4), "logits of shape"),
        (lambda x: torch.zeros(len(x), 3).double(), "logits are torch.float64"),
        (lambda x: torch.full((len(x), 3), math.nan), "not finite"),
    ],
)
def test_impossible_logits_are_refused(tiny, forward, message):
    class Net(nn.Module):
        def forward(self, x):
            return forward(x)

    with pytest.raises(BenchError, match=message):
        judge(S.Uncertified(), Net(), tiny[1])


def test_a_method_that_turns_a_switch_loses_its_class(tiny):
    """A certificate computed after someone switched bf16 matmul on is not what its class says."""

    def hostile(self, net, x, y, eps):
        torch.set_float32_matmul_precision("medium")
        return S.DistMethod.margin_bound(self, net, x, y, eps)

    result = judge(altered(S.DistMethod, margin_bound=hostile), *tiny)
    assert result.summary["certificates"][0]["cls"] == "R"
    assert any("class lowered" in note for note in result.summary["notes"])
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_surrogate_that_turns_a_switch_costs_the_class(tiny):
    class Hostile(nn.Module):
        def forward(self, x):
            torch.backends.cudnn.benchmark = True
            return tiny[0](x)

    result = judge(altered(S.DistMethod, attack_models=lambda self, net: [("bad", Hostile())]), *tiny)
    assert result.summary["certificates"][0]["cls"] == "R"


def test_a_net_in_train_mode_is_evaluated_in_eval_mode_and_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    data = S.random_split(20)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first = judge(S.Uncertified(), net, data)
    assert net.training and all(m.training for m in net)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert np.array_equal(first.arrays["margin"], judge(S.Uncertified(), net, data).arrays["margin"])


@pytest.mark.parametrize(("share", "said"), [(0.05, False), (0.2, True)])
def test_an_attack_that_sees_no_gradients_is_named(tiny, monkeypatch, share, said):
    """P13: from a tenth of the input gradients on, the reader hears of gradient masking."""
    from bench import attack

    def against(self, net, x, y, ball, **options):
        return attack.Outcome(torch.zeros(len(x), dtype=torch.bool), x, torch.full((), share))

    monkeypatch.setattr(attack.Attack, "against", against)
    notes = judge(S.DistMethod(surrogates=()), *tiny).summary["notes"]
    assert any("gradient masking" in note for note in notes) is said


def test_flush_to_zero_is_in_the_summary(tiny, monkeypatch):
    for now, said in (("off", False), ("on", True)):
        monkeypatch.setattr("bench.exact.flush_to_zero", lambda *_, now=now: now)
        assert judge(S.DistMethod(), *tiny, attacks=NO_ATTACK).summary["ftz"] is said


@pytest.mark.parametrize(("slack", "refused"), [(5e-5, False), (5e-4, True)])
def test_class_r_may_be_off_by_a_ten_thousandth_of_the_logits_and_no_more(tiny, slack, refused):
    def above(self, net, x, y, eps):
        logits = net(x)
        return Bound(margin(logits, y) + slack * logits.abs().amax(1).clamp(min=1), "c", "R")

    method = altered(S.DistMethod, margin_bound=above)
    if refused:
        with pytest.raises(Violation, match="unsound"):
            judge(method, *tiny, attacks=NO_ATTACK)
    else:
        judge(method, *tiny, attacks=NO_ATTACK)


def test_an_empty_split_is_refused():
    with pytest.raises(BenchError, match="empty"):
        judge(S.DistMethod(), S.DistNet(6, 3), S.random_split(0))


# --- memory -----------------------------------------------------------------------------------------------------------


class Hungry(nn.Module):
    """Runs out of memory on more than 8 images, as a GPU or a CPU says it."""

    def __init__(self, net, error):
        super().__init__()
        self.net, self.error = net, error

    def forward(self, x, *args):
        if len(x) > 8:
            raise self.error
        return self.net(x, *args)

    def bounds(self, lo, hi):
        return self.net.bounds(lo, hi)


OOM = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OOM, ids=["gpu", "cpu", "numpy"])
def test_out_of_memory_halves_the_chunk_and_changes_no_bit(tiny, honest, error):
    net, data = tiny
    result = judge(S.DistMethod(), Hungry(net, error), data)
    assert all(np.array_equal(honest.arrays[k], result.arrays[k]) for k in honest.arrays)
    assert any("out of memory" in note for note in result.summary["notes"])


def test_one_image_that_does_not_fit_is_an_error():
    def work(rows):
        raise MemoryError

    with pytest.raises(MemoryError):
        Chunks(16).run(torch.arange(20), work)


def test_other_errors_are_not_taken_for_memory():
    def work(rows):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    chunks = Chunks(16)
    with pytest.raises(RuntimeError, match="mat1"):
        chunks.run(torch.arange(20), work)
    assert not chunks.halved


def test_chunks_cover_every_row_once_even_when_halved():
    seen = []

    def work(rows):
        if len(rows) > 3:
            raise MemoryError
        seen.extend(rows.tolist())

    chunks = Chunks(16)
    chunks.run(torch.arange(21), work)
    assert seen == list(range(21))
    assert (chunks.halved, chunks.size) == ([16, 8, 4], 2)
