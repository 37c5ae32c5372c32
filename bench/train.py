"""The training loop, one for all methods: schedules, optimiser, checkpoints, the guard against non-finite numbers.

Every random choice is seeded by (seed, step), so a state needs no generator: continuing from a saved step repeats on a
CPU, bit for bit, what an uninterrupted run would have done. Nothing in a step waits for the device.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .contract import DataSpec, Method, Step
from .data.batches import augment, batch_order, center_crop
from .data.dataset import Split, to_pixels
from .environment import machine
from .eps import Eps
from .errors import BenchError, Interrupted, NumericalError
from .memory import peak_memory_bytes
from .optimizer_state import pack_optimizer, unpack_optimizer
from .progress import Progress
from .seeding import seed_of
from .state import State, StateStore, load_net, net_tensors
from .steps import Sums, in_training_thread, make_step, seed_everything, set_lr
from .threat import levels_table

READ_EVERY_S = 2.0  # on a GPU the running sums are read, and the bar updated, this often
NEVER = 2**62  # "no step was non-finite yet"
RESUMED_ADVICE = "the state is saved, the same command (without --fresh) continues"


def train(
    method: Method,
    recipe: Any,
    net: nn.Module,
    split: Split,
    *,
    spec: DataSpec,
    seed: int,
    eps: Eps,
    store: StateStore | None,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train `net` in place, from the newest state of `store` if it has one, and call `method.finish`.

    Subnormal numbers are flushed to zero meanwhile (at high p they make Adam up to 4 times slower). That is a property
    of threads, so the loop has a thread of its own, and with it a worker pool of its own: nothing else sees it.

    Args:
        net: as `method.build` made it, on the device of `split`.
        split: the images to train on.
        spec: the data set as the network sees it (cropped where the recipe crops).
        eps: the exact test radius, for `Step`.
        store: where states go; None keeps none.
        should_stop: polled before every step; once true, the state is saved and `Interrupted` raised.

    Returns:
        The training summary of the record: epochs, iterations, train_s, s_per_epoch, history, peak_memory_bytes,
        resumes, machines.

    Raises:
        Interrupted: stopped; the state is saved.
        NumericalError: a loss or weight became non-finite; the last good state is kept.
        StateError: the state belongs to another cell or cannot be written.
    """
    loop = Loop(method, recipe, net, split, spec, seed, eps, store, progress, should_stop)
    summary: dict[str, Any] = in_training_thread(split.images.device, loop.run)
    return summary


