"""An evaluation that was stopped goes on: what is finished is not done again, and the result is the same."""

import runpy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import Eps, autoattack, cascade, chunks, kept
from bench.attack import AttackConfig, Outcome
from bench.errors import Interrupted
from bench.evaluate import evaluate
from bench.exact import EvalState
from bench.kept import Kept, parts_key

S = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("stand_ins.py"))))
SPEC = S.spec()
CPU = torch.device("cpu")
ATTACKS = AttackConfig(steps=4, restarts=1, surrogate_steps=3)


@dataclass
class Plain:
    crop: int = 0


class Watch:
    """Lists the phases and how far they got; stops in the one it is told, or at so many reports of an attack."""

    def __init__(self, stop_in=None, stop_at=None):
        self.phases, self.rows, self.stop_in, self.stop_at = [], {}, stop_in, stop_at

    def phase(self, name, total):
        self.phases.append(name)
        if name == self.stop_in:
            raise Interrupted("stopped")

    def update(self, done, **values):
        rows = self.rows.setdefault(self.phases[-1], [])
        rows.append(done)
        if self.phases[-1].startswith("attack") and len(rows) == self.stop_at:
            raise Interrupted("stopped")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(4)
    net = S.DistNet(6, 8, 8, 3)
    data = S.labelled_by(net, S.random_split(32))
    data.labels[::4] = (data.labels[::4] + 1) % 3
    return S.DistMethod(), net, data


def judge(case, keep, watch, attacks=ATTACKS, seed=0):
    method, net, data = case
    return evaluate(
        method, Plain(), net, data, spec=SPEC, eps=Eps("0.1"), seed=seed, attacks=attacks, progress=watch, keep=keep
    )


def plain(found):
    """Without times."""
    timeless = {**found.summary, "certificates": None, "attacks": None}
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in found.summary["attacks"]]
    return timeless, lines, [c["n_certified"] for c in found.summary["certificates"]]


def same(a, b):
    return plain(a) == plain(b) and all(np.array_equal(v, b.arrays[k]) for k, v in a.arrays.items())


def test_after_any_stop_the_rest_gives_the_same_and_nothing_is_done_twice(case, tmp_path):
    undisturbed = Watch()
    whole = judge(case, Kept(None, {}), undisturbed)
    assert len(undisturbed.phases) >= 4
    for number, phase in enumerate(undisturbed.phases):
        folder = tmp_path / str(number)
        with pytest.raises(Interrupted):
            judge(case, Kept(folder, {"net": 1}), Watch(stop_in=phase))
        rest = Watch()
        assert same(judge(case, Kept(folder, {"net": 1}), rest), whole)
        assert rest.phases == undisturbed.phases[number:]


def test_parts_of_another_net_or_of_other_settings_are_not_used(case, tmp_path):
    judge(case, Kept(tmp_path, {"net": 1}), Watch())
    other, seeded, again = Watch(), Watch(), Watch()
    judge(case, Kept(tmp_path, {"net": 2}), other)
    assert "certify" in other.phases and any(p.startswith("attack") for p in other.phases)
    judge(case, Kept(tmp_path, {"net": 2}), seeded, seed=1)
    assert "certify" not in seeded.phases and any(p.startswith("attack") for p in seeded.phases)
    judge(case, Kept(tmp_path, {"net": 2}), again, seed=1)
    assert again.phases == []


def test_parts_depend_on_net_images_radius_code_and_device(monkeypatch):
    ours = {"method": S.DistMethod(), "weights_sha256": "a", "index": torch.arange(3), "eps": "0.1", "device": CPU}
    key = parts_key(**ours)
    assert parts_key(**ours) == key
    for change in ({"weights_sha256": "b"}, {"index": torch.arange(4)}, {"eps": "0.2"}):
        assert parts_key(**{**ours, **change}) != key
    monkeypatch.setattr(kept, "device_name", lambda device: "another card")
    assert parts_key(**ours) != key
    monkeypatch.undo()
    monkeypatch.setattr(kept, "source_sha256", lambda: "changed")
    assert parts_key(**ours) != key
    monkeypatch.undo()
    monkeypatch.setattr(kept, "method_sha256", lambda method: "a plugin's, changed")
    assert parts_key(**ours) != key


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_part_is_made_again(case, tmp_path, damage):
    keep = Kept(tmp_path, {})
    whole = judge(case, keep, Watch())
    (tmp_path / "part-bounds.npz").write_bytes(damage)
    watch = Watch()
    assert same(judge(case, keep, watch), whole) and watch.phases[0] == "certify"


