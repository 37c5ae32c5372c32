"""The distance layer's operations as `torch.library` ops, and the choice of the code that runs them.

Namespace `certbench`: `lp_dist` (forward), `lp_dist_backward`, `linf_interval`. As custom ops they are opaque to
autograd and to `torch.compile`, which sees shapes only. The arithmetic is the compiled library's for float32 on the
CPU, where `build` has one, `gpu`'s (Triton) for float32 on CUDA devices it has tested, and `reference`'s otherwise:
other devices, float64, an exponent the library does not take, and on the CPU inputs that are not finite (slow, but then
a run has failed anyway).
"""

import math

import torch
from torch import Tensor

from methods.linf_dist.kernels import build, gpu, reference

MAX_ENTRIES = 2**31 - 3  # int32 indices, less the two reserved codes
LIST_AUTO = 0  # the library decides per block whether a candidate list pays
# Coordinate triples below which waking a second thread costs more than it saves (about 10 us against 30 us of work).
SERIAL_BELOW = 2**19


def _check(x: Tensor, w: Tensor, p: float) -> None:
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and w {tuple(w.shape)} must be [B, I] and [O, I] with one I")
    if x.shape[1] == 0:
        raise ValueError("I (=0) must be at least 1: a distance needs a coordinate")
    if x.dtype != w.dtype or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x ({x.dtype}) and w ({w.dtype}) must both be float32 or both float64; "
                         "autocast and half precision void the certificate")
    if x.device != w.device:
        raise ValueError(f"x ({x.device}) and w ({w.device}) must be on one device")
    if not p >= 1:
        raise ValueError(f"p (={p}) must be at least 1")
    if max(x.shape[0] * x.shape[1], w.shape[0] * w.shape[1], x.shape[0] * w.shape[0]) > MAX_ENTRIES:
        raise ValueError(f"x {tuple(x.shape)}, w {tuple(w.shape)}: more than {MAX_ENTRIES} entries; split the batch")


def _native(x: Tensor, w: Tensor) -> build.Native | None:
    if x.device.type != "cpu" or x.dtype != torch.float32 or 0 in (x.shape[0], w.shape[0]):
        return None
    return build.choose()[0]


def _threads(x: Tensor, w: Tensor) -> int:
    return 1 if x.numel() * w.shape[0] < SERIAL_BELOW else build.threads()


def _done(result: int) -> bool:
    """Whether the library did it; if not, the reference must."""
    if result == build.RETURN_NO_MEMORY:
        raise MemoryError("the distance kernels could not allocate their buffers; use a smaller batch")
    return result == build.RETURN_OK


def _forward(x: Tensor, w: Tensor, p: float, with_code: bool) -> tuple[Tensor, Tensor]:
    x, w = x.contiguous(), w.contiguous()
    native = _native(x, w)
    if native is not None:
        y = x.new_empty(x.shape[0], w.shape[0])
        coded = with_code and p == math.inf
        code = x.new_empty(y.shape if coded else (0, 0), dtype=torch.int32)
        if _done(native.lib.cb_dist(x.data_ptr(), w.data_ptr(), y.data_ptr(), code.data_ptr() if coded else None,
                                    *x.shape, w.shape[0], p, LIST_AUTO, _threads(x, w))):
            return y, code
    if gpu.available(x):
        return gpu.forward(x, w, p, with_code)
    return reference.forward(x, w, p, with_code)


@torch.library.custom_op("certbench::lp_dist", mutates_args=())
def lp_dist(x: Tensor, w: Tensor, p: float, with_code: bool) -> tuple[Tensor, Tensor]:
    """(distances [B, O], code): code is int32 [B, O] at p = inf `with_code`, else [0, 0]; see `reference.forward`."""
    return _forward(x, w, p, with_code)


@lp_dist.register_fake
def _(x: Tensor, w: Tensor, p: float, with_code: bool) -> tuple[Tensor, Tensor]:
    # `p == inf`, not `math.isinf`: under torch.compile a p that changes between calls is a symbol
    shape = (x.shape[0], w.shape[0])
    code = x.new_empty(shape if with_code and p == math.inf else (0, 0), dtype=torch.int32)
    return x.new_empty(shape), code


