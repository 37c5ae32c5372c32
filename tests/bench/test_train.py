"""The training loop: seeded steps, resuming at any step, guards, what the summary says."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import Eps, Losses, registry
from bench import train as training
from bench.data import load
from bench.errors import BenchError, Interrupted, NumericalError
from bench.progress import Progress
from bench.state import StateStore, load_tensors, save_tensors, weights_sha256
from bench.train import set_lr, train

PLUGIN = Path(__file__).with_name("tiny_method.py")
EPS = Eps("0.1")


@pytest.fixture(scope="module")
def method():
    registry.add_file(PLUGIN)
    return registry.get("tiny")


@pytest.fixture(scope="module")
def data():
    return load("synthetic")


def recipe_of(method, **changes):
    return replace(registry.recipe(method, "synthetic", "0.1", "quick"), **changes)


def run(method, data, recipe, *, store=None, should_stop=lambda: False, seed=0):
    """Build and train; returns (net, summary)."""
    torch.manual_seed(seed)
    net = method.build(data.spec, recipe)
    quiet = Progress(quiet=True)
    summary = train(
        method, recipe, net, data.train_all, spec=data.spec, seed=seed, eps=EPS, store=store, progress=quiet,
        should_stop=should_stop,
    )  # fmt: skip
    return net, summary


def store_at(folder, **more):
    return StateStore(folder, {"cell": "c"}, every_s=1e9, **more)


def stop_after(steps):
    """A `should_stop` that says yes at its `steps`-th call after `steps` steps."""
    left = [steps]

    def asked():
        left[0] -= 1
        return left[0] < 0

    return asked


def strip(history):
    return [{k: v for k, v in row.items() if k != "s"} for row in history]


def test_same_seed_same_bits(method, data):
    recipe = recipe_of(method, epochs=1)
    assert weights_sha256(run(method, data, recipe)[0]) == weights_sha256(run(method, data, recipe)[0])


def test_another_seed_trains_another_net(method, data):
    recipe = recipe_of(method, epochs=1)
    assert weights_sha256(run(method, data, recipe)[0]) != weights_sha256(run(method, data, recipe, seed=1)[0])


@pytest.mark.parametrize("cuts", [[1], [4], [3, 1, 2], [0, 7]])
def test_resumed_equals_uninterrupted(method, data, tmp_path, cuts):
    """Stopped anywhere, in the middle of an epoch too: the same weights, buffers and history, bit for bit."""
    recipe = recipe_of(method, epochs=3, batch_size=64)
    whole, summary = run(method, data, recipe)
    for cut in cuts:
        with pytest.raises(Interrupted):
            run(method, data, recipe, store=store_at(tmp_path), should_stop=stop_after(cut))
        torch.rand(7)  # whatever else the process draws must not matter
    parts, resumed = run(method, data, recipe, store=store_at(tmp_path))
    assert weights_sha256(parts) == weights_sha256(whole)
    assert strip(resumed["history"]) == strip(summary["history"])
    assert resumed["resumes"] == len(cuts)


@pytest.mark.parametrize(
    "lost",
    [
        "net/1.weight",
        "net/2.running_mean",
        "net/2.num_batches_tracked",
        "optimizer/0/exp_avg",
        "optimizer/0/exp_avg_sq",
        "optimizer/0/step",
    ],
)
def test_every_part_of_the_state_matters(method, data, tmp_path, lost):
    """Zero one saved tensor: the resumed run must differ, or the resume test would prove nothing."""
    recipe = recipe_of(method, epochs=2, batch_size=64)
    whole, _ = run(method, data, recipe)
    with pytest.raises(Interrupted):
        run(method, data, recipe, store=store_at(tmp_path), should_stop=stop_after(5))
    (file,) = tmp_path.glob("state-*")
    state = load_tensors(file)
    state.tensors[lost] = torch.zeros_like(state.tensors[lost])
    save_tensors(file, state.tensors, state.meta)
    try:
        resumed = weights_sha256(run(method, data, recipe, store=store_at(tmp_path))[0])
    except NumericalError:  # Adam with a zero step count divides by zero
        return
    assert resumed != weights_sha256(whole)


def test_resume_needs_the_position(method, data, tmp_path):
    recipe = recipe_of(method, epochs=2, batch_size=64)
    whole, _ = run(method, data, recipe)
    with pytest.raises(Interrupted):
        run(method, data, recipe, store=store_at(tmp_path), should_stop=stop_after(5))
    (file,) = tmp_path.glob("state-*")
    state = load_tensors(file)
    save_tensors(file, state.tensors, {**state.meta, "iteration": 4})
    assert weights_sha256(run(method, data, recipe, store=store_at(tmp_path))[0]) != weights_sha256(whole)


def test_history_has_one_row_per_epoch(method, data):
    _, summary = run(method, data, recipe_of(method, epochs=3))
    assert [row["epoch"] for row in summary["history"]] == [0, 1, 2]
    assert {"loss", "p", "eps", "lr", "train_acc", "s"} <= set(summary["history"][0])
    assert summary["history"][2]["p"] == 10.0
    assert 0 <= summary["history"][2]["train_acc"] <= 100


def test_no_example_is_dropped(method, data):
    """batch_size that does not divide the split: the last batch is smaller, not missing."""
    seen = []

    class Counting(type(method)):
        def loss(self, net, x, y, step):
            seen.append(len(y))
            return super().loss(net, x, y, step)

    n = len(data.train_all)
    run(Counting(), data, recipe_of(method, epochs=1, batch_size=n - 10))
    assert seen == [n - 10, 10]


def test_every_image_is_trained_with_its_own_label_and_the_radius_of_its_step(method, data):
    split = data.train_all
    images = split.pixels(slice(0, None))
    label = {image.numpy().tobytes(): int(y) for image, y in zip(images, split.labels, strict=True)}
    radii = []

    class Looking(type(method)):
        def loss(self, net, x, y, step):
            assert [label[image.numpy().tobytes()] for image in x] == y.tolist()
            radii.append(step.eps_now)
            return super().loss(net, x, y, step)

    run(Looking(), data, recipe_of(method, epochs=2, batch_size=64, eps_ramp=(0.0, 2.0)))
    steps = len(radii)
    assert radii == pytest.approx([0.1 * i / steps for i in range(steps)])  # by steps, not by epochs
    assert len(label) > 100


@pytest.mark.parametrize("step", [0, 2])
def test_nothing_is_trained_after_a_nan(method, data, step):
    """Within one step, not at the end of the epoch."""
    seen = []

    class Watched(type(method)):
        def loss(self, net, x, y, step):
            seen.append(step.iteration)
            return super().loss(net, x, y, step)

    with pytest.raises(NumericalError):
        run(Watched(), data, recipe_of(method, batch_size=32, nan_at=step))
    assert seen == list(range(step + 1))


@pytest.mark.parametrize("where", ["1.weight", "2.running_mean"])
def test_a_nan_weight_or_buffer_stops_within_one_step_and_is_named(method, data, where):
    """Batch norm's running mean is in no training loss: only looking at it finds it."""
    seen = []

    class Poisoned(type(method)):
        def after_step(self, net, step):
            seen.append(step.iteration)
            if step.iteration == 2:
                with torch.no_grad():
                    net.state_dict()[where].view(-1)[0] = math.nan

    with pytest.raises(NumericalError) as caught:
        run(Poisoned(), data, recipe_of(method, batch_size=32))
    assert max(seen) <= 3
    assert where in str(caught.value) or "loss of step 3" in str(caught.value)


