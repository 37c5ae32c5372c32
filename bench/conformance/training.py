"""Checks 2, 3 and 4: the loss, its gradients, and that training repeats itself bit for bit."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..contract import Losses, Method, Recipe, Step
from ..errors import Interrupted
from ..state import StateStore
from ..train import seed_everything, set_lr
from .subject import SEED, Breach, Subject
from .surroundings import same_bits

STEPS = 10
_SCALES = (1.0, 0.1, 0.01)  # of the recipe's lr: a descent direction lowers the loss at one of them


def gradients(subject: Subject) -> str:
    """2: at the start, the middle and the end of its schedules the loss is a finite scalar with finite gradients."""
    recipe, (x, y) = subject.recipe, subject.pixels(subject.batch)
    per_epoch = max(1, 1000 // recipe.batch_size)
    net = subject.build()
    learnt = {id(p) for group in _optimizer(subject, net).param_groups for p in group["params"]}
    waiting = {name for name, p in net.named_parameters() if p.requires_grad and id(p) in learnt}
    if not waiting:
        raise Breach("optimizer() was given none of the net's parameters")
    last = recipe.epochs * per_epoch - 1
    for iteration in (0, last // 2, last):
        losses = _loss(subject, net, x, y, subject.step(recipe, iteration, per_epoch))
        net.zero_grad(set_to_none=True)
        losses.loss.backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is None:
                continue
            waiting.discard(name)
            if not bool(torch.isfinite(parameter.grad).all()):
                raise Breach(f"the gradient of {name} is not finite at step {iteration} of {last + 1}")
    if waiting:
        shown = ", ".join(sorted(waiting)[:3])
        raise Breach(f"no gradient reaches {shown}; use it in the loss, make it a buffer, or leave it to no optimizer")
    scalars = ", ".join(losses.scalars) or "none"
    return f"loss {float(losses.loss.detach()):.4g} at the end of the schedules; scalars: {scalars}"


def descends(subject: Subject) -> str:
    """3: ten optimiser steps on one batch lower the loss, at the recipe's lr or at a tenth or hundredth of it."""
    values: list[float] = []
    for scale in _SCALES:
        values = _ten_steps(subject, scale)
        if values[-1] < values[0]:
            slower = "" if scale == 1 else f" at {scale:g} of the recipe's lr"
            return f"{values[0]:.4g} -> {values[-1]:.4g}{slower}"
    raise Breach(
        f"loss goes from {values[0]:.6g} to {values[-1]:.6g} in {STEPS} steps, even at {scale:g} of the recipe's lr"
    )


def _ten_steps(subject: Subject, scale: float) -> list[float]:
    recipe, (x, y) = subject.recipe, subject.pixels(subject.batch)
    net = subject.build()
    optimizer = _optimizer(subject, net)
    set_lr(optimizer, 1.0)
    values = []
    for _ in range(STEPS + 1):
        step = subject.step(recipe, 0, per_epoch=max(1, 1000 // recipe.batch_size))
        set_lr(optimizer, (subject.method.lr_factor(step) or 1.0) * scale)  # a warm-up may begin at 0
        seed_everything(SEED, "ten steps")
        loss = _loss(subject, net, x, y, step).loss
        values.append(float(loss.detach()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.grad_clip:
            nn.utils.clip_grad_norm_(net.parameters(), recipe.grad_clip)
        optimizer.step()
        subject.method.after_step(net, step)
    return values


def _optimizer(subject: Subject, net: nn.Module) -> torch.optim.Optimizer:
    optimizer = subject.method.optimizer(net, subject.recipe)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Breach(f"optimizer() returns a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def _loss(subject: Subject, net: nn.Module, x: Tensor, y: Tensor, step: Step) -> Losses:
    """One call of loss() as the training loop makes it, its result looked at."""
    subject.method.schedule(net, step)
    net.train()
    given = x.clone(), y.clone()
    losses = subject.method.loss(net, *given, step)
    if not (same_bits(given[0], x) and same_bits(given[1], y)):
        raise Breach("loss() changes x or y in place")
    if not isinstance(losses, Losses) or not isinstance(losses.loss, Tensor):
        raise Breach(f"loss() returns a {type(losses).__name__}; Losses(loss, scalars) with a tensor is needed")
    if losses.loss.ndim:
        raise Breach(f"loss has shape {tuple(losses.loss.shape)}; a scalar is needed, e.g. .mean()")
    if not math.isfinite(float(losses.loss.detach())):
        raise Breach(f"loss is {float(losses.loss.detach())} at step {step.iteration}")
    if not losses.loss.requires_grad:
        raise Breach("loss has no gradient; is it computed under no_grad, or detached?")
    for key, value in losses.scalars.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise Breach(f"scalar {key} has shape {tuple(value.shape)}; one number is needed")
        if not math.isfinite(float(value)):
            raise Breach(f"scalar {key} is {float(value)} at step {step.iteration}")
    return losses


# --- bit for bit ------------------------------------------------------------------------------------------------------


def repeats(subject: Subject) -> str:
    """4: one seed gives one set of weights, another seed another, and an interruption changes no bit."""
    recipe = subject.short(epochs=2, batch_size=min(16, subject.batch))
    images = recipe.batch_size * 5 // 2  # 2 whole batches and a part of one
    first = subject.train(recipe, images)
    _same(first, subject.train(recipe, images), "a second training with the same seed")
    if _difference(first, subject.train(recipe, images, seed=1)) is None:
        raise Breach("seeds 0 and 1 give the same weights; draw them from torch's global generator, which is seeded")
    if type(subject.method).fit is not Method.fit:
        return "deterministic; fit() takes over, so it cannot be resumed"
    _same(first, _interrupted(subject, recipe, images), "a training interrupted at step 4 and resumed")
    return "same seed same bits, another seed others, resumed at step 4 the same bits"


def _interrupted(subject: Subject, recipe: Recipe, images: int) -> nn.Module:
    """Trained in two halves, the second by a new instance of the method, as in a new process."""
    polls = 0

    def at_step_four() -> bool:
        nonlocal polls
        polls += 1
        return polls > 4

    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(Path(folder), {"method": subject.name})
        try:
            subject.train(recipe, images, store=store, should_stop=at_step_four)
        except Interrupted:
            return subject.train(recipe, images, store=store, method=type(subject.method)())
    raise Breach("training did not stop when asked to")


def _same(wanted: nn.Module, got: nn.Module, what: str) -> None:
    name = _difference(wanted, got)
    if name:
        raise Breach(
            f"{what} gives another {name}; keep all state in the net, draw from torch's seeded generators only"
        )


def _difference(a: nn.Module, b: nn.Module) -> str | None:
    """Name of the first tensor that differs in a bit."""
    theirs = b.state_dict()
    for name, tensor in a.state_dict().items():
        if name not in theirs or not same_bits(tensor, theirs[name]):
            return name
    return None
