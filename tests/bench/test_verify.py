"""`bench verify`: silent on an honest record, loud on every edited leaf and every false certificate."""

import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import Eps, record
from bench.attack import AttackConfig
from bench.cell import Cell
from bench.contract import Recipe
from bench.evaluate import evaluate
from bench.recipe import as_dict, content_hash
from bench.replay import inside
from bench.state import weights_sha256
from bench.verify import verify_certified, verify_full, verify_record, verify_run

HERE = Path(__file__).parent
S = SimpleNamespace(**runpy.run_path(str(HERE / "stand_ins.py")))
SYNTHETIC = SimpleNamespace(**runpy.run_path(str(HERE.parent / "synthetic_records.py")))
SHORT = AttackConfig(steps=6, surrogate_steps=6)


@dataclass
class Made:
    """A record and all it was made from."""

    record: record.Record
    method: object
    net: torch.nn.Module
    data: object
    spec: object
    payload: dict
    arrays: dict

    def again(self, folder, change_arrays=None, **changes):
        """The record with edits, written as if it were honest: every hash is right again."""
        arrays = {k: v.copy() for k, v in self.arrays.items()}
        payload = json.loads(json.dumps(self.payload))
        if change_arrays:
            change_arrays(arrays)
        payload["evaluation"].update(changes)
        return record.write(folder, payload, arrays)