@pytest.mark.parametrize("step", [0, 5])
def test_a_nan_loss_stops_at_its_step_and_names_it(method, data, tmp_path, step):
    recipe = recipe_of(method, batch_size=64, nan_at=step)
    with pytest.raises(NumericalError, match=rf"loss of step {step} is not finite.*p = 8.*eps = 0\.1"):
        run(method, data, recipe, store=store_at(tmp_path))


def test_after_a_nan_the_last_good_state_is_kept(method, data, tmp_path):
    store = StateStore(tmp_path, {"cell": "c"}, every_s=0.0)
    store.save_share = 0.0
    with pytest.raises(NumericalError):
        run(method, data, recipe_of(method, batch_size=64, nan_at=6), store=store)
    state = store.load()
    assert state is not None
    assert state.meta["iteration"] <= 6
    assert all(torch.isfinite(t).all() for t in state.tensors.values())


def test_a_nan_gradient_is_found_although_the_loss_is_finite(method, data):
    class Poisoned(type(method)):
        def after_step(self, net, step):
            if step.iteration == step.iterations - 1:
                with torch.no_grad():
                    net[1].weight[0, 0] = math.nan

    with pytest.raises(NumericalError, match=r"1\.weight is not finite"):
        run(Poisoned(), data, recipe_of(method, epochs=1))


