"""The ball: outward-rounded boxes for certificates, inward-rounded ones for attacks, corners and samples of both.

The threat is every float32 image x' in [0, 1]^n with |x'_i - x_i| <= eps in exact arithmetic (trust.md 1.2). Certified
boxes contain it and every point an attack could reach by rounding; attack boxes lie inside it, to the last bit.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .eps import Eps


def check_images(x: Tensor, name: str = "x") -> None:
    """Refuse anything that is not a float32 batch [B, C, H, W] of finite pixels in [0, 1].

    Raises:
        ValueError: names the argument and what is wrong.
    """
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        raise ValueError(f"{name} must be a float32 tensor, not {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; images [B, C, H, W] are needed")
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(f"{name} has values outside [0, 1] or NaN; the net takes pixels in [0, 1]")


def box(x: Tensor, eps: Eps) -> tuple[Tensor, Tensor]:
    """The outer box: float32 bounds that contain the ball around x and [0, 1]-clipped.

    Args:
        x: float32 tensor of any shape, values in [0, 1].
        eps: exact radius.

    Returns:
        lower, upper: float32, shape of x; lower <= every x' of the ball <= upper, wider than needed by at most 1 ulp.
    """
    radius = eps.float32_up
    return _down(x, -radius).clamp_(min=0.0), _up(x, radius).clamp_(max=1.0)


def box_float32(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """`box` for a float32 radius per example, [B]: what a bisection over radii uses."""
    shaped = radius.to(torch.float32).reshape(-1, *([1] * (x.ndim - 1)))
    return _down(x, -shaped).clamp_(min=0.0), _up(x, shaped).clamp_(max=1.0)


def _up(x: Tensor, shift: float | Tensor) -> Tensor:
    """Smallest float32 >= the exact x + shift: float64 sum and its residual, one step up where it fell short."""
    a, b = x.double(), torch.as_tensor(shift, dtype=torch.float64, device=x.device)
    if isinstance(shift, Tensor):
        b = shift.double()
    total = a + b
    back = total - a
    residual = (a - (total - back)) + (b - back)  # TwoSum: a + b == total + residual exactly
    single = total.float()
    short = (single.double() < total) | ((single.double() == total) & (residual > 0))
    return torch.where(short, torch.nextafter(single, torch.full_like(single, torch.inf)), single)


def _down(x: Tensor, shift: float | Tensor) -> Tensor:
    return -_up(-x, -shift)


@lru_cache(maxsize=64)
def _inner_table(eps: Eps, levels: int) -> tuple[Tensor, Tensor]:
    """Inner box ends for every pixel level: [levels] float32 lower and upper, compared as fractions."""
    from fractions import Fraction

    values = levels_table(levels)
    lower, upper = torch.empty(levels, dtype=torch.float32), torch.empty(levels, dtype=torch.float32)
    for k in range(levels):
        exact = Fraction(float(values[k]))
        high = min(Fraction(1), exact + eps.fraction)
        low = max(Fraction(0), exact - eps.fraction)
        upper[k] = _float32_at_most(high)
        lower[k] = -_float32_at_most(-low)
    return lower, upper


def _float32_at_most(value: object) -> Tensor:
    """The largest float32 <= an exact fraction."""
    from fractions import Fraction

    assert isinstance(value, Fraction)
    single = torch.tensor(float(value), dtype=torch.float32)
    if Fraction(float(single)) > value:
        single = torch.nextafter(single, torch.tensor(-torch.inf, dtype=torch.float32))
    return single


@lru_cache(maxsize=8)
def levels_table(levels: int) -> Tensor:
    """Pixel values k / (levels - 1), correctly rounded to float32, [levels].

    A table because dividing on a GPU by a Python scalar multiplies by its reciprocal, which rounds differently at 126
    of 256 levels (trust.md 1.2).
    """
    from fractions import Fraction

    return torch.tensor([float(Fraction(k, levels - 1)) for k in range(levels)], dtype=torch.float64).float()


def inner_box(x: Tensor, eps: Eps, levels: int = 256) -> tuple[Tensor, Tensor]:
    """The inner box: float32 bounds all of whose points lie inside the exact ball and [0, 1].

    Args:
        x: float32, values exactly on the `levels` grid (images of a data set).

    Raises:
        ValueError: x is off the grid.
    """
    table = levels_table(levels).to(x.device)
    index = (x * (levels - 1)).round().long().clamp_(0, levels - 1)
    if not torch.equal(table[index], x):
        raise ValueError(f"x is not on the grid of {levels} pixel levels; the inner box is tabulated on it")
    lower, upper = (t.to(x.device) for t in _inner_table(eps, levels))
    return lower[index], upper[index]


def corner(x: Tensor, eps: Eps, seed: int, levels: int = 256) -> Tensor:
    """A random vertex of the inner box of every example; same shape as x."""
    lower, upper = inner_box(x, eps, levels)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    pick = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32) < 0.5
    return torch.where(pick, lower, upper)


def sample(x: Tensor, eps: Eps, seed: int, levels: int = 256) -> Tensor:
    """A uniform point of the inner box of every example; same shape as x."""
    lower, upper = inner_box(x, eps, levels)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    part = torch.rand(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    return torch.minimum(torch.maximum(lower + part * (upper - lower), lower), upper)