def make(folder, method, net, data, spec, eps="0.1", attacks=SHORT):
    recipe = Recipe(dataset="mnist", eps=eps, preset="quick", source="ours")
    result = evaluate(method, recipe, net, data, spec=spec, eps=Eps(eps), seed=0, attacks=attacks)
    cell = Cell("dist", "mnist", eps, "quick", 0, (), "test", content_hash(recipe))
    payload = SYNTHETIC.payload({"survived_pgd": result.arrays["robust"]} | result.arrays, eps=eps)
    payload |= {
        "cell": cell.as_record(),
        "recipe": {"fields": as_dict(recipe), "source": "ours", "hash": content_hash(recipe), "modified": False},
        "evaluation": result.summary,
        "weights_sha256": weights_sha256(net),
    }
    payload["data"]["n_test"] = len(data)
    payload["environment"]["switches"] = result.switches
    return Made(record.write(folder, payload, result.arrays), method, net, data, spec, payload, result.arrays)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The mixed set of test_evaluate.py: wrong, broken, robust and certified examples."""
    torch.manual_seed(4)
    net = S.DistNet(6, 8, 8, 3)
    data = S.labelled_by(net, S.random_split(32))
    data.labels[::4] = (data.labels[::4] + 1) % 3
    return make(tmp_path_factory.mktemp("results"), S.DistMethod(), net, data, S.spec())


def failed(findings):
    return {f.check for f in findings if not f.ok}


def replay(made, rec=None, net=None, data=None, method=None, **options):
    options = {"points": 5, "attacks": SHORT} | options
    return verify_run(
        rec or made.record,
        method or made.method,
        net or made.net,
        data or made.data,
        spec=made.spec,
        recipe=SimpleNamespace(crop=0),
        **options,
    )


# --- level 0 ----------------------------------------------------------------------------------------------------------


def test_an_honest_record_passes(made):
    findings = verify_record(made.record)
    assert failed(findings) == set()
    assert {"id", "counts and order", "cascade", "interval below margin", "radius of certified"} <= {
        f.check for f in findings
    }


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for at, item in enumerate(value):
            yield from leaves(item, (*path, at))
    else:
        yield path


def edited(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "edited" if isinstance(value, str) else None


def test_every_edited_leaf_is_noticed(made):
    """P45: no field may be changed without level 0 saying so."""
    paths = list(leaves(made.record.data))
    assert len(paths) > 100
    for path in paths:
        data = json.loads(json.dumps(made.record.data))
        place = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = edited(place[path[-1]])
        if place[path[-1]] is None:
            place[path[-1]] = ["edited"]
        assert failed(verify_record(record.Record(data, made.record.path))), path


def test_changed_arrays_are_noticed(made, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(made.record.path, copy)
    raw = bytearray((copy / "arrays.npz").read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / "arrays.npz").write_bytes(bytes(raw))
    assert failed(verify_record(record.Record(made.record.data, copy))) == {"arrays"}


def lift(name, where, value):
    def change(arrays):
        arrays[name][np.flatnonzero(where(arrays))[0]] = value(arrays) if callable(value) else value

    return change


FORGED = {
    "radius of certified": lift("radius", lambda a: a["certified"], np.float32(0.05)),
    "radius of others": lift("radius", lambda a: a["correct"] & ~a["certified"], np.float32(0.2)),
    "radius range": lift("radius", lambda a: a["certified"], np.float32(1.5)),
    "interval below margin": lift("bound_interval", lambda a: ~a["correct"], 100.0),
    "certified": lift("bound_interval", lambda a: a["correct"] & ~a["certified"], lambda a: 1e-9),
    "attack counts": lift("survived_pgd", lambda a: ~a["robust"] & a["correct"] & ~a["survived_pgd"], True),
    "cascade": lift("survived_pgd_p32", lambda a: ~a["correct"], False),
}


@pytest.mark.parametrize("check", FORGED)
def test_a_forged_array_with_right_hashes_is_noticed(made, tmp_path, check):
    """Whoever recomputes the hashes still has to keep margins, bounds, radii and attacks consistent."""
    assert check in failed(verify_record(made.again(tmp_path, FORGED[check])))


def test_an_example_that_nothing_broke_and_is_not_robust_is_noticed(made, tmp_path):
    def fell(arrays):
        arrays["robust"][np.flatnonzero(arrays["robust"] & ~arrays["certified"])[0]] = False

    forged = made.again(tmp_path, fell, n_robust=made.record.n_robust - 1)
    assert failed(verify_record(forged)) == {"robust"}


@pytest.mark.parametrize(
    ("changes", "check"),
    [({"n_contradicted": 3}, "contradicted"), ({"eps_float32": 0.1}, "eps_float32"), ({"ftz": True}, "switches")],
)
def test_a_forged_summary_is_noticed(made, tmp_path, changes, check):
    if check == "switches":
        made_f32 = [c | {"cls": "F32"} for c in made.payload["evaluation"]["certificates"]]
        changes = changes | {"certificates": made_f32}
    assert check in failed(verify_record(made.again(tmp_path, **changes)))


def with_payload(made, tmp_path, change):
    payload = json.loads(json.dumps(made.payload))
    change(payload)
    return failed(verify_record(record.write(tmp_path, payload, made.arrays)))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda p: p["recipe"]["fields"].update(lr=0.5), "recipe hash"),
        (lambda p: p["cell"].update(seed=7), "cell id"),
        (lambda p: p["evaluation"]["certificates"][0].update(n_certified=1), "interval count"),
    ],
)
def test_a_forged_field_is_noticed_by_its_own_check(made, tmp_path, change, check):
    assert check in with_payload(made, tmp_path, change)


def test_a_name_that_is_private_here_is_noticed_in_a_record_of_elsewhere(made, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "interval")  # its notes and names are held against ours
    assert "private" in failed(verify_record(made.record))


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("cudnn.allow_tf32", True),
        ("autocast_cpu", True),
        ("cuda.matmul.allow_bf16_reduced_precision_reduction", True),
        ("cuda.matmul.allow_fp16_accumulation", True),
        ("mkldnn.matmul.fp32_precision", "bf16"),
        ("matmul_precision", "high"),
    ],
)
def test_a_class_d_certificate_issued_in_reduced_precision_is_noticed(made, tmp_path, switch, value):
    payload = json.loads(json.dumps(made.payload))
    if switch not in payload["environment"]["switches"]:
        pytest.skip(f"this torch has no {switch}")
    payload["environment"]["switches"][switch] = value
    assert failed(verify_record(record.write(tmp_path, payload, made.arrays))) == {"switches"}


def test_a_record_of_part_of_the_split_is_noticed(made, tmp_path):
    payload = json.loads(json.dumps(made.payload))
    payload["data"]["n_test"] = 10_000
    assert failed(verify_record(record.write(tmp_path, payload, made.arrays))) == {"examples"}


def test_level_0_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; sys.modules['torch'] = None; import bench.verify"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# --- level 1 ----------------------------------------------------------------------------------------------------------


def test_an_honest_run_replays(made):
    findings = replay(made)
    assert failed(findings) == set()
    fired = {f.check: f.checked for f in findings if f.check.endswith("own radius")}
    assert set(fired) == {f"{k} in own radius" for k in ("uniform point", "vertex", "pgd", "pgd_p8", "pgd_p32")}
    n = int((made.arrays["radius"] > 0).sum())
    assert fired["vertex in own radius"] == 5 * n


def test_a_method_without_closed_radius_replays_too(made, tmp_path):
    other = make(tmp_path, S.DistMethod(closed=False), made.net, made.data, made.spec)
    assert failed(replay(other)) == set()


def test_other_weights_are_refused(made):
    torch.manual_seed(5)
    assert failed(replay(made, net=S.DistNet(6, 8, 8, 3))) == {"weights"}


def test_other_examples_are_refused(made):
    assert failed(replay(made, data=made.data.subset(torch.arange(31, -1, -1)))) == {"split"}


def test_one_bit_of_a_class_d_bound_is_noticed(made, tmp_path):
    def nudge(arrays):
        i = np.flatnonzero(arrays["certified"])[0]
        arrays["bound_interval"][i] = np.nextafter(arrays["bound_interval"][i], 0)

    assert failed(replay(made, made.again(tmp_path, nudge))) == {"replayed bound interval"}


class Rounded(S.DistMethod):
    """The honest bounds, of a class that leaves the last bits open."""

    def margin_bound(self, net, x, y, eps):
        from bench import Bound

        return Bound(super().margin_bound(net, x, y, eps).lower, "interval", "F32")


@pytest.mark.parametrize(("off", "noticed"), [(1e-6, set()), (1e-2, {"interval"})])
def test_a_class_f32_bound_may_be_off_by_rounding_and_no_more(made, tmp_path, off, noticed):
    def lower(arrays):
        arrays["bound_interval"][arrays["certified"]] -= off

    found = make(tmp_path / "honest", Rounded(), made.net, made.data, made.spec)
    assert found.arrays["bound_interval"][found.arrays["certified"]].min() > 0.01  # the verdicts stay
    edited = found.again(tmp_path / "edited", lower)
    assert failed(replay(found, edited)) == {f"replayed bound {n}" for n in noticed}
    assert failed(full(found, edited)) == {f"recertified {n}" for n in noticed}


def test_a_searched_radius_that_the_certificate_does_not_have_is_noticed(made, tmp_path):
    def enlarge(arrays):
        arrays["radius"][np.flatnonzero(arrays["certified"])[0]] += np.float32(0.1)

    found = make(tmp_path / "honest", S.DistMethod(closed=False), made.net, made.data, made.spec)
    assert "replayed radius" in failed(replay(found, found.again(tmp_path / "edited", enlarge)))


def test_a_radius_that_the_certificate_does_not_have_is_noticed(made, tmp_path):
    def enlarge(arrays):
        i = np.flatnonzero(arrays["certified"])[0]
        arrays["radius"][i] *= np.float32(1.0001)

    assert "replayed radius" in failed(replay(made, made.again(tmp_path, enlarge)))


def test_radii_too_large_by_1e_5_are_caught_on_canaries(tmp_path):
    """P5: the planted fault. Margins, bounds and verdicts are honest, only the radius is 1.00001 times too large."""
    caught, alarms = 0, 0
    for seed in range(10):
        net, data = S.canary(seed)
        spec = S.spec((1, 3, 4), 2)
        for cheat in (None, "inflated radius"):
            found = make(tmp_path / f"{seed}{cheat}", S.DistMethod(cheat, surrogates=(8.0,)), net, data, spec, "0.01")
            flips = sum(f.bad for f in replay(found) if f.check == "pgd_p8 in own radius")
            caught += flips if cheat else 0
            alarms += 0 if cheat else flips
    assert (caught, alarms) == (10, 0)


class Touching(torch.nn.Module):
    """Equal logits at every point but the image itself: only ties, never another class."""

    def __init__(self, image):
        super().__init__()
        self.register_buffer("image", image)

    def forward(self, x):
        here = (x == self.image).flatten(1).all(1).float()
        return torch.stack([here, torch.zeros_like(here)], 1) + 0 * x.flatten(1)[:, :1]


def test_ties_count_as_flips(tmp_path):
    class Blind(S.DistMethod):
        def margin_bound(self, net, x, y, eps):
            from bench import Bound, margin

            return Bound(margin(net(x), y), "interval", "R")

        def radius(self, net, x, y):
            return torch.full((len(x),), 0.1)

        def attack_models(self, net):
            return ()

    data = S.split(torch.full((1, 1, 2, 3), 100), [0])
    net = Touching(data.pixels(slice(0, 1)))
    spec = S.spec(classes=2)
    # an evaluation that runs no attack lets the blind certificate into a record
    found = make(tmp_path, Blind(), net, data, spec, attacks=AttackConfig(steps=0, surrogates=0))
    assert found.record.n_certified == 1
    assert {"uniform point in own radius", "vertex in own radius"} <= failed(replay(found))


def test_points_inside_a_radius_are_inside_exactly():
    """Fractions: no point may be outside by an ulp, or a flip there would accuse an honest certificate."""
    from fractions import Fraction

    x = S.random_split(50).pixels(slice(0, None))
    radius = torch.rand(50) * torch.tensor([1e-7, 1e-3, 0.1, 1.0]).repeat(13)[:50]
    lower, upper = inside(x, radius)
    for i in range(50):
        for side in (lower, upper):
            for a, b in zip(x[i].flatten().tolist(), side[i].flatten().tolist(), strict=True):
                assert abs(Fraction(a) - Fraction(b)) <= Fraction(float(radius[i]))
                assert 0 <= b <= 1
    assert (upper > lower).float().mean() > 0.8  # between some neighbours no float lies


# --- level 2 ----------------------------------------------------------------------------------------------------------


def full(made, rec=None, method=None, attacks=SHORT):
    return verify_full(
        rec or made.record,
        method or made.method,
        made.net,
        made.data,
        spec=made.spec,
        recipe=SimpleNamespace(crop=0),
        attacks=attacks,
    )


def test_an_honest_run_stands_full_recertification(made):
    assert failed(full(made)) == set()


def test_one_bit_anywhere_is_noticed_at_level_2(made, tmp_path):
    def nudge(arrays):
        arrays["bound_interval"][-1] = np.nextafter(arrays["bound_interval"][-1], -np.inf)

    assert failed(full(made, made.again(tmp_path, nudge))) == {"recertified interval"}


def test_what_falls_only_now_is_counted_and_no_fault(tmp_path, made):
    weak = make(tmp_path, made.method, made.net, made.data, made.spec, attacks=AttackConfig(steps=0, surrogates=0))
    findings = full(weak)
    assert failed(findings) == set()
    fell = weak.record.n_robust - made.record.n_robust
    assert fell > 0
    assert any(f.message.startswith(f"{fell} more examples fall") for f in findings)


class Naive(S.DistMethod):
    """The published certificate as one would write it down: float32 margin / 2, no guard for rounding."""

    def margin_bound(self, net, x, y, eps):
        from bench import Bound

        return Bound(naive_margin(net, x, y) - 2 * eps.float32_up, "lipschitz", "F32")

    def radius(self, net, x, y):
        return (naive_margin(net, x, y) / 2).clamp(min=0)


def naive_margin(net, x, y):
    z = net(x)
    own = z.gather(1, y[:, None])[:, 0]
    return own - z.scatter(1, y[:, None], -np.inf).amax(1)


def test_a_planted_float32_margin_without_guard_is_caught(tmp_path):
    """Two far centres at a distance of about 100: their margin is off by rounding, and a vertex at half of it flips."""
    caught, alarms = 0, 0
    for seed in range(6):
        net, data = S.canary(seed, pixels=6)
        with torch.no_grad():
            net.layers[0].bias.fill_(100.0)
        spec = S.spec((1, 3, 2), 2)
        for method in (Naive(surrogates=()), S.DistMethod(surrogates=())):
            found = make(tmp_path / f"{seed}{method.__class__.__name__}", method, net, data, spec, "0.01")
            flips = [f for f in replay(found, points=1000) if f.check == "vertex in own radius"]
            assert flips[0].checked == 1000
            if isinstance(method, Naive):
                caught += not flips[0].ok
            else:
                alarms += not flips[0].ok
    assert caught >= 5
    assert alarms == 0


def test_a_certificate_broken_at_level_2_is_a_finding(made, tmp_path):
    blind = make(
        tmp_path, S.DistMethod("clean R"), made.net, made.data, made.spec, attacks=AttackConfig(0, surrogates=0)
    )
    findings = full(blind, method=S.DistMethod("clean"))  # class D now, so evaluation raises
    assert failed(findings) == {"certified under a new attack"}


def test_a_class_r_certificate_that_falls_at_level_2_is_a_finding_too(made, tmp_path):
    method = S.DistMethod("clean R")
    blind = make(tmp_path, method, made.net, made.data, made.spec, attacks=AttackConfig(0, surrogates=0))
    assert blind.record.n_certified > made.record.n_robust
    assert failed(full(blind, method=method)) == {"certified under a new attack"}


def certified(made, **options):
    recipe = SimpleNamespace(crop=0)
    return verify_certified(made.record, made.method, made.net, made.data, spec=made.spec, recipe=recipe, **options)


def test_autoattack_on_certified_examples_says_what_it_found(made, monkeypatch):
    from bench import autoattack

    seen = []

    class Corner:
        name, flags = "aa_square", {}

        def settings(self, seed):
            return {"name": self.name}

        def against(self, net, x, y, ball, *, index, seed):
            from bench.attack import Outcome

            seen.extend(index.tolist())
            return Outcome(torch.zeros(len(x), dtype=torch.bool), x, torch.zeros(()))

    monkeypatch.setattr(autoattack, "require", lambda: "stub 0")
    monkeypatch.setattr(autoattack, "parts", lambda classes: [Corner()])
    (finding,) = certified(made, examples=3)
    assert finding.ok and finding.checked == 3 == len(seen)
    assert set(seen) <= set(made.arrays["index"][made.arrays["certified"]].tolist())


@pytest.mark.parametrize("cls", ["D", "R"])
def test_autoattack_that_breaks_a_certified_example_is_a_finding(made, monkeypatch, tmp_path, cls):
    from bench import autoattack

    class Breaks:
        name, flags = "aa_square", {}

        def settings(self, seed):
            return {"name": self.name}

        def concluded(self, broken, n): ...

        def against(self, net, x, y, ball, *, index, seed):
            from bench.attack import Outcome

            return Outcome(torch.ones(len(x), dtype=torch.bool), x, torch.zeros(()))

    monkeypatch.setattr(autoattack, "require", lambda: "stub 0")
    monkeypatch.setattr(autoattack, "parts", lambda classes: [Breaks()])
    method = S.DistMethod("clean R") if cls == "R" else made.method
    mine = make(tmp_path, method, made.net, made.data, made.spec, attacks=AttackConfig(0, surrogates=0))
    (finding,) = certified(mine, examples=3)
    assert not finding.ok and "certifi" in finding.message


def test_autoattack_that_is_not_there_is_said_and_no_failure(made, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    (finding,) = certified(made)
    assert finding.ok and finding.checked == 0 and finding.message.startswith("not run")
