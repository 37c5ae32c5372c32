"""Checks 5 and 6: is the margin bound a lower bound, is it a useful one, and does the radius say the same?

The probe can refute a certificate, not prove it: it looks at the clean point, at uniform points, at vertices and at the
iterates of descents on the margin, through the net and through the method's own surrogates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor, nn

from .. import threat
from ..certify import LONGEST, eps_at
from ..contract import Bound, margin
from ..eps import Eps
from .subject import Breach, NotApplicable, Subject
from .surroundings import same_bits

POINTS = 200  # uniform, and as many vertices, per example and radius
EXAMPLES = 8
DESCENT_STEPS = 20
PROBE_S = 12.0  # a net too slow for all points in this time gets fewer, and the outcome says so

# In units of max(1, largest |logit|). D: deployed bits. F32: deployed values are inside, for every kernel. R: the bound
# itself was computed without control of rounding; more than this is a bug, not rounding (trust.md 1.9).
SOUND = {"D": 0.0, "F32": 0.0, "R": 1e-4}
# How far below the margin a bound at eps = 0 may lie: F32 pays for every rounding in advance (trust.md 1.7).
TIGHT = {"D": 0.0, "F32": 2e-2, "R": 1e-3}
# How much a bound may move with the batch it comes in, or rise with eps.
STEADY = {"D": 0.0, "F32": 1e-5, "R": 1e-4}


def sound(subject: Subject) -> str:
    """5: below the margin at every probed point, equal to it at eps = 0, falling with eps, the same in any batch."""
    net, (x, y) = subject.net, _questions(subject)
    eps = subject.recipe.radius
    with torch.no_grad():
        logits = net(x)
    scale = max(1.0, float(logits.abs().max()))
    clean = margin(logits, y)
    at_eps = bounds(subject, x, y, eps)
    for first, second in zip(at_eps, bounds(subject, x, y, eps), strict=True):
        if not same_bits(first.lower, second.lower):
            raise Breach(f"{first.certificate} differs between two calls with the same batch; it must not be random")
    headline = subject.method.margin_bound(net, x, y, eps)
    if not same_bits(headline.lower, at_eps[0].lower) or headline.cls != at_eps[0].cls:
        raise Breach("margin_bounds() must begin with what margin_bound() gives")
    points = _affordable(net, x)
    for radius in (eps, _times(eps, Fraction(2)), _times(eps, Fraction(1, 8))):
        promised = bounds(subject, x, y, radius)
        _below(clean, promised, scale, f"at the image itself, eps {radius}")
        for what, values in _probes(subject, x, y, radius, points):
            _below(values, promised, scale, f"{what}, eps {radius}")
    _tight(clean, bounds(subject, x, y, Eps("0")), scale)
    _falling(subject, x, y, scale)
    _steady(subject, x, y, scale)
    shown = ", ".join(f"{b.certificate} ({b.cls})" for b in at_eps)
    certified = int((at_eps[0].lower > 0).sum())
    fewer = "" if points == POINTS else f"; only {points} points, the net is slow"
    return f"{shown}: no counterexample in {2 * points} points and descents per example, {certified} certified{fewer}"


def _questions(subject: Subject) -> tuple[Tensor, Tensor]:
    """Images and labels, two of them wrong: a bound must hold for any label."""
    x, y = subject.pixels(min(EXAMPLES, subject.batch))
    y[-2:] = (y[-2:] + 1) % subject.data.classes
    return x, y


@torch.no_grad()
def bounds(subject: Subject, x: Tensor, y: Tensor, eps: Eps) -> list[Bound]:
    """Every certificate, after looking at what kind of thing it is."""
    given = x.clone(), y.clone()
    found = subject.method.margin_bounds(subject.net, *given, eps)
    if not (same_bits(given[0], x) and same_bits(given[1], y)):
        raise Breach("margin_bound() changes x or y in place")
    if not isinstance(found, list) or not found or not all(isinstance(b, Bound) for b in found):
        raise Breach(f"margin_bound() gives {_kind(found)}; Bound(lower, certificate, cls) is needed")
    for bound in found:
        lower, what = bound.lower, f"the bound {bound.certificate}"
        if lower.shape != y.shape or lower.dtype != torch.float64:
            raise Breach(f"{what} is {lower.dtype} {tuple(lower.shape)}; float64 [{len(y)}], one per image, is needed")
        if lower.requires_grad:
            raise Breach(f"{what} carries a gradient; compute it under torch.no_grad() or detach it")
        if bool(torch.isnan(lower).any()) or bool((lower == torch.inf).any()):
            raise Breach(f"{what} holds NaN or infinity")
    if len({bound.certificate for bound in found}) < len(found):
        raise Breach("margin_bounds() gives two certificates of the same name")
    return found


def _kind(found: object) -> str:
    inside = found[0] if isinstance(found, list) and found else found
    return f"a {type(inside).__name__}"


def _affordable(net: nn.Module, x: Tensor) -> int:
    """Points per example and kind that fit the time."""
    with torch.no_grad():
        net(x)
        started = time.monotonic()
        net(x)
    per_example = (time.monotonic() - started) / len(x)
    return max(10, min(POINTS, int(PROBE_S / (6 * len(x) * per_example + 1e-9))))


@torch.no_grad()
def _probes(subject: Subject, x: Tensor, y: Tensor, eps: Eps, points: int) -> Iterator[tuple[str, Tensor]]:
    """(what, margins [B]): the smallest margin found by each kind of probe."""
    net, levels = subject.net, subject.data.levels
    copies = min(25, points)
    for what, draw in (("at a uniform point of the ball", threat.sample), ("at a vertex of the ball", threat.corner)):
        for seed in range(points // copies):
            z = draw(x.repeat(copies, 1, 1, 1), eps, seed, levels)
            yield what, margin(net(z), y.repeat(copies)).view(copies, -1).amin(dim=0)
    guides = [("the net", net), *subject.method.attack_models(net)]
    for name, guide in guides:
        for z in _descent(guide.eval(), x, y, eps, levels):
            yield f"on a descent through {name}", margin(net(z), y)


def _descent(guide: nn.Module, x: Tensor, y: Tensor, eps: Eps, levels: int) -> Iterator[Tensor]:
    """Iterates of sign steps on the guide's margin, inside the inner box."""
    lower, upper = threat.inner_box(x, eps, levels)
    z = x
    for t in range(DESCENT_STEPS):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(margin(guide(leaf), y).sum(), leaf)
        z = torch.minimum(torch.maximum(z - float(eps) / (1 + t / 4) * slope.nan_to_num().sign(), lower), upper)
        yield z


