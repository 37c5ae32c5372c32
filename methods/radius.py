"""Certified radii of ReLU nets: a cheap search with ordinary float32 bounds, then a few rigorous probes around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bench import margin

from .box import run
from .interval_net import check, ibp_margin_at
from .nets import ReluNet

HALVINGS = 6  # of [0, 1], before secants take over in that search
ROUNDS = 9  # secants of the search without rounding control
LONGEST = 60  # bound calls per example at most: outward steps, then a halving every other call
SMALLEST = 1e-6  # a radius below it counts as 0: a quarter of a thousandth of a grey level
FIRST_STEP = 2e-3  # relative: rounding control seldom costs more of a radius than this
CLOSE = 1e-6  # relative width of a bracket that is narrow enough
AIM = 3e-7  # relative: how far below its estimate of the root a secant aims, so that it lands on the certified side

Probe = Callable[[Tensor], Tensor]  # radius [B] float32 -> margin bound [B] float64
Certify = Callable[[Tensor, Tensor], Tensor]  # rows [R] of a batch, a radius for each [R] float32 -> bound [R] float64


@dataclass
class _Bracket:
    """Radii [B] float32 where the bound holds and where it fails, with its values there."""

    good: Tensor
    bad: Tensor
    at_good: Tensor
    at_bad: Tensor
    held: Tensor  # bool: the last probe moved `good`
    failed: Tensor  # bool: `bad` was probed; else it is only the end of the search

    @classmethod
    def whole(cls, gap: Tensor) -> _Bracket:
        """[0, 1]; gap [B] float64 is the margin at radius 0."""
        zero = torch.zeros(gap.shape, dtype=torch.float32, device=gap.device)
        no = torch.zeros_like(gap, dtype=torch.bool)
        return cls(zero, torch.ones_like(zero), gap.clone(), torch.full_like(gap, -torch.inf), no, no)

    @property
    def known(self) -> Tensor:
        """[B] bool: both ends were probed."""
        return (self.good > 0) & self.failed

    def secant(self) -> Tensor:
        """Where a straight line between the ends crosses zero, a little below; the middle if an end is not known."""
        share = (self.at_good / (self.at_good - self.at_bad)).nan_to_num(0.5)
        share = torch.where(torch.isfinite(self.at_bad), share, torch.full_like(share, 0.5)).clamp(0.0, 1 - 1e-3)
        return ((self.good.double() + (self.bad - self.good).double() * share) * (1 - AIM)).float()

    def probe(self, certify: Probe, radius: Tensor) -> None:
        """Move an end to `radius`. One that stays twice in a row loses half its weight (Illinois)."""
        radius = torch.maximum(radius, self.good).clamp(max=1.0)
        bound, known = certify(radius), self.known
        held = bound > 0
        again = known & (held == self.held)
        self.at_good, self.at_bad = (
            torch.where(held, bound, torch.where(again, self.at_good / 2, self.at_good)),
            torch.where(held, torch.where(again, self.at_bad / 2, self.at_bad), bound),
        )
        self.good, self.bad = torch.where(held, radius, self.good), torch.where(held, self.bad, radius)
        self.held, self.failed = held, self.failed | ~held

    def narrow(self) -> Tensor:
        """[B] bool: nothing more is to be found."""
        return (self.bad - self.good <= CLOSE * self.bad) | (self.bad <= SMALLEST)

    def of(self, rows: Tensor) -> _Bracket:
        """Those of some examples."""
        return _Bracket(*(getattr(self, one.name)[rows] for one in fields(self)))


@torch.no_grad()
def certified_radius(net: ReluNet, x: Tensor, y: Tensor) -> Tensor:
    """The largest radius that rigorous interval propagation proves, to about a millionth of it; 0 where wrong.

    Returns:
        [B] float64 in pixel units.
    """
    check(net, x)
    gap = margin(net(x), y)
    good = refine(lambda rows, radius: ibp_margin_at(net, x[rows], y[rows], radius), _search(net, x, y, gap), gap)
    return torch.where(gap > 0, good.double(), torch.zeros_like(gap))


def _search(net: ReluNet, x: Tensor, y: Tensor, gap: Tensor) -> Tensor:
    """Largest radius, [B] float32, that interval bounds without rounding control still pass."""
    hide = torch.zeros(len(x), net.head.out_features, dtype=torch.bool, device=x.device).scatter_(1, y[:, None], True)

    def bound(radius: Tensor) -> Tensor:
        margins = run(net, x, radius.reshape(-1, 1, 1, 1), clean=False).margins(y)
        return margins.masked_fill(hide, torch.inf).amin(dim=1).double()

    bracket = _Bracket.whole(gap)
    for _ in range(HALVINGS):
        bracket.probe(bound, (bracket.good + bracket.bad) / 2)
    for _ in range(ROUNDS):
        bracket.probe(bound, bracket.secant())
    return bracket.good


def refine(certify: Certify, guess: Tensor, gap: Tensor) -> Tensor:
    """The largest radius, [B] float32, at which `certify` holds, to about a millionth of it; sought from `guess` [B].

    Where the bound is not monotone it is one at which it holds and just above which it fails. Steps outward grow until
    the bound holds at one end and fails at the other, then secants close in; from where three of them did not halve the
    bracket they take turns with the middle. 0 below SMALLEST. Only examples that are still open are asked for.

    Args:
        gap: [B] float64, the margin at radius 0; where it is not positive nothing is sought, and the radius is 0.
    """
    found = torch.zeros_like(guess)
    rows = (gap > 0).nonzero()[:, 0]
    bracket, guess = _Bracket.whole(gap[rows]), guess[rows].clamp(min=SMALLEST, max=1)
    width = torch.full_like(guess, FIRST_STEP)
    spans = [torch.full_like(guess, torch.inf)] * 3  # widths of the bracket before the last three probes
    hard = halved = torch.zeros_like(rows, dtype=torch.bool)
    for _ in range(LONGEST):
        if not len(rows):
            break
        below, above = bracket.good == 0, ~bracket.failed
        down = torch.minimum(bracket.bad, guess) * (1 - width.clamp(max=0.9))
        up = torch.maximum(bracket.good, guess) * (1 + width)
        span = bracket.bad - bracket.good
        hard = hard | (span > spans[0] / 2)
        halved = hard & ~halved
        least = 0.9 * CLOSE * bracket.bad  # nearer an end than this nothing is learnt
        inner = torch.where(halved, (bracket.good + bracket.bad) / 2, bracket.secant())
        inner = torch.maximum(torch.minimum(inner, bracket.bad - least), bracket.good + least)
        spans = [*spans[1:], torch.where(below | above, torch.full_like(span, torch.inf), span)]
        asked = rows
        bracket.probe(lambda radius, asked=asked: certify(asked, radius),  # type: ignore[misc]
                      torch.where(below, down, torch.where(above, up, inner)))  # fmt: skip
        missed = (bracket.good == 0) | (~bracket.failed & ~below)  # the end lies further out
        width = torch.where(missed, (width * 8).clamp(max=1.0), width)
        found[rows] = bracket.good
        left = (~bracket.narrow()).nonzero()[:, 0]
        rows, guess, width, bracket = rows[left], guess[left], width[left], bracket.of(left)
        spans, hard, halved = [before[left] for before in spans], hard[left], halved[left]
    return torch.where(found < SMALLEST, torch.zeros_like(found), found)
