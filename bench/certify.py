"""Certified radius per example: the largest eps at which a certificate still holds, found without a closed form.

Whatever is found was certified by a bound call at exactly that radius, so a radius is sound even where a bound is not
monotone in eps; only its being the largest rests on that.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from .eps import Eps

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GRID = 256  # grid points per eps; radii of the generic search are multiples of eps / GRID
REACH = 4  # ... up to REACH * eps: further than any curve is drawn
ROUNDS = (REACH * GRID).bit_length()  # of the bisection, at most
LONGEST = 999_999  # largest numerator and denominator that `Eps` takes

Holds = Callable[[np.ndarray, Eps], np.ndarray]


def grid_radii(holds: Holds, correct: np.ndarray, certified: np.ndarray, eps: Eps) -> np.ndarray:
    """Radii from a bound that takes one eps per call: bisection on the common grid k * eps / GRID, k <= REACH * GRID.

    All examples whose bracket has the same middle share a call, so ten rounds over the split are the whole cost.

    Args:
        holds: (rows [M] int64, radius) -> [M] bool, whether each of these examples is certified at this radius.
        correct, certified: [N] bool, the clean verdict and the one at eps.
        eps: the evaluation radius.

    Returns:
        [N] float64, 0 where not correct; exactly eps counts as tested.
    """
    unit = grid_unit(eps)
    top = min(REACH * GRID, int(1 / unit))
    at_eps = int(eps.fraction / unit)
    good = np.where(certified, at_eps, 0)
    bad = np.where(certified, top + 1, at_eps)
    while True:
        middle = (good + bad) // 2
        searched = correct & (middle > good)
        if not searched.any():
            break
        for k in np.unique(middle[searched]):
            rows = np.flatnonzero(searched & (middle == k))
            held = holds(rows, eps_at(int(k) * unit))
            good[rows[held]] = k
            bad[rows[~held]] = k
    values = np.array([float(eps_at(k * unit).fraction) for k in range(top + 1)])
    return values[good]  # 0 for the wrong ones, which are never searched


def grid_unit(eps: Eps) -> Fraction:
    """Distance of two grid points; at eps = 0 as for 1/255."""
    return (eps.fraction or Fraction(1, 255)) / GRID


def eps_at(value: Fraction) -> Eps:
    """The radius nearest to `value` that can be written down; usually `value` itself."""
    short = value.limit_denominator(LONGEST)
    return Eps(f"{short.numerator}/{short.denominator}")


def bisect_radius(holds: Callable[[Tensor], Tensor], n: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Radii from a bound that takes a float32 radius per example (`threat.box_float32`), for `Method.radius`.

    Bisection over the ordered bit patterns of the floats in [0, 1], 30 rounds, to the very last ulp.

    Args:
        holds: radius [n] float32 -> [n] bool; must be false wherever the clean prediction is wrong.
        n: number of examples.

    Returns:
        [n] float32, 0 where not even radius 0 is certified.
    """
    import torch

    good = torch.zeros(n, dtype=torch.int32, device=device)
    alive = holds(torch.zeros(n, device=device))
    whole = holds(torch.ones(n, device=device)) & alive
    bad = torch.full_like(good, int(np.float32(1.0).view(np.int32)))
    good = torch.where(whole, bad, good)
    for _ in range(30):  # the bit pattern of 1.0 is below 2^30
        middle = good + (bad - good) // 2
        held = holds(middle.view(torch.float32)) & alive
        good, bad = torch.where(held, middle, good), torch.where(held, bad, middle)
    return torch.where(alive, good.view(torch.float32), torch.zeros(n, device=device))


def float32_down(value: np.ndarray) -> np.ndarray:
    """The largest float32 <= each float64."""
    single = value.astype(np.float32)
    return np.where(single.astype(np.float64) > value, np.nextafter(single, np.float32(-np.inf)), single)


def eps_float32_down(eps: Eps) -> np.float32:
    """The largest float32 <= eps: what the radius of an example certified at eps is at least."""
    single = np.float32(float(eps))
    while Fraction(float(single)) > eps.fraction:
        single = np.nextafter(single, np.float32(-np.inf))
    return single


def reconcile(radius: np.ndarray, correct: np.ndarray, certified: np.ndarray, eps: Eps) -> tuple[np.ndarray, int]:
    """Make radii agree with the verdict at eps: certified at eps iff radius >= eps, as far as float32 can say it.

    Args:
        radius: [N] float64 as the method or the search gives it.

    Returns:
        float32 [N], rounded down, and the number of examples that were off by more than rounding explains (1e-6
        relative): a method whose radius and bound disagree, which the record notes.
    """
    at = eps_float32_down(eps)
    single = float32_down(np.clip(radius, 0.0, 1.0))
    below = at if Fraction(float(at)) < eps.fraction else np.nextafter(at, np.float32(-np.inf))
    too_low = certified & (single < at)
    too_high = correct & ~certified & (single > below)
    slack = 1e-6 * float(eps)
    off = (too_low & (radius < float(eps) - slack)) | (too_high & (radius > float(eps) + slack))
    single = np.where(too_low, at, np.where(too_high, max(below, np.float32(0.0)), single))
    return np.where(correct, single, np.float32(0.0)).astype(np.float32), int(off.sum())
