"""Interval bounds for training: boxes as centre and reach, carried through a `ReluNet` beside the clean batch.

Interval arithmetic after arXiv 1810.12715; batch norm uses the statistics of the clean batch in all three streams and
lets gradients flow into them (arXiv 2103.17268). Rounded to nearest, so these bounds train and certify nothing;
`methods.interval_net` certifies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import box_ops
from . import tape as tapes
from .nets import Concat, Normalize, ReluNet, Residual

_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Flow:
    """What one layer hands to the next: clean activations [B, ...], centre and reach >= 0 of the box; None: absent.

    Centre and reach are to be multiplied by `scale` before they mean anything (see box_ops.AffineReluBox).
    """

    clean: Tensor | None
    centre: Tensor | None
    reach: Tensor | None
    scale: float = 1.0

    def box(self) -> tuple[Tensor, Tensor]:
        """Centre and reach as they are."""
        assert self.centre is not None and self.reach is not None
        return (self.centre, self.reach) if self.scale == 1 else (self.centre * self.scale, self.reach * self.scale)

    def settled(self) -> Flow:
        """The same with scale 1."""
        return self if self.centre is None or self.scale == 1 else Flow(self.clean, *self.box())


@dataclass(frozen=True)
class Passed:
    """A batch before the last layer: the flow, the last layer, what entered, and the tape if one was wanted."""

    flow: Flow
    head: nn.Linear
    image: Flow
    tape: list[tapes.Entry] | None

    def logits(self) -> Tensor:
        """Clean logits [B, K]."""
        assert self.flow.clean is not None
        return self.head(self.flow.clean)

    def margins(self, y: Tensor) -> Tensor:
        """Lower bounds of f_y - f_j, [B, K], 0 at j = y: the last layer is merged with the difference of classes."""
        centre, reach = self.flow.box()
        rows, offset = class_rows(self.head, y)
        middle = torch.bmm(rows, centre.unsqueeze(2)).squeeze(2) + offset
        return middle - torch.bmm(rows.abs(), reach.unsqueeze(2)).squeeze(2)

    def relus(self) -> Iterable[tapes.BoxRelu]:
        """Every ReLU with its box, in order; needs the tape."""
        assert self.tape is not None
        return _relus(self.tape)


def class_rows(head: nn.Linear, y: Tensor) -> tuple[Tensor, Tensor]:
    """Rows w_y - w_j, [B, K, H], and offsets b_y - b_j, [B, K], of the last layer."""
    return head.weight[y].unsqueeze(1) - head.weight, bias_of(head)[y].unsqueeze(1) - bias_of(head)


def _relus(tape: tapes.Tape) -> Iterable[tapes.BoxRelu]:
    for entry in tape:
        if isinstance(entry, tapes.BoxRelu):
            yield entry
        elif isinstance(entry, tapes.Sum):
            yield from _relus(entry.main)
            yield from _relus(entry.skip)
        elif isinstance(entry, tapes.Beside):
            yield from _relus(entry.branch)


def training_box(x: Tensor, radius: float | Tensor) -> tuple[Tensor, Tensor]:
    """Centre and reach of [x - radius, x + radius] within [0, 1], rounded to nearest: for training only."""
    lower, upper = (x - radius).clamp_(min=0.0), (x + radius).clamp_(max=1.0)
    reach = (upper - lower).mul_(0.5)
    return lower.add_(reach), reach


def run(net: ReluNet, x: Tensor, radius: float | Tensor | None, *, clean: bool = True, tape: bool = False) -> Passed:
    """Pass a batch and the box of this radius around it (None: no box) through everything before the last layer.

    Args:
        x: [B, C, H, W] in [0, 1]. radius: pixel units; a number, or a tensor [B, 1, 1, 1]. clean: also carry x itself;
            a net in training mode that has batch norm always does, for the statistics (its running statistics move
            once, as in net(x)). tape: record every layer (slower; pull-back and regularisers need it).
    """
    centre, reach = training_box(x, radius) if radius is not None else (None, None)
    want = clean or radius is None or (net.training and net.has_batch_norm())
    start = Flow(x if want else None, centre, reach)
    written: list[tapes.Entry] | None = [] if tape and radius is not None else None
    flow = _normalize(net.normalize, start, written)
    return Passed(_chain(net.body, flow, written), net.head, start, written)


# --- layers -----------------------------------------------------------------------------------------------------------

Writer = list[tapes.Entry] | None


def _chain(layers: Iterable[nn.Module], flow: Flow, tape: Writer) -> Flow:
    """Layer after layer; an affine layer takes the batch norm and the ReLU that follow it along."""
    modules = list(layers)
    index = 0
    while index < len(modules):
        module = modules[index]
        index += 1
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            flow = _layer(module, flow, tape)
            continue
        norm, relu = None, False
        if index < len(modules) and isinstance(modules[index], _NORM):
            norm = modules[index]
            index += 1
        if tape is None and index < len(modules) and isinstance(modules[index], nn.ReLU):
            relu = True
            index += 1
        flow = _affine(module, norm, relu, flow, tape)
    return flow


def _layer(module: nn.Module, flow: Flow, tape: Writer) -> Flow:
    flow = flow.settled()
    if isinstance(module, _NORM):
        return _batch_norm(module, flow, tape)
    if isinstance(module, nn.ReLU):
        return _relu(flow, tape)
    if isinstance(module, nn.Flatten):
        write(tape, lambda: tapes.Flatten(_any(flow).shape[1:]))
        return _each(flow, module)
    if isinstance(module, nn.AvgPool2d):
        kernel = pool_kernel(module)
        write(tape, lambda: tapes.Pool(kernel, _any(flow).shape[1:]))
        return _each(flow, module)
    if isinstance(module, Residual):
        main, skip = _branch(tape), _branch(tape)
        a, b = _chain(module.main, flow, main), _chain(module.skip, flow, skip)
        write(tape, lambda: tapes.Sum(main or [], skip or []))
        return _both(a, b, torch.add)
    if isinstance(module, Concat):
        branch = _branch(tape)
        a = _chain(module.branch, flow, branch)
        write(tape, lambda: tapes.Beside(branch or [], _any(a).shape[1]))
        return _both(a, flow, _beside)
    raise ValueError(f"no interval bound is known for layer {type(module).__name__}; see methods/nets.py for the list")


def write(tape: Writer, entry: Callable[[], tapes.Entry]) -> None:
    """Add an entry, made only if there is a tape."""
    if tape is not None:
        tape.append(entry())


def _branch(tape: Writer) -> Writer:
    return None if tape is None else []


def _normalize(module: nn.Module, flow: Flow, tape: Writer) -> Flow:
    if not isinstance(module, Normalize):
        return flow
    scale = 1 / module.std[0]
    write(tape, lambda: tapes.Scale(scale, -module.mean[0] * scale))
    clean, centre = (None if t is None else module(t) for t in (flow.clean, flow.centre))
    return Flow(clean, centre, None if flow.reach is None else flow.reach * scale)


def _affine(module: nn.Conv2d | nn.Linear, norm: nn.Module | None, relu: bool, flow: Flow, tape: Writer) -> Flow:
    """A convolution or dense layer with the batch norm and the ReLU behind it.

    The box of a convolution sees batch norm folded into the weights, which are fewer than the activations; in dense
    layers it is the other way round, so there the activations are scaled.
    """
    weight, bias, geometry = module.weight, bias_of(module), geometry_of(module)
    clean = None if flow.clean is None else box_ops.affine(flow.clean, weight, bias, geometry)
    scale: Tensor | None = None
    if norm is not None:
        clean, scale, shift = _statistics(norm, clean)
        if flow.centre is not None and (geometry is not None or tape is not None):
            weight, bias = weight * scale.reshape(-1, *([1] * (weight.ndim - 1))), bias * scale + shift
            scale = None
    if relu and clean is not None:
        clean = clean.relu_()
    if flow.centre is None or flow.reach is None:
        return Flow(clean, None, None)
    if relu and scale is None:
        flow = flow.settled() if geometry is None else flow
        centre, reach = box_ops.AffineReluBox.apply(flow.centre, flow.reach, weight, bias, geometry, flow.scale)
        return Flow(clean, centre, reach, 0.5)
    centre, reach = flow.box()
    write(tape, lambda: affine_entry(weight, bias, geometry, centre.shape[1:]))
    middle = box_ops.affine(centre, weight, bias, geometry)
    spread = box_ops.affine(reach, weight.abs(), None, geometry)
    if scale is not None:
        middle, spread = torch.addcmul(shift, middle, scale), spread * scale.abs()
    return Flow(clean, *box_ops.ReluBox.apply(middle, spread)) if relu else Flow(clean, middle, spread)


def affine_entry(
    weight: Tensor, bias: Tensor, geometry: box_ops.Geometry | None, shape: torch.Size
) -> tapes.Dense | tapes.Conv:
    """The tape's entry of a dense layer or a convolution of inputs of this shape."""
    return tapes.Dense(weight, bias) if geometry is None else tapes.Conv(weight, bias, *geometry, shape)


