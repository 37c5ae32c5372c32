"""A method for tests, small enough that a training takes a second: a row-l1-bounded net, and knobs to misbehave."""

import os
import subprocess
import time
from dataclasses import dataclass

import torch
from torch import nn

from bench import Bound, Losses, Method, Recipe, margin, register


@dataclass(frozen=True, kw_only=True)
class TinyRecipe(Recipe):
    width: int = 16
    dropout: float = 0.2
    nan_at: int = -1  # step whose loss is NaN
    sleep_s: float = 0.0  # per step
    crash_at: int = -1  # step at which the process dies
    hang_at: int = -1  # step that never ends


@register
class Tiny(Method):
    name = "tiny"
    title = "Tiny"

    def recipes(self):
        for dataset in ("digits", "synthetic"):
            yield TinyRecipe(dataset=dataset, eps="0.1", preset="quick", source="ours", epochs=4, lr=5e-3)
        cifar = {"dataset": "cifar10", "eps": "8/255", "source": "ours", "flip": True, "crop_pad": 3}
        yield TinyRecipe(preset="paper", epochs=400, **cifar)
        yield TinyRecipe(preset="quick", epochs=1, **cifar)

    def build(self, data, recipe):
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(data.pixels, recipe.width),
            nn.BatchNorm1d(recipe.width),
            nn.ReLU(),
            nn.Dropout(recipe.dropout),
            nn.Linear(recipe.width, data.classes),
        )

    def loss(self, net, x, y, step):
        recipe = step.recipe
        if recipe.sleep_s:
            time.sleep(recipe.sleep_s)
        if step.iteration == recipe.crash_at:
            os.abort()
        if step.iteration == 0 and "TINY_ESCAPES" in os.environ:  # no killing of groups reaches it, it holds every pipe
            if (escaped := os.fork()) == 0:
                os.setsid()
                time.sleep(600)
                os._exit(0)
            print("escaped", escaped, flush=True)
        if step.iteration == 5 and "TINY_ANNOUNCES" in os.environ:
            print("at work", flush=True)
        if step.iteration == recipe.hang_at:  # and leaves a process of its own behind
            print("sleeper", subprocess.Popen(["sleep", "1000"]).pid, flush=True)
            while True:
                time.sleep(1)
        noise = torch.rand(x.shape, generator=step.generator, device=x.device) - 0.5
        logits = net((x + 2 * step.eps_now * noise).clamp(0, 1))
        loss = nn.functional.cross_entropy(logits, y)
        if step.iteration == recipe.nan_at:
            loss = loss * float("nan")
        return Losses(loss, {"acc": (logits.argmax(1) == y).float().mean()})

    def schedule(self, net, step):
        return {"p": 8.0 + step.epoch}

    def margin_bound(self, net, x, y, eps):
        z = margin(net(x), y)
        return Bound(z - 1000 * float(eps), certificate="weak", cls="R")