def test_training_flushes_denormals_and_nothing_else_does(method, data):
    """Evaluation must see IEEE float32 in every thread, also after a training in the same process."""
    tiny = torch.full((1 << 18,), 1e-40)
    inside = []

    class Probe(type(method)):
        def after_step(self, net, step):
            inside.append(int((tiny * 1 != 0).sum()))

    run(Probe(), data, recipe_of(method, epochs=1))
    assert set(inside) == {0}
    assert int((tiny * 1 != 0).sum()) == len(tiny)


def test_lr_follows_the_schedule_in_every_group():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b], "lr": 0.25}], lr=1.0)
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.05, 0.025])


def test_the_loop_sets_the_lr_the_methods_schedule_says(method, data):
    seen = []

    class Halving(type(method)):
        def lr_factor(self, step):
            return 0.5**step.iteration

        def after_step(self, net, step):
            seen.append(self.made.param_groups[0]["lr"])

        def optimizer(self, net, recipe):
            self.made = torch.optim.SGD(net.parameters(), lr=recipe.lr)
            return self.made

    run(Halving(), data, recipe_of(method, epochs=1, batch_size=64, lr=0.01))
    assert len(seen) > 3 and seen == pytest.approx([0.01 * 0.5**i for i in range(len(seen))])


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradients_are_clipped_where_the_recipe_says_so(method, data, clip):
    norms = []

    class Looking(type(method)):
        def after_step(self, net, step):
            norms.append(float(torch.stack([p.grad.norm() for p in net.parameters()]).norm()))

    run(Looking(), data, recipe_of(method, epochs=1, grad_clip=clip))
    assert (max(norms) <= clip * 1.001) == bool(clip)


def test_training_images_are_augmented_and_cropped_and_those_of_finish_only_cropped(method, data):
    seen, last = [], []

    class Looking(type(method)):
        def loss(self, net, x, y, step):
            seen.append(x.clone())
            return super().loss(net, x, y, step)

        def finish(self, net, recipe, batches):
            last.extend(batches())

    plain = data.train_all.pixels(slice(None))
    run(Looking(), data, recipe_of(method, epochs=1, flip=True, batch_size=len(plain)))
    known = {image.numpy().tobytes() for image in plain}
    mirrored = {image.numpy().tobytes() for image in plain.flip(-1)} - known
    got = [image.numpy().tobytes() for image in seen[0]]
    assert 0.3 < sum(one in mirrored for one in got) / len(got) < 0.7 and set(got) <= known | mirrored
    assert torch.equal(torch.cat(last), plain)


def test_the_net_is_in_training_mode_at_every_step(method, data):
    modes = []

    class Looking(type(method)):
        def loss(self, net, x, y, step):
            modes.append(net.training)
            found = super().loss(net, x, y, step)
            net.eval()  # a method that looks at its net in between
            return found

    run(Looking(), data, recipe_of(method, epochs=1, batch_size=64))
    assert len(modes) > 3 and all(modes)