def _below(values: Tensor, found: list[Bound], scale: float, where: str) -> None:
    for bound in found:
        excess = bound.lower - values - SOUND[bound.cls] * scale
        worst = int(excess.argmax())
        if float(excess[worst]) > 0:
            raise Breach(
                f"unsound: {bound.certificate} (class {bound.cls}) promises a margin of "
                f"{float(bound.lower[worst]):.9g}, it is {float(values[worst]):.9g} {where} (example {worst})"
            )


def _tight(clean: Tensor, found: list[Bound], scale: float) -> None:
    for bound in found:
        gap = float((clean - bound.lower).max())
        if gap > TIGHT[bound.cls] * scale:
            raise Breach(
                f"{bound.certificate} at eps = 0 lies {gap:.3g} below the clean margin; class {bound.cls} allows "
                f"{TIGHT[bound.cls] * scale:.3g}"
            )


def _falling(subject: Subject, x: Tensor, y: Tensor, scale: float) -> None:
    eps = subject.recipe.radius
    ladder = [Eps("0"), *(_times(eps, Fraction(k, 4)) for k in (1, 2, 3, 4, 6, 8))]
    before: list[Bound] = []
    for radius in ladder:
        found = bounds(subject, x, y, radius)
        for small, large in zip(before, found, strict=False):
            rise = float((large.lower - small.lower).max())
            if rise > STEADY[large.cls] * scale:
                raise Breach(f"{large.certificate} rises by {rise:.3g} as eps grows to {radius}; it must not")
        before = found