def _batch_norm(module: nn.Module, flow: Flow, tape: Writer) -> Flow:
    """Batch norm that follows no affine layer (pre-activation blocks)."""
    clean, scale, shift = _statistics(module, flow.clean)
    if flow.centre is None or flow.reach is None:
        return Flow(clean, None, None)
    shape = [-1] + [1] * (flow.centre.ndim - 2)
    wide, offset = scale.reshape(shape), shift.reshape(shape)
    write(tape, lambda: tapes.Scale(wide, offset))
    return Flow(clean, torch.addcmul(offset, flow.centre, wide), flow.reach * wide.abs())


def _statistics(norm: nn.Module, clean: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
    """The clean batch normalised, and scale and shift [C]: of this batch in training, else the frozen ones."""
    assert isinstance(norm, _NORM) and norm.running_mean is not None and norm.running_var is not None
    if norm.training:
        if clean is None:
            raise ValueError("batch norm in training mode needs the clean batch: run(..., clean=True)")
        if clean.numel() == clean.shape[1]:
            raise ValueError("a batch of one image has no batch statistics; choose another --set batch_size=...")
        if norm.momentum is None:
            raise ValueError("a batch norm with a cumulative average (momentum=None) has no bound pass in training")
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        moved = (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
        return box_ops.BatchStatistics.apply(clean, norm.weight, norm.bias, *moved)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if clean is not None:
        clean = norm(clean)
    return clean, scale, shift


def _relu(flow: Flow, tape: Writer) -> Flow:
    clean = None if flow.clean is None else functional.relu(flow.clean)
    if flow.centre is None or flow.reach is None:
        return Flow(clean, None, None)
    centre, reach = flow.centre, flow.reach
    write(tape, lambda: tapes.BoxRelu(centre, reach))
    return Flow(clean, *box_ops.ReluBox.apply(centre, reach))


def pool_kernel(module: nn.AvgPool2d) -> int:
    """The side of an average pooling over square blocks that do not overlap.

    Raises:
        ValueError: it is another kind of pooling.
    """
    kernel, stride, padding = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    if kernel[0] != kernel[1] or stride != kernel or padding != (0, 0) or module.ceil_mode or module.divisor_override:
        raise ValueError(f"{module}: only means of square blocks without overlap or padding have a bound here")
    return kernel[0]


def geometry_of(module: nn.Conv2d | nn.Linear) -> box_ops.Geometry | None:
    """Stride, padding and groups of a convolution, None for a dense layer.

    Raises:
        ValueError: a kind of convolution that the bounds do not know.
    """
    if isinstance(module, nn.Linear):
        return None
    if module.padding_mode != "zeros" or _pair(module.dilation) != (1, 1):
        raise ValueError(f"{module}: only zero padding without dilation has a bound here")
    return _pair(module.stride), _pair(module.padding), module.groups


def bias_of(module: nn.Conv2d | nn.Linear) -> Tensor:
    """The bias [O], zeros where there is none."""
    return module.bias if module.bias is not None else module.weight.new_zeros(module.weight.shape[0])


# --- small things -----------------------------------------------------------------------------------------------------


def _any(flow: Flow) -> Tensor:
    found = flow.clean if flow.centre is None else flow.centre
    assert found is not None
    return found


def _each(flow: Flow, module: nn.Module) -> Flow:
    """A layer that is linear without weights: the same for all three."""
    clean, centre, reach = (None if t is None else module(t) for t in (flow.clean, flow.centre, flow.reach))
    return Flow(clean, centre, reach)


def _both(a: Flow, b: Flow, join: Callable[[Tensor, Tensor], Tensor]) -> Flow:
    """Two branches joined; centres and reaches of a sum add like everything else."""
    a, b = a.settled(), b.settled()
    pairs = ((a.clean, b.clean), (a.centre, b.centre), (a.reach, b.reach))
    clean, centre, reach = (None if s is None or t is None else join(s, t) for s, t in pairs)
    return Flow(clean, centre, reach)


def _beside(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        raise ValueError(f'padding "{value}" is not supported; give numbers')
    return (value, value) if isinstance(value, int) else (value[0], value[1])
