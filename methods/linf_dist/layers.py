"""Distance layers: ||x - w||_p with p growing to infinity, mean shift, and interval bounds by the very same operations.

Sources: arXiv 2102.05363 (neuron, mean shift, initialisation), arXiv 2110.06850 (identity value, schedules). At p = inf
and in eval mode every operation here is one IEEE rounding of a monotone function, so bounds computed by applying it to
the ends of an interval contain the deployed float32 value without any further slack (certificate class D).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .kernels import EXPONENTS, MatmulStats, dist, dist_matmul, interval

MOMENTUM = 0.1  # of the running means, both papers' repositories


class Normalize(nn.Module):
    """(x - mean_c) / std with ONE scalar std, so that an l_inf ball stays an l_inf ball.

    Args:
        mean: one value per channel. std: one value for all channels.

    Raises:
        ValueError: std is not a single positive number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: float) -> None:
        super().__init__()
        if not isinstance(std, (int, float)) or not std > 0:
            raise ValueError(f"std = {std!r} must be one positive number for all channels: the ball must stay a ball")
        # Buffers, not Python scalars: dividing by a scalar may become a product with its reciprocal on a GPU.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(float(std), dtype=torch.float32))
        self.scalar_std = float(std)  # for schedules: no device read per step

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> the same
        return (x - self.mean) / self.std


class MeanShift(nn.Module):
    """y - mean(y) per unit: over batch and positions in training (gradient flows), the running mean in eval mode.

    There is no scale: it would change the Lipschitz constant.
    """

    running_mean: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(units))
        self.momentum: float | None = MOMENTUM  # None: cumulative average, for re-estimation
        self.seen = 0

    def forward(self, y: Tensor) -> Tensor:  # [B, O] or [B, O, H, W]
        if not self.training:
            return y - self._shaped(self.running_mean, y)
        mean = y.mean(dim=(0, *range(2, y.ndim)))
        with torch.no_grad():
            self.seen += 1
            rate = self.momentum if self.momentum is not None else 1.0 / self.seen
            self.running_mean.lerp_(mean.detach(), rate)
        return y - self._shaped(mean, y)

    def bounds(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        shift = self._shaped(self.running_mean, lower)
        return lower - shift, upper - shift

    @staticmethod
    def _shaped(mean: Tensor, y: Tensor) -> Tensor:
        return mean.reshape(1, -1, *([1] * (y.ndim - 2)))


class Bias(nn.Module):
    """y + b, the offset of the last layer."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, y: Tensor) -> Tensor:  # [B, O]
        return y + self.bias

    def bounds(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return lower + self.bias, upper + self.bias


class DistLayer(nn.Module):
    """What distance layers share: the exponent and the choice of the arithmetic.

    p: infinity unless a schedule has set it; only p = inf in eval mode may be certified.
    matmul: format of the matrix products, "" for none. They run in training mode only, with gradients on and at the
    layer's own p; whoever names a p (surrogates of attacks) or evaluates gets direct arithmetic whatever it says.
    stats: counts the products' flagged pairs since the schedule last set it.
    """

    weight: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.p = math.inf
        self.matmul = ""
        self.stats = MatmulStats()

    def between(self, rows: Tensor, p: float | None) -> Tensor:
        """Distances of rows [B, I] to the layer's weights, [B, O]."""
        if p is not None:
            return dist(rows, self.weight, p)
        if self.matmul and self.training and torch.is_grad_enabled() and self.p in EXPONENTS:
            return dist_matmul(rows, self.weight, self.p, format=self.matmul, stats=self.stats)
        return dist(rows, self.weight, self.p)


class DistLinear(DistLayer):
    """out[b, o] = ||x[b] - w[o]||_p, then an offset: mean shift in hidden layers, a bias in the last.

    Args:
        n_in, n_out: fan-in and number of neurons.
        last: True for the last distance layer of a net without a head (bias instead of mean shift).
        identity: if > 0 and n_in <= n_out, weight [o, o mod n_in] starts at -identity and the layer copies its input
            (arXiv 2110.06850; repositories use 10). Everything else is N(0, 1).
    """

    def __init__(self, n_in: int, n_out: int, *, last: bool = False, identity: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        if identity > 0 and n_in <= n_out:
            rows = torch.arange(n_out)
            with torch.no_grad():
                self.weight[rows, rows % n_in] = -identity
        self.offset: MeanShift | Bias = Bias(n_out) if last else MeanShift(n_out)

    def distances(self, x: Tensor, p: float | None = None) -> Tensor:
        """[B, I] -> [B, O] before the offset."""
        return self.between(x, p)

    def forward(self, x: Tensor, p: float | None = None) -> Tensor:
        return self.offset(self.distances(x, p))

    def bounds(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Class D bounds of forward() at p = inf over lower <= x <= upper; float32, no slack needed."""
        return self.offset.bounds(*interval(lower, upper, self.weight))

    def count_ops(self, inputs: Tensor, output: Tensor) -> int:
        """One |x - w| counts 1."""
        return output.shape[0] * self.weight.numel()


class DistConv2d(DistLayer):
    """A distance layer on every k x k patch: [B, C, H, W] -> [B, O, H', W'], then mean shift per channel.

    Padding adds the value 0 of the layer's own input space (mean grey in the first layer), in bounds as well: it is a
    constant. The identity start puts -identity on the centre tap of input channel o mod C.
    """

    def __init__(
        self, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, padding: int = 1, identity: float = 0.0
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.weight = nn.Parameter(torch.randn(c_out, c_in * kernel * kernel))
        if identity > 0 and c_in <= c_out:
            rows = torch.arange(c_out)
            taps = kernel * kernel
            with torch.no_grad():
                self.weight[rows, (rows % c_in) * taps + taps // 2] = -identity
        self.offset = MeanShift(c_out)

    def _patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        columns = nn.functional.unfold(x, self.kernel, padding=self.padding, stride=self.stride)  # [B, C*k*k, L]
        height = (x.shape[2] + 2 * self.padding - self.kernel) // self.stride + 1
        width = columns.shape[2] // height
        return columns.transpose(1, 2).reshape(-1, columns.shape[1]), (x.shape[0], height, width)

    def _image(self, y: Tensor, shape: tuple[int, int, int]) -> Tensor:
        batch, height, width = shape
        return y.reshape(batch, height * width, -1).transpose(1, 2).reshape(batch, -1, height, width)

    def distances(self, x: Tensor, p: float | None = None) -> Tensor:
        """[B, C, H, W] -> [B, O, H', W'] before the offset."""
        patches, shape = self._patches(x)
        return self._image(self.between(patches, p), shape)

    def forward(self, x: Tensor, p: float | None = None) -> Tensor:
        return self.offset(self.distances(x, p))

    def bounds(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """As DistLinear.bounds, on patches."""
        (low, shape), (high, _) = self._patches(lower), self._patches(upper)
        d_low, d_high = interval(low, high, self.weight)
        return self.offset.bounds(self._image(d_low, shape), self._image(d_high, shape))

    def count_ops(self, inputs: Tensor, output: Tensor) -> int:
        """One |x - w| counts 1, at every position."""
        return output.numel() * self.weight.shape[1]