def _gradients(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, code: Tensor, p: float, need_x: bool, need_w: bool
) -> tuple[Tensor, Tensor]:
    grad, x, w = grad.contiguous(), x.contiguous(), w.contiguous()  # the gradient of `sum` has stride 0
    native = _native(x, w)
    if native is not None and (need_x or need_w):
        dx = torch.empty_like(x) if need_x else x.new_empty(0, 0)
        dw = torch.empty_like(w) if need_w else w.new_empty(0, 0)
        out = (dx.data_ptr() if need_x else None, dw.data_ptr() if need_w else None)
        size = (*x.shape, w.shape[0])
        if p == math.inf:
            result = native.lib.cb_inf_backward(grad.data_ptr(), code.data_ptr(), *out, *size, _threads(x, w))
        else:
            result = native.lib.cb_dist_backward(grad.data_ptr(), x.data_ptr(), w.data_ptr(), y.data_ptr(), *out, *size,
                                                 p, LIST_AUTO, _threads(x, w))
        if _done(result):
            return dx, dw
    if gpu.available(x):
        return gpu.backward(grad, x, w, y, code, p, need_x, need_w)
    dx, dw = reference.backward(grad, x, w, y, code, p)
    return dx if need_x else x.new_empty(0, 0), dw if need_w else w.new_empty(0, 0)


@torch.library.custom_op("certbench::lp_dist_backward", mutates_args=())
def lp_dist_backward(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, code: Tensor, p: float, need_x: bool, need_w: bool
) -> tuple[Tensor, Tensor]:
    """(dx [B, I], dw [O, I]); the one not needed is [0, 0] (an op cannot return None)."""
    return _gradients(grad, x, w, y, code, p, need_x, need_w)


@lp_dist_backward.register_fake
def _(
    grad: Tensor, x: Tensor, w: Tensor, y: Tensor, code: Tensor, p: float, need_x: bool, need_w: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0, 0)), w.new_empty(w.shape if need_w else (0, 0))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, w, ctx.p, with_code = inputs
    y, code = output
    if ctx.p == math.inf and not with_code:
        raise RuntimeError("lp_dist at p = inf needs with_code=True where a gradient is wanted")
    ctx.save_for_backward(x, w, y, code)
    ctx.mark_non_differentiable(code)


def _backward(ctx, grad, _grad_code):  # type: ignore[no-untyped-def]
    x, w, y, code = ctx.saved_tensors
    need_x, need_w = ctx.needs_input_grad[:2]
    dx, dw = lp_dist_backward(grad, x, w, y, code, ctx.p, need_x, need_w)
    return dx if need_x else None, dw if need_w else None, None, None


lp_dist.register_autograd(_backward, setup_context=_setup_context)


class _Eager(torch.autograd.Function):
    """The same two functions without the dispatcher: 0.15 ms less per layer and step, half of a small layer."""

    @staticmethod
    def forward(ctx, x, w, p, with_code):  # type: ignore[no-untyped-def]
        y, code = _forward(x, w, p, with_code)
        ctx.p = p
        ctx.save_for_backward(x, w, y, code)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, w, y, code = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad[:2]
        dx, dw = _gradients(grad, x, w, y, code, ctx.p, need_x, need_w)
        return dx if need_x else None, dw if need_w else None, None, None