def test_cleared_parts_are_gone(tmp_path):
    keep = Kept(tmp_path, {})
    keep.save("one", {"a": 1}, {"x": np.arange(3)}, n=3)
    content, arrays = keep.load("one", n=3)
    assert content == {"a": 1} and arrays["x"].tolist() == [0, 1, 2]
    assert keep.load("one", n=4) is None and keep.load("two") is None
    keep.clear()
    assert keep.load("one", n=3) is None and list(tmp_path.iterdir()) == []


def test_a_class_that_an_earlier_process_lost_stays_lost():
    before, after = EvalState(), EvalState()
    before.refuse("D", "F32", reason="a switch was turned")
    after.take_over(before.as_kept())
    assert after.effective("D") == after.effective("F32") == "R" and after.downgrade == ["a switch was turned"]


def stopped_and_continued(case, folder, monkeypatch, stop_at=2):
    """The same judged twice: undisturbed, and stopped in the middle of an attack and continued; and both watchers."""
    monkeypatch.setattr(cascade, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(chunks, "CPU_ROWS", 4)
    whole = judge(case, Kept(None, {}), Watch())
    first, second = Watch(stop_at=stop_at), Watch()
    with pytest.raises(Interrupted):
        judge(case, Kept(folder, {}), first)
    return whole, judge(case, Kept(folder, {}), second), first, second


def test_an_attack_that_was_stopped_in_the_middle_goes_on_there(case, tmp_path, monkeypatch):
    whole, found, first, second = stopped_and_continued(case, tmp_path / "parts", monkeypatch)
    assert same(found, whole)
    assert second.rows[first.phases[-1]][0] == 12  # two batches of four were done before, this is the third


def test_what_was_refuted_before_a_stop_stays_refuted(case, tmp_path, monkeypatch):
    _, net, data = case
    blind = S.DistMethod("clean R"), net, data  # certified by the clean margin: attacks take examples from it
    whole, found, _, _ = stopped_and_continued(blind, tmp_path / "parts", monkeypatch)
    assert whole.summary["n_contradicted"] > 0
    assert same(found, whole)


class Warns(autoattack.Part):
    """Breaks nothing, sees no gradient, takes ten seconds of `clock` a batch and warns in the first process."""

    def against(self, net, x, y, ball, *, index, seed):
        self.clock[0] += 10.0
        if self.first:
            self.flags["square_gain"] = 1
        return Outcome(torch.zeros(len(x), dtype=torch.bool), x, torch.ones(()))


def test_warnings_seconds_and_lost_classes_of_before_a_stop_are_kept(case, tmp_path, monkeypatch):
    """All of them arise in the first process alone."""
    clock, first, check = [0.0], [True], EvalState.check

    def turned(state):
        if first[0] and clock[0]:  # in the middle of the attack
            state.refuse("D", reason="a switch was turned")
        check(state)

    def parts(classes):
        part = Warns("aa_square", classes, "stub 0")
        part.clock, part.first = clock, first[0]
        return [part]

    monkeypatch.setattr(cascade.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cascade, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(chunks, "CPU_ROWS", 4)
    monkeypatch.setattr(EvalState, "check", turned)
    monkeypatch.setattr(autoattack, "parts", parts)
    case = S.DistMethod(surrogates=()), *case[1:]
    only = AttackConfig(steps=0, surrogates=0, autoattack=True)
    with pytest.raises(Interrupted):
        judge(case, Kept(tmp_path, {}), Watch(stop_at=2), only)
    first[0] = False
    found = judge(case, Kept(tmp_path, {}), Watch(), only)
    (line,) = found.summary["attacks"]
    assert line["flags"] == {"square_gain": 1}
    assert line["seconds"] == 10.0 * -(-line["n_attacked"] // 4)  # the batches of both processes
    assert [c["cls"] for c in found.summary["certificates"]] == ["R"]
    assert any("gradients were zero" in note for note in found.summary["notes"])


def test_the_time_of_earlier_processes_counts(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(kept.time, "monotonic", lambda: now[0])
    first = Kept(tmp_path, {})
    now[0] += 5
    first.save("one", {}, {})
    now[0] += 1000  # nothing ran
    second = Kept(tmp_path, {})
    assert second.elapsed == 0
    second.load("one")
    now[0] += 2
    assert second.elapsed == 7
    second.save("two", {}, {})
    third = Kept(tmp_path, {})
    third.load("one"), third.load("two")
    assert third.elapsed == 7