def test_a_resumed_run_counts_the_seconds_of_both_parts_and_none_of_the_saving(method, data, tmp_path, monkeypatch):
    """A step takes 1 s, a save 100 s on this clock, whatever runs beside."""
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    real = StateStore.save

    def slow(self, *args):
        real(self, *args)
        now[0] += 100

    monkeypatch.setattr(StateStore, "save", slow)

    class Ticking(type(method)):
        def after_step(self, net, step):
            now[0] += 1

    recipe = recipe_of(method, epochs=2)
    with pytest.raises(Interrupted):
        run(Ticking(), data, recipe, store=store_at(tmp_path), should_stop=stop_after(3))
    _, summary = run(Ticking(), data, recipe, store=store_at(tmp_path))
    assert summary["train_s"] == summary["iterations"]
    assert [row["s"] for row in summary["history"]] == [summary["iterations"] / 2] * 2
    assert summary["resumes"] == 1


def test_seconds_per_epoch_are_those_of_the_median_epoch(method, data, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])

    class Ticking(type(method)):
        def after_step(self, net, step):
            now[0] += 100 if step.epoch == 1 else 1  # something else ran in the second epoch

    _, summary = run(Ticking(), data, recipe_of(method, epochs=3))
    per_epoch = summary["iterations"] / 3
    assert summary["s_per_epoch"] == per_epoch and summary["train_s"] == 102 * per_epoch


def test_fit_takes_over(method, data):
    class Own(type(method)):
        def fit(self, job):
            for x, y, step in job.batches():
                job.log(step, {"loss": nn.functional.cross_entropy(job.net(x), y)})

    _, summary = run(Own(), data, recipe_of(method, epochs=2))
    assert [row["epoch"] for row in summary["history"]] == [0, 1]
    assert "loss" in summary["history"][0]


def test_finish_sees_plain_images_in_order(method, data):
    seen = []

    class Finishing(type(method)):
        def finish(self, net, recipe, batches):
            seen.extend(x.sum().item() for x in batches())

    run(Finishing(), data, recipe_of(method, epochs=1, batch_size=100, flip=True))
    assert sum(seen) == pytest.approx(data.train_all.pixels(slice(None)).sum().item(), rel=1e-5)


def test_finish_sees_the_middle_of_the_images_where_the_recipe_crops(method, data):
    seen = []

    class Finishing(type(method)):
        def loss(self, net, x, y, step):
            assert x.shape[-1] == 4
            return super().loss(net, x, y, step)

        def finish(self, net, recipe, batches):
            seen.extend(batches())

    recipe = recipe_of(method, epochs=1, crop=4)
    net = method.build(data.spec.cropped(4), recipe)
    options = {"spec": data.spec.cropped(4), "seed": 0, "eps": EPS, "store": None, "progress": Progress(quiet=True)}
    train(Finishing(), recipe, net, data.train_all, **options)
    whole = data.train_all.pixels(slice(None))
    edge = (whole.shape[-1] - 4) // 2
    assert torch.equal(torch.cat(seen), whole[..., edge : edge + 4, edge : edge + 4])


def test_a_finish_that_spoils_the_weights_says_so_each_time(method, data, tmp_path):
    """The second time nothing is left to train: no step has been taken."""

    class Spoiling(type(method)):
        def finish(self, net, recipe, batches):
            next(net.parameters()).data.fill_(float("inf"))

    for _ in range(2):
        with pytest.raises(NumericalError, match="is not finite after step"):
            run(Spoiling(), data, recipe_of(method, epochs=1), store=StateStore(tmp_path, {}))


def test_a_loss_that_is_no_scalar_is_refused(method, data):
    class Vector(type(method)):
        def loss(self, net, x, y, step):
            return Losses(nn.functional.cross_entropy(net(x), y, reduction="none"))

    with pytest.raises(BenchError, match="scalar"):
        run(Vector(), data, recipe_of(method, epochs=1))
