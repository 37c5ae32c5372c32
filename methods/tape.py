"""What a pass of bounds leaves behind, layer by layer, so that a linear function of the output can be pulled back.

Two passes write such a tape: `methods.box` (training, in the graph of autograd, rounding ignored) and
`methods.interval_net` (certification, float64, every `loss` filled in). `methods.crown` reads it backwards.

Every entry stands for one layer z = layer(h) and answers `back(rows)`: given rows [B, S, *shape of z] of linear
functions rows . z, the rows [B, S, *shape of h] and a constant [B, S] such that, for every h in the layer's box and in
real arithmetic, rows . z >= back . h + constant. With `loss` [B, *shape of z], |rows| . loss must be taken off for the
float32 rounding of the deployed layer and the float64 rounding of `back` itself (trust.md 1.7); None: not controlled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .interval import U64

Pulled = tuple[Tensor, Tensor]  # rows [B, S, *shape], constant [B, S]


def contract(rows: Tensor, vector: Tensor) -> Tensor:
    """sum over everything after S of rows [B, S, *shape] times vector [B, *shape] or [*shape]: [B, S]."""
    flat = rows.flatten(2)
    if vector.ndim == rows.ndim - 1:
        return torch.bmm(flat, vector.flatten(1).unsqueeze(2)).squeeze(2)
    return flat @ vector.flatten()


@dataclass(frozen=True)
class Dense:
    """z = W h + b; weight [O, I], bias [O]."""

    weight: Tensor
    bias: Tensor
    loss: Tensor | None = None

    def back(self, rows: Tensor) -> Pulled:
        return rows @ self.weight, rows @ self.bias


@dataclass(frozen=True)
class Conv:
    """z = conv(h, W) + b; in_shape (C, H, W) of h."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    in_shape: torch.Size
    loss: Tensor | None = None

    def back(self, rows: Tensor) -> Pulled:
        batch, count = rows.shape[:2]
        constant = torch.einsum("bschw,c->bs", rows, self.bias)
        extra = [
            size - ((out - 1) * stride - 2 * pad + kernel)
            for size, out, stride, pad, kernel in zip(
                self.in_shape[1:], rows.shape[3:], self.stride, self.padding, self.weight.shape[2:], strict=True
            )
        ]
        pulled = functional.conv_transpose2d(
            rows.flatten(0, 1), self.weight, None, self.stride, self.padding, extra, self.groups
        )
        return pulled.reshape(batch, count, *self.in_shape), constant


@dataclass(frozen=True)
class Scale:
    """z = scale * h + shift per channel; scale and shift [C, 1, 1] or [O]: batch norm on its own, normalisation."""

    scale: Tensor
    shift: Tensor
    loss: Tensor | None = None

    def back(self, rows: Tensor) -> Pulled:
        return rows * self.scale, contract(rows, self.shift.expand(rows.shape[2:]))


class _Relu:
    """z = max(h, 0) over a box of h: the chord from above, from below 0 or h, whichever lies closer.

    Source of the lines: CROWN, arXiv 1811.00866 ("adaptive" lower slope).
    """

    loss: Tensor | None

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end of h, [B, *shape]."""
        raise NotImplementedError

    def lines(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lower slope, upper slope, upper intercept, [B, *shape]; exact for units that are never or always active."""
        lower, upper = self.bounds()
        low, high = lower.clamp(max=0), upper.clamp(min=0)
        chord = high / (high - low).clamp(min=1e-8)
        below = (chord > 0.5).to(chord.dtype)
        if self.loss is None:
            return below, chord, -low * chord
        # A rounded chord is no chord: lift it until it lies above both ends, then it lies above all between.
        return below, chord, torch.maximum(-low * chord, high - high * chord) + 4 * U64 * (high - low)

    def back(self, rows: Tensor) -> Pulled:
        below, chord, intercept = self.lines()
        falling = rows.clamp(max=0)
        return rows.clamp(min=0) * below.unsqueeze(1) + falling * chord.unsqueeze(1), contract(falling, intercept)


@dataclass(frozen=True)
class Relu(_Relu):
    """A ReLU whose ends are known exactly (certification)."""

    lower: Tensor
    upper: Tensor
    loss: Tensor | None = None

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.lower, self.upper


@dataclass(frozen=True)
class BoxRelu(_Relu):
    """A ReLU on a centre-and-reach box (training); the ends are made only where somebody asks."""

    centre: Tensor
    reach: Tensor
    loss: None = None

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.centre - self.reach, self.centre + self.reach


@dataclass(frozen=True)
class Flatten:
    """z = h as a vector."""

    in_shape: torch.Size
    loss: None = None

    def back(self, rows: Tensor) -> Pulled:
        return rows.reshape(*rows.shape[:2], *self.in_shape), rows.new_zeros(rows.shape[:2])


@dataclass(frozen=True)
class Pool:
    """z = the average over kernel x kernel blocks that do not overlap; rows and columns left over do not count."""

    kernel: int
    in_shape: torch.Size
    loss: Tensor | None = None

    def back(self, rows: Tensor) -> Pulled:
        spread = rows.repeat_interleave(self.kernel, 3).repeat_interleave(self.kernel, 4) / self.kernel**2
        rest = [size - got for size, got in zip(self.in_shape[1:], spread.shape[3:], strict=True)]
        return functional.pad(spread, (0, rest[1], 0, rest[0])), rows.new_zeros(rows.shape[:2])


@dataclass(frozen=True)
class Sum:
    """z = main(h) + skip(h). size: the largest |h|, where rounding is controlled."""

    main: Tape
    skip: Tape
    size: Tensor | None = None
    loss: Tensor | None = None

    def back(self, rows: Tensor) -> Pulled:
        return _join(pull(self.main, rows), pull(self.skip, rows), self.size)


@dataclass(frozen=True)
class Beside:
    """z = channels of branch(h), then those of h. channels: of the branch. size: as in Sum."""

    branch: Tape
    channels: int
    size: Tensor | None = None
    loss: None = None

    def back(self, rows: Tensor) -> Pulled:
        kept = rows[:, :, self.channels :]
        made = pull(self.branch, rows[:, :, : self.channels])
        return _join(made, (kept, rows.new_zeros(rows.shape[:2])), self.size)


Entry = Dense | Conv | Scale | Relu | BoxRelu | Flatten | Pool | Sum | Beside
Tape = Sequence[Entry]


def pull(tape: Tape, rows: Tensor) -> Pulled:
    """Rows of linear functions of the tape's output, pulled back to its input, and the constants gathered."""
    constant = rows.new_zeros(rows.shape[:2])
    for entry in reversed(tape):
        careful = entry.loss is not None or getattr(entry, "size", None) is not None
        if entry.loss is not None:
            constant = add_down(constant, -contract(rows.abs(), entry.loss) * (1 + 1e-9), careful)
        rows, more = entry.back(rows)
        constant = add_down(constant, more, careful)
    return rows, constant


def add_down(a: Tensor, b: Tensor, careful: bool) -> Tensor:
    """a + b; `careful`: not above the exact sum."""
    return a + b - 4 * U64 * (a.abs() + b.abs()) if careful else a + b


def _join(a: Pulled, b: Pulled, size: Tensor | None) -> Pulled:
    """Two branches pulled back to where they part; adding their rows rounds, which `size` pays for."""
    rows, constant = a[0] + b[0], add_down(a[1], b[1], size is not None)
    if size is not None:
        constant = add_down(constant, -contract(rows.abs(), size) * (4 * U64), True)
    return rows, constant
