"""Certificates for a network that is trained already, whatever trained it: `bench certify RUN --certifier ...`.

A certifier is named; who computes it is an engine: the method's own code where it offers one (`posthoc_bound`, or a
certificate of that name; usually class F32), else auto_LiRPA (class R, float64). Every example gets exactly one
outcome, and "not certified" says why: an incomplete bound that fails, a time limit and too little memory are different
answers, and none of them is an error, which ends the run. A bound that a concrete point contradicts is `unsound`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import lirpa
from .cascade import Images, Silent, Watcher, batch
from .certification import OUTCOMES
from .chunks import Chunks, is_out_of_memory
from .contract import Bound, Method, margin
from .eps import Eps
from .errors import BenchError, UsageError
from .exact import EvalState, exact_eval
from .guards import slack_r
from .kept import Kept
from .threat import box, corner, inner_box, sample

CERTIFIERS = tuple(lirpa.METHODS)  # cheap to expensive: ibp, crown_ibp, crown, alpha_crown
ENGINES = ("auto", "own", "auto_lirpa")
ROWS = {"ibp": 250, "crown_ibp": 50, "crown": 8, "alpha_crown": 4}  # examples per call at first; halved for memory
PROBES = 10  # vertices, and as many uniform points, that every certified example is held against
SAVE_EVERY_S = 60.0  # between two savings of the outcomes so far
_KEPT = ("outcome", "lower", "seconds", "reached")
DESCENT = (2.0, 1.0, 0.5, 0.25, 0.1)  # sign steps down the margin, in radii


@dataclass(frozen=True)
class Posthoc:
    """The result: `outcome` [N] int8 into OUTCOMES, `lower` [N] float64 margin bounds (-inf where there is none),
    `seconds` [N] float32 share of its call, all in the split's order; `summary` is JSON.
    """

    outcome: np.ndarray
    lower: np.ndarray
    seconds: np.ndarray
    summary: dict[str, Any]

    def count(self, outcome: str) -> int:
        """Examples with this outcome."""
        return int((self.outcome == OUTCOMES.index(outcome)).sum())

    @property
    def certified(self) -> np.ndarray:
        """[N] bool."""
        return self.outcome == OUTCOMES.index("certified")


class _NoSuchBound(Exception):
    """The method has no bound of that name."""


@dataclass(frozen=True)
class Engine:
    """Something that bounds margins of a batch: images, labels, radius -> Bound."""

    name: str  # "own" or "auto_LiRPA 0.3"
    bound: Callable[[Tensor, Tensor], Bound]
    details: dict[str, Any] = field(default_factory=dict)


def certify_with(
    net: nn.Module,
    split: Images,
    certifier: str,
    *,
    eps: Eps,
    levels: int = 256,
    method: Method | None = None,
    recipe: Any = None,
    engine: str = "auto",
    iterations: int = 20,
    limit_s: float | None = None,
    example_limit_s: float | None = None,
    batch_size: int | None = None,
    progress: Watcher | None = None,
    keep: Kept | None = None,
) -> Posthoc:
    """Certify every example of a split with one certifier.

    Args:
        net: float32, on the device of the split. A network whose attributes `normalize` and `layers` compose to it
            keeps its normalisation outside auto_LiRPA's graph, where that fails for some weights.
        split: images (uint8 levels), labels, positions.
        certifier: one of CERTIFIERS.
        eps: exact radius. levels: of the pixel grid.
        method: what trained the net, if its own bounds may be used. recipe: gives the crop.
        engine: "auto" prefers own; "own" and "auto_lirpa" insist.
        iterations: of alpha_crown.
        limit_s: for the whole split; what is not reached is `timeout`.
        example_limit_s: for one example. Interrupted inside a call where signals work (the main thread of a process on
            Linux or macOS), otherwise judged afterwards.
        batch_size: examples per call at first.
        keep: where outcomes so far lie, so that a certification that was stopped goes on.

    Raises:
        UsageError: unknown certifier or engine, or the method has no such bound of its own.
        lirpa.LirpaUnavailable, lirpa.Unsupported: auto_LiRPA is needed and missing, or cannot bound this network.
    """
    for name, value, known in (("--certifier", certifier, CERTIFIERS), ("--engine", engine, ENGINES)):
        if value not in known:
            raise UsageError(f"{name} {value}: choose one of {', '.join(known)}")
    if len(split) == 0:
        raise BenchError("the split is empty; there is nothing to certify")
    keep = keep or Kept(None, {})
    with exact_eval(net) as state:
        job = _Job(net, split, recipe, eps, levels, progress or Silent(), state, keep)
        job.clean()
        chosen = _choose(engine, certifier, method, job, iterations)
        job.certify(chosen, certifier, batch_size or ROWS[certifier], limit_s, example_limit_s)
        job.probe()
    cls = state.effective(job.cls)
    counts = {name: int((job.outcome == code).sum()) for code, name in enumerate(OUTCOMES)}
    near = job.outcome == OUTCOMES.index("certified")
    near &= job.lower <= job.slack
    summary = {
        "certifier": certifier,
        "certificate": job.certificate,
        "cls": cls,
        "engine": chosen.name,
        "trained_with": method.name if method is not None else None,
        "eps": str(eps),
        "n": len(split),
        "counts": counts,
        "n_certified": counts["certified"],
        "n_borderline": int(near.sum()) if cls == "R" else 0,
        "limit_s": limit_s,
        "example_limit_s": example_limit_s,
        "seconds": round(keep.elapsed, 3),
        "notes": [f"certificate class lowered: {reason}" for reason in state.downgrade],
        **chosen.details,
    }
    return Posthoc(job.outcome, job.lower, job.seconds, summary)


# --- engines ----------------------------------------------------------------------------------------------------------


def _choose(engine: str, certifier: str, method: Method | None, job: _Job, iterations: int) -> Engine:
    if engine != "auto_lirpa":
        own = own_engine(job.net, method, certifier, job.eps)
        if own is not None and job.tries(own):
            return own
        if engine == "own":
            who = f"method {method.name}" if method is not None else "a network without its method"
            raise UsageError(f"--engine own: {who} has no {certifier} bound of its own; use --engine auto_lirpa")
    try:
        return lirpa_engine(job.net, certifier, job.image_shape(), job.eps, iterations)
    except lirpa.Unsupported as error:
        raise lirpa.Unsupported(
            f"{error}; --certifier ibp takes the method's own interval bound, if it has one"
        ) from None


def own_engine(net: nn.Module, method: Method | None, certifier: str, eps: Eps) -> Engine | None:
    """The method's own bound of that name, if it has one.

    A method may offer `posthoc_bound(net, x, y, eps, certifier) -> Bound | None` for certifiers that are not among its
    usual certificates; `interval` certificates count as `ibp`.
    """
    if method is None:
        return None
    offer = getattr(method, "posthoc_bound", None)
    names = {certifier, "interval"} if certifier == "ibp" else {certifier}

    def bound(x: Tensor, y: Tensor) -> Bound:
        found = offer(net, x, y, eps, certifier) if offer is not None else None
        if found is None:
            found = next((b for b in method.margin_bounds(net, x, y, eps) if b.certificate in names), None)
        if found is None:
            raise _NoSuchBound(certifier)
        return found

    return Engine("own", bound)


def lirpa_engine(net: nn.Module, certifier: str, shape: tuple[int, int, int], eps: Eps, iterations: int = 20) -> Engine:
    """auto_LiRPA's bound, per class the better of it and intervals: on an IBP-trained net CROWN can be the worse."""
    normalize, layers = _apart(net, shape)
    mode = conv_mode(layers)
    bounds = lirpa.Bounds(layers, normalize, shape, iterations=iterations, conv_mode=mode)

    def bound(x: Tensor, y: Tensor) -> Bound:
        lower, upper = box(x, eps)
        found = bounds.margins(lower, upper, y, certifier)
        if certifier != "ibp":
            found = torch.maximum(found, bounds.margins(lower, upper, y, "ibp"))
        return Bound(found.amin(dim=1), certifier, "R")

    details: dict[str, Any] = {"bound_dtype": "float64", "conv_mode": mode}
    if certifier == "alpha_crown":
        details["iterations"] = iterations
    return Engine(f"auto_LiRPA {lirpa.version()}", bound, details)