def _is_plain(x: Tensor) -> bool:
    """Memory behind it, not a fake or wrapped tensor of a tracer, whose ops must go through the dispatcher."""
    return type(x) in (Tensor, torch.nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(x)


@torch.library.custom_op("certbench::linf_interval", mutates_args=())
def linf_interval(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds [B, O], [B, O] of the l_inf distance over a box; see `interval`."""
    if (lower > upper).any():
        at = (lower > upper).nonzero()[0].tolist()
        raise ValueError(f"lower > upper at [b, i] = {at}: an inverted box has no bounds")
    lower, upper, w = lower.contiguous(), upper.contiguous(), w.contiguous()
    native = _native(lower, w)
    if native is not None:
        lo, hi = (lower.new_empty(lower.shape[0], w.shape[0]) for _ in range(2))
        if _done(native.lib.cb_interval(lower.data_ptr(), upper.data_ptr(), w.data_ptr(), lo.data_ptr(), hi.data_ptr(),
                                        *lower.shape, w.shape[0], LIST_AUTO, _threads(lower, w))):
            return lo, hi
    if gpu.available(lower):
        return gpu.interval(lower, upper, w)
    return reference.interval(lower, upper, w)


@linf_interval.register_fake
def _(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    shape = (lower.shape[0], w.shape[0])
    return lower.new_empty(shape), lower.new_empty(shape)


def dist(x: Tensor, w: Tensor, p: float) -> Tensor:
    """Distance from every input row to every centre: out[b, o] = (sum_i |x[b, i] - w[o, i]| ** p) ** (1 / p).

    Args:
        x: [B, I] float32 (or float64, slow); any strides.
        w: [O, I], dtype and device of `x`.
        p: at least 1. `math.inf` is the exact maximum.

    Returns:
        [B, O], differentiable once in `x` and `w`. At p = inf 1-Lipschitz from l_inf to l_inf, every output one
        rounding of the true maximum, the same bits for every batch size, thread count and code path. At finite p
        within 3e-6 of the float64 distance, gradients within 1e-5 + 3e-7 p of the largest entry (unless large
        terms of its sum cancel), the same bits for every thread count; differences below 1e-37 count as 0. Where
        x[b] == w[o] the distance and its gradient are exactly 0; NaN and infinite inputs come out as NaN and inf.

    Raises:
        ValueError: shapes, dtypes or devices disagree, I = 0, or p < 1.

    Memory: O(B * I + O * I + B * O), never B * O * I.
    Source: arXiv 2102.05363 (the neuron without its bias and its l_p relaxation).
    """
    _check(x, w, p)
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    with_code = wants_gradient and p == math.inf
    if torch.compiler.is_compiling() or not (_is_plain(x) and _is_plain(w)):
        return lp_dist(x, w, float(p), with_code)[0]
    return _Eager.apply(x, w, float(p), with_code) if wants_gradient else _forward(x, w, float(p), False)[0]


def interval(lower: Tensor, upper: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest l_inf distance from each centre to the boxes lower <= x <= upper, coordinate by coordinate.

    d_lo[b, o] = max_i max(lower - w, w - upper, 0), d_hi[b, o] = max_i max(|lower - w|, |upper - w|).

    Args:
        lower, upper: [B, I], float32 or float64.
        w: [O, I], their dtype and device.

    Returns:
        d_lo, d_hi, both [B, O], no gradient. The same bits as the formula in torch for every batch size, order and
        thread count; d_lo is never -0. NaN propagates.

    Raises:
        ValueError: lower > upper anywhere (an empty box is the caller's error, it is not repaired), or a wrong shape.

    Source: certified_test of the v2 code of arXiv 2110.06850 (interval propagation with clipped inputs).
    """
    _check(lower, w, math.inf)
    if lower.shape != upper.shape or lower.dtype != upper.dtype or lower.device != upper.device:
        raise ValueError(f"lower {tuple(lower.shape)} {lower.dtype} and upper {tuple(upper.shape)} {upper.dtype} "
                         "must have one shape, dtype and device")
    lo, hi = linf_interval(lower.detach(), upper.detach(), w.detach())
    return lo, hi


def kernel_info() -> dict[str, object]:
    """Which code computes float32 distances, for the record of a run; builds the CPU library if that is still to do.

    Keys: backend ("native" or "reference"), reason (why it is the reference, else ""), source_sha256, flags, compiler,
    isa ("avx512", "avx2", "baseline") and threads. Results at finite p are comparable bit for bit only between runs
    that agree in all but threads. For CUDA devices: gpu_backend ("triton", "reference" or "none"), gpu_reason, triton
    (version) and gpu_source_sha256.
    """
    native, reason = build.choose()
    return {
        "backend": "native" if native else "reference",
        "reason": reason,
        "source_sha256": native.source_sha256 if native else "",
        "flags": native.flags if native else "",
        "compiler": native.compiler if native else "",
        "isa": native.isa if native else "",
        "threads": build.threads(),
        **gpu.info(),
    }
