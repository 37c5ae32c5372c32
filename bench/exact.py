"""One context manager under which every reported number is computed: `exact_eval`.

A certificate of class D or F32 speaks about IEEE float32 arithmetic (trust.md 1.3, 1.7). PyTorch has more than a dozen
process-wide switches that quietly replace it, TF32, bf16 matmul on a CPU, autocast, flush-to-zero among them. Inside
the context all are forced, on the way out all are restored, and two kinds of probe, which compute instead of reading
flags, tell whether the machine obeys. What does not obey costs the certificate its class, never silently.
"""

from __future__ import annotations

import operator
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import BenchError

_PROBE_WIDTHS = (256, 1024)  # matmul widths probed for every net: below 64 CPUs take another, always exact, kernel
_PROBE_IMAGES = 16  # fewer never reach NNPACK's convolutions
_WIDEST_PROBE = 4096  # an identity matrix of this side is 64 MiB
_FTZ_ELEMENTS = 1 << 16  # per thread; above torch's grain size of 32768, so that every thread computes some


@dataclass(frozen=True)
class _Switch:
    """A process-wide setting: how to read and write it, and the value exact evaluation needs."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    wanted: Any


@dataclass
class EvalState:
    """What `exact_eval` found and forced; goes into the record.

    switches: name -> value in force (JSON). downgrade: reasons for which a certificate lost its class, empty if all is
    well. `effective(cls)` is the class a certificate may still carry.
    """

    switches: dict[str, Any] = field(default_factory=dict)
    downgrade: list[str] = field(default_factory=list)
    _refused: set[str] = field(default_factory=set)
    _check: Callable[[], None] = lambda: None

    def refuse(self, *classes: str, reason: str) -> None:
        """Take `classes` away from every certificate of this evaluation, for one stated reason."""
        self._refused.update(classes)
        if reason not in self.downgrade:
            self.downgrade.append(reason)

    def as_kept(self) -> dict[str, Any]:
        """What a later process must know of this one to go on where it stopped."""
        return {"refused": sorted(self._refused), "downgrade": list(self.downgrade)}

    def take_over(self, kept: Mapping[str, Any]) -> None:
        """What an earlier process lost stays lost."""
        for reason in kept["downgrade"]:
            self.refuse(*kept["refused"], reason=reason)

    def effective(self, cls: str) -> str:
        """The class itself, or R where it was refused."""
        return "R" if cls in self._refused else cls

    def check(self) -> None:
        """Look whether anything has turned a switch since it was forced; if so force it again and downgrade."""
        self._check()


@contextmanager
def exact_eval(net: nn.Module) -> Iterator[EvalState]:
    """Evaluate `net` in plain IEEE float32: eval mode, no gradients, no reduced precision anywhere.

    Forced: eval mode of every module, no_grad, autocast off, matmul and convolution precision IEEE, TF32 and reduced
    reductions off, cudnn off on a GPU and NNPACK on a CPU (their Winograd kernels void class F32), deterministic
    algorithms, default dtype float32. Everything, the random generators too, is as before on exit, also after an
    exception.

    Yields:
        EvalState; call its `check()` after foreign code has run.

    Raises:
        BenchError: the net has parameters that are not float32, or non-finite values; or evaluation changed one of
            its parameters or buffers.
    """
    check_net(net)
    state = EvalState()
    table = _switches()
    before = [(switch, switch.read()) for switch in table]
    modes = [(module, module.training) for module in net.modules()]
    frozen = {name: tensor.detach().clone() for name, tensor in _tensors(net)}
    generators = _generators()
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        # scatter in an attack's backward pass is the usual one; it costs a bit of repeatability, no certificate
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        warnings.filterwarnings("ignore", message="Deterministic behavior was enabled.*")  # cuBLAS without workspace
        try:
            net.eval()
            _force(table)
            device = next((t.device for _, t in _tensors(net)), torch.device("cpu"))
            flush = _probe(net, device, state)
            state._check = lambda: _look(net, table, threads, state)
            state.switches = {s.name: _json(s.read()) for s in table if s.name != "fill_uninitialized"}
            state.switches |= {"threads": threads, "flush_to_zero": flush}
            yield state
            state.check()
            _finish_flush(flush, flush_to_zero(device), state)
            _unchanged(net, frozen)
        finally:
            for switch, value in before:
                if value is not None:
                    switch.write(value)
            for module, training in modes:
                module.training = training
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            _restore_generators(generators)


def check_net(net: nn.Module) -> None:
    """Refuse a net whose deployed arithmetic is not float32 or whose weights are not numbers.

    Raises:
        BenchError: names the parameter or buffer. Buffers may be infinite (the exponent p of an exact net), not NaN.
    """
    for name, tensor in _tensors(net):
        is_parameter = isinstance(tensor, nn.Parameter)
        if tensor.is_complex() or (tensor.is_floating_point() and is_parameter and tensor.dtype != torch.float32):
            raise BenchError(f"parameter {name} is {tensor.dtype}; only float32 nets are certified: net.float()")
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise BenchError(f"buffer {name} is {tensor.dtype}; reduced precision voids certificates: net.float()")
        if tensor.is_floating_point():
            bad = ~torch.isfinite(tensor) if is_parameter else torch.isnan(tensor)
            if bool(bad.any()):
                kind = "parameter" if is_parameter else "buffer"
                raise BenchError(f"{kind} {name} holds {int(bad.sum())} non-finite values; the run has diverged")


def flush_to_zero(device: torch.device | str = "cpu") -> str:
    """ "off", "on", or "mixed" (threads disagree): whether denormal results are flushed, by computing some."""
    count = _FTZ_ELEMENTS * max(1, torch.get_num_threads())
    difference = torch.full((count,), 1.5e-38, device=device) - torch.full((count,), 1.4e-38, device=device)
    kept = int((difference.view(torch.int32) != 0).sum())  # by bits: a comparison could flush its operand
    return {0: "on", count: "off"}.get(kept, "mixed")


def reduced_precision(net: nn.Module, device: torch.device | str = "cpu") -> list[str]:
    """Operations that do not compute in float32 here, by computing: A @ I must be A, bit for bit, and so on.

    The shapes are those of the net's layers, because small ones take other kernels: bf16 matmul on a CPU passes at
    16 x 16 and fails at 64 x 64.
    """
    widths = {m.in_features for m in net.modules() if isinstance(m, nn.Linear) and m.in_features <= _WIDEST_PROBE}
    found = []
    for width in sorted(widths | set(_PROBE_WIDTHS)):
        a = _full_bits((64, width), device)
        if not _same(nn.functional.linear(a, torch.eye(width, device=device)), a):
            found.append(f"matmul of width {width}")
    shapes = {(m.in_channels, m.groups, m.kernel_size) for m in net.modules() if isinstance(m, nn.Conv2d)}
    for channels, groups, kernel in sorted(shapes):
        delta = torch.zeros(channels, channels // groups, *kernel, device=device)
        index = torch.arange(channels, device=device)
        delta[index, index % (channels // groups), kernel[0] // 2, kernel[1] // 2] = 1.0
        image = _full_bits((_PROBE_IMAGES, channels, 16, 16), device)
        out = nn.functional.conv2d(image, delta, padding=(kernel[0] // 2, kernel[1] // 2), groups=groups)
        if not _same(out[:, :, :16, :16], image):
            found.append(f"convolution {channels}x{kernel[0]}x{kernel[1]}")
    return found


def subtraction_is_exact(device: torch.device | str = "cpu") -> bool:
    """Whether x - w is one correctly rounded float32 operation (what class D of distance nets rests on)."""
    a, b = _full_bits((1 << 14,), device), _full_bits((1 << 14,), device).flip(0)
    return torch.equal(a - b, (a.double() - b.double()).float())  # 24-bit numbers this close: float64 is exact


# --- the parts --------------------------------------------------------------------------------------------------------


def _switches() -> list[_Switch]:
    """Every switch this version of torch has; order matters, see `_precision_nodes`."""
    back = torch.backends
    found = [
        _Switch("grad", torch.is_grad_enabled, _set_grad, False),
        _Switch("default_dtype", torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        _Switch(
            "deterministic",
            _deterministic,
            lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1]),
            (True, True),  # strict mode would refuse the backward passes of attacks, which certify nothing
        ),
        _Switch(
            "fill_uninitialized",  # deterministic mode fills fresh tensors with NaN unless told not to: slow
            lambda: getattr(torch.utils.deterministic, "fill_uninitialized_memory", None),
            lambda v: setattr(torch.utils.deterministic, "fill_uninitialized_memory", v),
            False,
        ),
    ]
    for kind in ("cpu", "cuda"):
        found.append(
            _Switch(
                f"autocast_{kind}",
                lambda kind=kind: torch.is_autocast_enabled(kind),  # type: ignore[misc]
                lambda v, kind=kind: torch.set_autocast_enabled(kind, v),  # type: ignore[misc]
                False,
            )
        )
    if hasattr(torch._C, "_get_nnpack_enabled"):  # Winograd convolutions, which torch falls back to without oneDNN
        found.append(_Switch("nnpack", torch._C._get_nnpack_enabled, lambda v: torch._C._set_nnpack_enabled(v), False))
    flags: list[tuple[Any, str, Any]] = [
        (back.cuda.matmul, "allow_tf32", False),
        (torch, "float32_matmul_precision", "highest"),  # after allow_tf32, whose writing changes it
        (back.cudnn, "allow_tf32", False),
        (back.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
        (back.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        (back.cuda.matmul, "allow_fp16_accumulation", False),
        (back.cudnn, "benchmark", False),
        (back.cudnn, "deterministic", True),
        (back.cudnn, "enabled", False),
    ]
    for owner, name, wanted in flags + [(node, "fp32_precision", "ieee") for node in _precision_nodes()]:
        if owner is torch:
            found.append(_Switch("matmul_precision", _quiet(torch.get_float32_matmul_precision), _set_matmul, wanted))
            continue
        reader = _quiet(operator.attrgetter(name))
        try:
            reader(owner)
        except (AttributeError, AssertionError):  # older torch
            continue
        found.append(
            _Switch(
                f"{_label(owner)}.{name}",
                lambda owner=owner, reader=reader: reader(owner),  # type: ignore[misc]
                lambda v, owner=owner, name=name: setattr(owner, name, v),  # type: ignore[misc]
                wanted,
            )
        )
    return found


def _precision_nodes() -> list[Any]:
    """The tree of `fp32_precision` settings (torch >= 2.9), parents first.

    It shadows the older flags and the older flags shadow it, so both are written: the older first, because writing
    them changes the leaves, and a mixture makes reading the older ones an error (hence `_quiet`).
    """
    back = torch.backends
    if not hasattr(back, "fp32_precision"):
        return []
    nodes = [back, back.cudnn, back.mkldnn, back.cuda.matmul]
    for parent in (back.cudnn, back.mkldnn):
        nodes += [getattr(parent, leaf) for leaf in ("matmul", "conv", "rnn") if hasattr(parent, leaf)]
    return nodes


def _label(owner: Any) -> str:
    """A short, stable name for a settings object."""
    back = torch.backends
    known: list[tuple[Any, str]] = [(back.cuda.matmul, "cuda.matmul"), (back.cudnn, "cudnn"), (back.mkldnn, "mkldnn")]
    known += [
        (getattr(parent, leaf), f"{name}.{leaf}")
        for parent, name in ((back.cudnn, "cudnn"), (back.mkldnn, "mkldnn"))
        for leaf in ("matmul", "conv", "rnn")
        if hasattr(parent, leaf)
    ]
    return next((name for thing, name in known if thing is owner), "all")


def _quiet(reader: Callable[..., Any]) -> Callable[..., Any]:
    """The reader, answering None where torch refuses to read a setting because old and new ones were mixed."""

    def read(*args: Any) -> Any:
        try:
            return reader(*args)
        except RuntimeError:
            return None

    return read


def _set_grad(value: bool) -> None:
    torch.set_grad_enabled(value)


def _set_matmul(value: str) -> None:
    torch.set_float32_matmul_precision(value)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _force(table: list[_Switch]) -> None:
    for switch in table:
        switch.write(switch.wanted)


def _look(net: nn.Module, table: list[_Switch], threads: int, state: EvalState) -> None:
    """`EvalState.check`: turned switches and train mode cost classes D and F32; a changed thread count nothing."""
    turned = [s.name for s in table if s.name not in ("grad", "fill_uninitialized") and s.read() != s.wanted]
    training = [name or type(net).__name__ for name, module in net.named_modules() if module.training]
    if turned:
        state.refuse("D", "F32", reason=f"switched during evaluation: {', '.join(turned)}")
    if training:
        state.refuse("D", "F32", reason=f"train mode during evaluation: {', '.join(training[:3])}")
        net.eval()
    _force(table)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _probe(net: nn.Module, device: torch.device, state: EvalState) -> str:
    """Run the numeric probes and refuse what they forbid; returns the flush-to-zero state."""
    flush = flush_to_zero(device)
    if flush != "off":
        state.refuse("F32", reason=f"flush-to-zero is {flush}: float32 error formulas assume gradual underflow")
    if flush == "mixed":
        state.refuse("D", reason="flush-to-zero differs between threads")
    reduced = reduced_precision(net, device)
    if reduced:
        state.refuse("F32", reason=f"reduced precision in {', '.join(reduced)}")
    if not subtraction_is_exact(device):
        state.refuse("D", "F32", reason="subtraction is not IEEE float32")
    return flush


def _finish_flush(start: str, end: str, state: EvalState) -> None:
    if end != start:
        state.refuse("D", "F32", reason=f"flush-to-zero changed during evaluation: {start} to {end}")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _full_bits(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Numbers in [1, 256) whose 24 mantissa bits are all in play; a function of the shape only."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(1 << 22, 1 << 23, shape, generator=generator) * 2 + 1  # odd, in [2^23, 2^24)
    power = torch.randint(0, 8, shape, generator=generator)
    return torch.ldexp(whole.float(), power - 23).to(device)


def _tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


def _unchanged(net: nn.Module, frozen: dict[str, Tensor]) -> None:
    now = dict(_tensors(net))
    changed = [name for name, old in frozen.items() if name not in now or not torch.equal(now[name], old)]
    if changed or len(now) != len(frozen):
        what = ", ".join(changed[:3]) or "the set of its buffers"
        raise BenchError(f"evaluation changed the net itself ({what}); nothing measured on it can be trusted")


def _generators() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _restore_generators(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    if states[3] is not None:
        torch.cuda.set_rng_state_all(states[3])


def _json(value: Any) -> Any:
    """A switch's value as JSON: dtypes by name, (deterministic, warn_only) as the first of the two."""
    if isinstance(value, tuple):
        return value[0]
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