def _apart(net: nn.Module, shape: tuple[int, int, int]) -> tuple[nn.Module, nn.Module]:
    """Normalisation and the rest, where the net says so and it is true; else nothing and the whole net."""
    normalize, layers = getattr(net, "normalize", None), getattr(net, "layers", None)
    if isinstance(normalize, nn.Module) and isinstance(layers, nn.Module):
        some = next(net.parameters())
        x = torch.linspace(0, 1, 2 * shape[0] * shape[1] * shape[2], device=some.device).reshape(2, *shape)
        with contextlib.suppress(RuntimeError, TypeError):
            if torch.equal(layers(normalize(x)), net(x)):
                return normalize, layers
    return nn.Identity(), net


_PLAIN = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Flatten, nn.BatchNorm1d, nn.BatchNorm2d)


def conv_mode(layers: nn.Module) -> str:
    """ "patches", the fast one, for plain convolutional chains; "matrix" for everything else (packaging.md 2.3)."""
    parts = list(layers) if isinstance(layers, nn.Sequential) else []
    plain = bool(parts) and all(isinstance(layer, _PLAIN) for layer in parts)
    return "patches" if plain and any(isinstance(layer, nn.Conv2d) for layer in parts) else "matrix"


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """One certification in progress; arrays are [N] in the split's order."""

    net: nn.Module
    split: Images
    recipe: Any
    eps: Eps
    levels: int
    progress: Watcher
    state: EvalState
    keep: Kept
    certificate: str = ""
    cls: str = "R"

    def __post_init__(self) -> None:
        n = len(self.split)
        self.outcome = np.full(n, OUTCOMES.index("timeout"), np.int8)  # until it is reached
        self.lower = np.full(n, -np.inf)
        self.seconds = np.zeros(n, np.float32)
        self.margin = np.zeros(n)
        self.slack = np.zeros(n)  # what rounding may explain of a class R bound
        self.rows = torch.arange(n, device=self.split.labels.device)
        self.reached = np.zeros(n, bool)

    def pixels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return batch(self.split, self.recipe, rows)

    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.pixels(self.rows[:1])[0].shape[1:]
        return channels, height, width

    def clean(self) -> None:
        """Margins at the images; misclassified examples are done."""

        def work(rows: Tensor) -> None:
            x, y = self.pixels(rows)
            logits = self.net(x)
            at = rows.cpu().numpy()
            self.margin[at] = margin(logits, y).cpu().numpy()
            self.slack[at] = slack_r(logits).cpu().numpy()

        Chunks.fitting(self.rows.device).run(self.rows, work)
        if not np.isfinite(self.margin).all():
            raise BenchError("the net gives logits that are not finite; training has failed")
        self.outcome[self.margin <= 0] = OUTCOMES.index("misclassified")

    def tries(self, engine: Engine) -> bool:
        """Whether the engine has this bound, by asking for one."""
        try:
            engine.bound(*self.pixels(self.rows[:1]))
        except _NoSuchBound:
            return False
        return True

    def certify(
        self, engine: Engine, certifier: str, size: int, limit_s: float | None, example_limit_s: float | None
    ) -> None:
        """Bound every example that is classified rightly."""
        self._take_over()
        right = torch.from_numpy(np.flatnonzero((self.margin > 0) & ~self.reached)).to(self.rows.device)
        self.progress.phase(f"certify ({certifier})", int((self.margin > 0).sum()))
        now = saved_at = time.monotonic()
        until = now + limit_s - self.keep.elapsed if limit_s is not None else None

        def work(rows: Tensor) -> None:
            nonlocal saved_at
            if until is not None and time.monotonic() >= until:
                return  # stays `timeout`
            self._one_call(engine, rows, example_limit_s, until)
            self.reached[rows.cpu().numpy()] = True
            self.progress.update(
                int(self.reached.sum()), certified=int((self.outcome == OUTCOMES.index("certified")).sum())
            )
            if time.monotonic() - saved_at >= SAVE_EVERY_S:
                self._keep_so_far()
                saved_at = time.monotonic()

        Chunks(size).run(right, work)

    def _keep_so_far(self) -> None:
        self.state.check()
        content = {"certificate": self.certificate, "cls": self.cls, "state": self.state.as_kept()}
        self.keep.save("outcomes", content, {name: getattr(self, name) for name in _KEPT})

    def _take_over(self) -> None:
        """What an earlier process has reached."""
        if found := self.keep.load("outcomes"):
            content, arrays = found
            self.certificate, self.cls = content["certificate"], content["cls"]
            self.state.take_over(content["state"])
            for name in _KEPT:
                setattr(self, name, arrays[name])

    def _one_call(self, engine: Engine, rows: Tensor, per_example: float | None, until: float | None) -> None:
        """One call of the engine on `rows`; a call that runs out of its examples' time is repeated one by one."""
        limit = _least(per_example, len(rows), until)
        x, y = self.pixels(rows)
        at = rows.cpu().numpy()
        began = time.monotonic()
        try:
            with _time_limit(limit):
                found = engine.bound(x, y)
        except TimeoutError:
            self.seconds[at] += (time.monotonic() - began) / len(rows)
            for row in rows.split(1) if len(rows) > 1 else ():
                if until is None or time.monotonic() < until:
                    self._one_call(engine, row, per_example, until)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(rows) > 1:
                raise  # in a larger chunk: `Chunks` halves it and comes back
            self.outcome[at] = OUTCOMES.index("out_of_memory")
            return
        spent = time.monotonic() - began
        self.seconds[at] += spent / len(rows)
        if limit is not None and spent > limit:
            return  # no signal could stop it: judged afterwards
        self.certificate, self.cls = found.certificate, found.cls
        lower = found.lower.detach().double().cpu().numpy()
        if np.isnan(lower).any():
            raise BenchError(f"{engine.name}: {found.certificate} gives bounds that are not numbers")
        self.lower[at] = lower
        slack = self.slack[at] if found.cls == "R" else 0.0
        self.outcome[at] = np.where(lower > 0, OUTCOMES.index("certified"), OUTCOMES.index("unknown"))
        self.outcome[at[lower > self.margin[at] + slack]] = OUTCOMES.index("unsound")

    def probe(self) -> None:
        """Hold every bound against points of the ball; what one of them contradicts is unsound."""
        certified = np.flatnonzero(self.outcome == OUTCOMES.index("certified"))
        rows = torch.from_numpy(certified).to(self.rows.device)

        def work(part: Tensor) -> None:
            x, y = self.pixels(part)
            at = part.cpu().numpy()
            least = np.full(len(at), np.inf)
            for point in _points(self.net, x, y, self.eps, self.levels):
                least = np.minimum(least, margin(self.net(point), y).cpu().numpy())
            slack = self.slack[at] if self.cls == "R" else 0.0
            broken = (least <= 0) | (self.lower[at] > least + slack)
            self.outcome[at[broken]] = OUTCOMES.index("unsound")

        Chunks.fitting(self.rows.device).run(rows, work)


def _points(net: nn.Module, x: Tensor, y: Tensor, eps: Eps, levels: int) -> Iterator[Tensor]:
    """Points of the inner box: vertices, uniform ones, and a short descent on the margin."""
    for seed in range(PROBES):
        yield corner(x, eps, seed, levels)
        yield sample(x, eps, seed, levels)
    lower, upper = inner_box(x, eps, levels)
    z = x
    for size in DESCENT:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(margin(net(leaf), y).sum(), leaf)
        z = torch.minimum(torch.maximum(z - size * float(eps) * slope.sign(), lower), upper)
        yield z


def _least(per_example: float | None, count: int, until: float | None) -> float | None:
    """Seconds a call may take: its examples' own, and what is left of the whole."""
    limits = [] if per_example is None else [per_example * count]
    if until is not None:
        limits.append(max(0.01, until - time.monotonic()))
    return min(limits, default=None)


@contextlib.contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in here after that time, where the platform can; elsewhere do nothing."""
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not able:
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