class Loop:
    """One training, with what must survive an interruption as attributes."""

    def __init__(
        self,
        method: Method,
        recipe: Any,
        net: nn.Module,
        split: Split,
        spec: DataSpec,
        seed: int,
        eps: Eps,
        store: StateStore | None,
        progress: Progress,
        should_stop: Callable[[], bool],
    ) -> None:
        self.method, self.recipe, self.net, self.split = method, recipe, net, split
        self.seed, self.eps, self.store, self.progress, self.should_stop = seed, eps, store, progress, should_stop
        self.device = split.images.device
        self.table = levels_table(spec.levels).to(self.device)
        self.per_epoch = math.ceil(len(split) / recipe.batch_size)
        self.iterations = recipe.epochs * self.per_epoch
        self.iteration = 0
        self.sums = Sums()  # of this epoch
        self.read_sums = Sums()  # the same, when the bar was last drawn
        self.history: list[dict[str, Any]] = []
        self.train_s = self.epoch_s = 0.0
        self.resumes = 0
        self.machines = [machine(self.device)]  # every one that trained, in order
        self.step: Step | None = None  # the last one taken by this process
        self.first_bad = torch.full((), NEVER, dtype=torch.int64, device=self.device)
        self.shown: dict[str, float] = {}  # what schedule() returned last
        self.order: tuple[int, Tensor] | None = None  # (epoch, permutation)
        self.optimizer: torch.optim.Optimizer | None = None

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        takes_over = type(self.method).fit is not Method.fit
        if not takes_over:
            self.prepare()
            self._resume()
        self.progress.phase("train", self.iterations)
        self.clock = self.read_at = time.monotonic()
        if takes_over:
            self.method.fit(_Job(self))
            self._tick()
        else:
            while self.iteration < self.iterations:
                self._between_steps()
                self.step_on(*self.batch(self.iteration))
                self._after_step()
        self._check_finite()
        if self.optimizer is not None:
            self._save()
        seed_everything(self.seed, "finish")
        self.method.finish(self.net, self.recipe, self.plain_batches)
        self._check_weights()
        self._tick()
        return self._summary()

    def prepare(self) -> None:
        """Make the optimiser."""
        self.optimizer = self.method.optimizer(self.net, self.recipe)
        set_lr(self.optimizer, 1.0)

    def _between_steps(self) -> None:
        if self.should_stop():
            self._check_finite()
            self._save()
            raise Interrupted(f"stopped after step {self.iteration} of {self.iterations}; {RESUMED_ADVICE}")
        if self.store is not None and self.store.due():
            self._check_finite()
            self._save()

    def step_on(self, x: Tensor, y: Tensor, step: Step) -> None:
        """One optimiser step on a batch: schedules, loss, gradients, update, accounting."""
        assert self.optimizer is not None
        set_lr(self.optimizer, self.method.lr_factor(step))
        self.shown = dict(self.method.schedule(self.net, step))
        self.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.method.loss(self.net, x, y, step)
        loss = losses.loss
        if loss.ndim:
            shape = tuple(loss.shape)
            raise BenchError(f"method {self.method.name}: loss() returned shape {shape}, a scalar is needed")
        loss.backward()
        if self.recipe.grad_clip:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.grad_clip, foreach=True)
        self.optimizer.step()
        self.method.after_step(self.net, step)
        self.account(step, {"loss": loss, **losses.scalars}, len(y))

    def account(self, step: Step, scalars: Mapping[str, Tensor | float], rows: int) -> None:
        """Add a step's scalars to the sums and remember the first step whose loss was not finite."""
        loss = scalars.get("loss")
        if isinstance(loss, Tensor):
            here = torch.full_like(self.first_bad, step.iteration)
            bad = torch.where(torch.isfinite(loss.detach()), self.first_bad, torch.minimum(self.first_bad, here))
            self.first_bad = bad.reshape(())
        self.sums.add(scalars, rows)
        self.step = step

    def _after_step(self) -> None:
        self.iteration += 1
        now = time.monotonic()
        if self.device.type == "cpu" or now - self.read_at >= READ_EVERY_S or self.iteration == self.iterations:
            self._read(now)
        if self.iteration % self.per_epoch == 0:
            self._end_epoch()

    def _read(self, now: float) -> None:
        """Wait for the device once: is everything finite, and what does the bar show."""
        if int(self.first_bad) != NEVER:
            self._check_finite()
        self._check_weights(buffers_only=self.device.type == "cpu")  # there a bad weight shows in the next loss
        if self.device.type == "cpu" and now - self.read_at < 0.1:
            return
        assert self.step is not None
        self.read_at = now
        means = self.sums.since(self.read_sums)
        self.read_sums = self.sums.copy()
        values: dict[str, Any] = {"epoch": f"{self.iteration / self.per_epoch:.1f}/{self.recipe.epochs}"}
        values |= {name: means[name] for name in ("loss", "acc") if name in means}
        self.progress.update(self.iteration, **values, **self.shown, eps=self.step.eps_now)

    def _end_epoch(self) -> None:
        self._check_finite()
        self._tick()
        assert self.step is not None
        means = self.sums.means()
        row: dict[str, Any] = {"epoch": self.step.epoch, **means, **self.shown, "eps": self.step.eps_now}
        if self.optimizer is not None:
            row["lr"] = float(self.optimizer.param_groups[0]["lr"])
        if "acc" in row:
            row["train_acc"] = 100.0 * row.pop("acc")
        row["s"] = self.epoch_s
        self.history.append({name: _number(value) for name, value in row.items()})
        self.sums, self.read_sums, self.epoch_s = Sums(), Sums(), 0.0

    def _tick(self) -> None:
        """Add the time since the last tick to the totals; on a GPU after everything queued is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        self.train_s += now - self.clock
        self.epoch_s += now - self.clock
        self.clock = now

    def _summary(self) -> dict[str, Any]:
        seconds = [row["s"] for row in self.history]
        return {
            "epochs": self.recipe.epochs,
            "iterations": self.iterations,
            "train_s": self.train_s,
            "s_per_epoch": statistics.median(seconds) if seconds else None,
            "history": self.history,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "resumes": self.resumes,
            "machines": self.machines,
        }

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(self, iteration: int) -> tuple[Tensor, Tensor, Step]:
        """Images [B, C, H, W] float32, labels [B] and the step; every generator is seeded for this step."""
        seed_everything(self.seed, "step", iteration)
        generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, "generator", iteration))
        epoch, place = divmod(iteration, self.per_epoch)
        rows = self._epoch_order(epoch)[place * self.recipe.batch_size : (place + 1) * self.recipe.batch_size]
        images = augment(self.split.images[rows], self.recipe, generator)
        step = make_step(
            self.recipe, self.method, iteration=iteration, per_epoch=self.per_epoch, eps=self.eps, generator=generator
        )
        return to_pixels(images, self.table), self.split.labels[rows], step

    def _epoch_order(self, epoch: int) -> Tensor:
        if self.order is None or self.order[0] != epoch:
            self.order = epoch, batch_order(len(self.split), seed=self.seed, epoch=epoch, device=self.device)
        return self.order[1]

    def plain_batches(self) -> Iterable[Tensor]:
        """The training images without augmentation, in their order, for `finish`."""
        for start in range(0, len(self.split), self.recipe.batch_size):
            images = self.split.images[start : start + self.recipe.batch_size]
            if self.recipe.crop:
                images = center_crop(images, self.recipe.crop)
            yield to_pixels(images, self.table)

    # --- states -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.store is None:
            return
        assert self.optimizer is not None
        self._tick()
        optimizer_tensors, optimizer_meta = pack_optimizer(self.optimizer)
        tensors = {f"net/{name}": value for name, value in net_tensors(self.net).items()}
        tensors |= optimizer_tensors
        tensors |= {f"sum/{name}": value for name, value in self.sums.tensors.items()}
        meta = {
            "iterations": self.iterations,
            "optimizer": optimizer_meta,
            "sums": {"rows": self.sums.rows, "floats": {k: _number(v) for k, v in self.sums.floats.items()}},
            "history": self.history,
            "train_s": self.train_s,
            "epoch_s": self.epoch_s,
            "resumes": self.resumes,
            "machines": self.machines,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
        }
        self.store.save(self.iteration, tensors, meta)
        self.clock = time.monotonic()  # writing states is no training time

    def _resume(self) -> None:
        state = self.store.load() if self.store is not None else None
        if state is None:
            return
        assert self.optimizer is not None and self.store is not None
        where = f"the state in {self.store.folder}"
        load_net(self.net, _under(state, "net/"), where)
        unpack_optimizer(self.optimizer, _under(state, "optimizer/"), state.meta["optimizer"])
        sums = state.meta["sums"]
        tensors = {name: value.to(self.device) for name, value in _under(state, "sum/").items()}
        self.sums = Sums(sums["rows"], tensors, {k: float(v) for k, v in sums["floats"].items()})
        self.read_sums = self.sums.copy()
        self.iteration = state.meta["iteration"]
        self.history = state.meta["history"]
        self.train_s, self.epoch_s = state.meta["train_s"], state.meta["epoch_s"]
        self.resumes = state.meta["resumes"] + 1
        before = state.meta.get("machines", [])
        self.machines = [*before, *(one for one in self.machines if one not in before)]
        self.progress.note(f"continuing after step {self.iteration} of {self.iterations}")
        for what, then, now in (
            ("threads", state.meta["threads"], torch.get_num_threads()),
            ("device", state.meta["device"], self.device.type),
        ):
            if then != now:
                self.progress.note(
                    f"{what} were {then} and are {now}: the result is as good, but not bit for bit the same"
                )

    # --- guards -------------------------------------------------------------------------------------------------------

    def _check_finite(self) -> None:
        """Before anything is kept: no loss so far and no weight now may be NaN or infinite."""
        bad_step = int(self.first_bad)
        if bad_step == NEVER:
            self._check_weights()
            return
        raise NumericalError(self._diagnosis(f"the loss of step {bad_step} is not finite"))

    def _check_weights(self, *, buffers_only: bool = False) -> None:
        name = _first_non_finite(self.net, buffers_only)
        if name is not None:
            raise NumericalError(self._diagnosis(f"{name} is not finite after step {self.iteration - 1}"))

    def _diagnosis(self, what: str) -> str:
        layer = next(
            (n for n, p in self.net.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()), None
        )
        where = f", first in the gradient of {layer}" if layer else ""
        schedule = "".join(f", {name} = {value:g}" for name, value in self.shown.items())
        epoch = f"epoch {self.step.epoch}" if self.step else "after the last epoch"
        eps = f", eps = {self.step.eps_now:.4g}" if self.step else ""
        kept = "the last good state is kept" if self.store is not None else "no state was kept"
        lr = f", lr = {float(self.optimizer.param_groups[0]['lr']):.3g}" if self.optimizer is not None else ""
        return (
            f"{what}{where} ({epoch}{schedule}{eps}{lr}); "
            f"{kept}; a smaller lr is the usual mend: --set lr=..."
        )


class _Job:
    """What a method that takes over its training gets (contract.Job)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.net, self.recipe, self.iterations = loop.net, loop.recipe, loop.iterations

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Step]]:
        """Every batch of the whole training, in order."""
        loop = self._loop
        for iteration in range(loop.iterations):
            if loop.should_stop():
                raise Interrupted(
                    f"stopped after step {iteration} of {loop.iterations}; method {loop.method.name} trains by itself "
                    "and cannot continue in the middle: the same command starts over"
                )
            batch = loop.batch(iteration)
            loop.step = batch[2]
            self._rows = len(batch[1])
            yield batch
            loop._after_step()

    def log(self, step: Step, scalars: Mapping[str, Tensor | float]) -> None:
        """Scalars of this step; one called "loss" is watched for NaN."""
        self._loop.account(step, scalars, self._rows)


def _under(state: State, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.tensors.items() if name.startswith(prefix)}


def _first_non_finite(net: nn.Module, buffers_only: bool = False) -> str | None:
    """The first parameter with a NaN or infinity, or buffer with a NaN (a p may be infinite); one host sync."""
    parameters = [] if buffers_only else list(net.named_parameters())
    named = [(n, p.detach().sum(dtype=torch.float64) * 0) for n, p in parameters]
    named += [(n, torch.isnan(b).any().double()) for n, b in net.named_buffers() if b.is_floating_point()]
    if not named:
        return None
    good = (torch.stack([flag.reshape(()) for _, flag in named]) == 0).tolist()  # x * 0 is NaN if x is not finite
    return next((name for (name, _), fine in zip(named, good, strict=True) if not fine), None)


def _number(value: float) -> float | str:
    """JSON has no infinity: an exponent p = inf is written "inf"."""
    value = float(value)
    return value if math.isfinite(value) else str(value)