def _steady(subject: Subject, x: Tensor, y: Tensor, scale: float) -> None:
    """The bound of an image is its own: in reverse order, and alone."""
    eps = subject.recipe.radius
    whole = bounds(subject, x, y, eps)
    back = bounds(subject, x.flip(0), y.flip(0), eps)
    alone = [bounds(subject, x[i : i + 1], y[i : i + 1], eps) for i in range(len(x))]
    for k, bound in enumerate(whole):
        for what, other in (
            ("in reverse order", back[k].lower.flip(0)),
            ("in batches of one", torch.cat([found[k].lower for found in alone])),
        ):
            moved = float((bound.lower - other).abs().nan_to_num(0.0).max())
            if moved > STEADY[bound.cls] * scale:
                raise Breach(
                    f"{bound.certificate} moves by {moved:.3g} {what}; class {bound.cls} allows "
                    f"{STEADY[bound.cls] * scale:.3g}"
                )


def _times(eps: Eps, factor: Fraction) -> Eps:
    return eps_at(min(Fraction(1), eps.fraction * factor))


# --- radius -----------------------------------------------------------------------------------------------------------


def radius_agrees(subject: Subject) -> str:
    """6: certified just inside the radius, not certified well outside it, 0 where the prediction is wrong."""
    net, (x, y) = subject.net, _questions(subject)
    with torch.no_grad():
        radius = subject.method.radius(net, x.clone(), y.clone())
        logits = net(x)
    if radius is None:
        raise NotApplicable("no closed form, the suite searches with margin_bound")
    if not isinstance(radius, Tensor) or radius.shape != y.shape or not radius.is_floating_point():
        shown = f"{radius.dtype} {tuple(radius.shape)}" if isinstance(radius, Tensor) else type(radius).__name__
        raise Breach(f"radius() gives {shown}; a float tensor [{len(y)}] is needed")
    if radius.requires_grad:
        raise Breach("radius() carries a gradient; compute it under torch.no_grad()")
    if not bool((torch.isfinite(radius) & (radius >= 0) & (radius <= 1)).all()):
        low, high = float(radius.min()), float(radius.max())
        raise Breach(f"radius() gives values from {low:.3g} to {high:.3g}; they must lie in [0, 1]")
    wrong = margin(logits, y) <= 0
    if bool((radius[wrong] > 0).any()):
        raise Breach("radius() is positive where the prediction is wrong; 0 is needed")
    scale = max(1.0, float(logits.abs().max()))
    for i in range(len(x)):
        _one_radius(subject, x[i : i + 1], y[i : i + 1], float(radius[i]), scale, f"example {i}")
    return f"{int((radius > 0).sum())} of {len(x)} radii positive, the largest {float(radius.max()):.4g}"


@torch.no_grad()
def _one_radius(subject: Subject, x: Tensor, y: Tensor, radius: float, scale: float, where: str) -> None:
    ticks = int(Fraction(radius) * LONGEST)  # of 1 / LONGEST, rounded down
    if ticks:
        inside = Eps(f"{ticks}/{LONGEST}")
        if not any(float(b.lower) > -SOUND[b.cls] * scale for b in bounds(subject, x, y, inside)):
            raise Breach(f"radius() gives {radius:.9g}, but no bound certifies at {inside} ({where})")
        for what, values in _probes(subject, x, y, inside, 25):
            if float(values) <= 0:
                raise Breach(f"unsound: within the radius {radius:.9g} the prediction flips {what} ({where})")
    outside = int(radius * 1.02 * LONGEST) + 20
    if outside < LONGEST and bool(margin(subject.net(x), y) > 0):
        beyond = Eps(f"{outside}/{LONGEST}")
        headline = subject.method.margin_bound(subject.net, x, y, beyond)
        if float(headline.lower) > TIGHT[headline.cls] * scale:
            raise Breach(f"radius() gives {radius:.9g}, but {headline.certificate} certifies at {beyond} ({where})")
