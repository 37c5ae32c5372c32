"""The one module that imports auto_LiRPA: loading it under a current torch, and its bounds as class R margin bounds.

auto_LiRPA is an optional dependency that pip cannot resolve (its release asks for torch < 1.13), so it is installed
with --no-deps, and the release, 0.3, is mended at run time by four small shims; its repository's newer versions need
none. Nothing here changes its files. Bounds are computed in float64 without control of rounding: class R (trust.md
1.9).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import logging
import sys
import types
import warnings
import weakref
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .errors import BenchError

INSTALL = "pip install --no-deps auto-LiRPA==0.3"
METHODS = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "crown": "CROWN", "alpha_crown": "CROWN-Optimized"}
_OPSETS = range(7, 21)


class LirpaUnavailable(BenchError):
    """auto_LiRPA is not installed, or does not work here; the message says which and how to mend it."""


class Unsupported(BenchError):
    """auto_LiRPA has no bound for something in this network."""


def is_installed() -> bool:
    """Whether auto_LiRPA can be found; nothing is imported."""
    return importlib.util.find_spec("auto_LiRPA") is not None


@lru_cache(maxsize=1)
def load() -> Any:
    """The auto_LiRPA module, working.

    Raises:
        LirpaUnavailable: with the command that installs it, or the reason why it fails here.
    """
    if not is_installed():
        raise LirpaUnavailable(f"this needs auto_LiRPA, which is not installed: {INSTALL}")
    try:
        _before_import()
        with _quiet_import():
            module = importlib.import_module("auto_LiRPA")
        _after_import(module)
    except Exception as error:
        raise LirpaUnavailable(
            f"auto_LiRPA is installed but fails under torch {torch.__version__}: {type(error).__name__}: {error}"
        ) from error
    return module


def version() -> str:
    """The version that is installed, e.g. "0.3"."""
    return str(getattr(load(), "__version__", "unknown"))


# --- shims: each only where the thing is really missing --------------------------------------------


def _before_import() -> None:
    gone = "numpy.lib.arraysetops"  # since numpy 2
    if gone not in sys.modules and importlib.util.find_spec(gone) is None:
        import numpy

        stub: Any = types.ModuleType(gone)
        stub.isin = numpy.isin
        sys.modules[gone] = stub
    helper: Any = importlib.import_module("torch.onnx.symbolic_helper")
    if not hasattr(helper, "_set_opset_version"):

        def set_opset(value: int) -> None:
            _onnx_globals().export_onnx_opset_version = value

        helper._set_opset_version = set_opset
    node: Any = torch._C.Node
    if not hasattr(node, "__getitem__"):
        node.__getitem__ = _attribute_of
    with contextlib.suppress(AttributeError, ImportError):
        _onnx_globals().autograd_inlining = False
    # torch registers ONNX symbols when they are first asked for; without all of them `gather` resolves to an operator
    # that no version of auto_LiRPA knows, and loss fusion fails.
    for number in _OPSETS:
        for package in ("torch.onnx._internal.torchscript_exporter", "torch.onnx"):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{package}.symbolic_opset{number}")
                break


def _attribute_of(node: Any, key: str) -> Any:
    return getattr(node, node.kindOf(key))(key)


def _onnx_globals() -> Any:
    for place in ("torch.onnx._internal.torchscript_exporter._globals", "torch.onnx._globals"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(place).GLOBALS
    raise ImportError("torch.onnx has no GLOBALS")


def _after_import(module: Any) -> None:
    bounded = module.BoundedModule
    members = bounded._named_members
    if "remove_duplicate" not in members.__code__.co_varnames:

        def named_members(self: Any, get: Any, prefix: str = "", recurse: bool = True, **_: Any) -> Any:
            return members(self, get, prefix, recurse)

        bounded._named_members = named_members


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Undo what the import does to the process: 0.3 rewrites the warning filters, hangs a handler that writes to stdout
    on the root logger, and raises the recursion limit to a million, so that deep JSON would overflow the C stack."""
    root = logging.getLogger()
    handlers, level, depth = list(root.handlers), root.level, sys.getrecursionlimit()
    try:
        with warnings.catch_warnings(record=True):
            yield
    finally:
        sys.setrecursionlimit(depth)
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)


# --- bounds -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """auto_LiRPA makes identities in the default dtype, so float64 bounds need it changed, and changed back."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _parameters_kept(net: nn.Module) -> Iterator[None]:
    """Bounds in eval mode turn requires_grad of the shared parameters off: restore it."""
    before = [(p, p.requires_grad) for p in net.parameters()]
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


class Bounds:
    """auto_LiRPA's bounds of one network, built once and asked per batch.

    Args:
        layers: the network behind its normalisation, in eval mode; copied, so the original stays as it is.
        normalize: what maps images to its input, applied to the box from outside: inside the bounded graph it makes
            CROWN fail for some seeds (packaging.md 2.3). It must be monotone in every pixel.
        shape: of one image, (C, H, W). iterations: of alpha_crown.
        conv_mode: "patches" is the fast one for plain convolutional nets, "matrix" the safe one for everything else.

    Raises:
        LirpaUnavailable: see `load`. Unsupported: the network contains something auto_LiRPA cannot bound.
    """

    def __init__(
        self,
        layers: nn.Module,
        normalize: nn.Module,
        shape: tuple[int, ...],
        *,
        iterations: int = 20,
        conv_mode: str = "matrix",
    ) -> None:
        self.module = load()
        self.normalize = copy.deepcopy(normalize).double().eval()
        self.layers = copy.deepcopy(layers).double().eval()
        self.device = next(self.layers.parameters()).device
        self.dummy = torch.zeros(2, *shape, dtype=torch.float64, device=self.device)
        self.options = {
            "conv_mode": conv_mode,
            "verbosity": 0,
            "optimize_bound_args": {"iteration": iterations, "lr_alpha": 0.5},
        }
        self._bounded = self._build()

    def _build(self) -> Any:
        try:
            with _default_dtype(torch.float64), _silenced():
                bounded = self.module.BoundedModule(
                    self.layers, self.normalize(self.dummy), bound_opts=dict(self.options), device=self.device
                )
                bounded.eval()
                self.layers.eval()
                self._check_same(bounded)
        except (NotImplementedError, AttributeError, KeyError, RuntimeError, AssertionError, TypeError) as error:
            raise Unsupported(f"auto_LiRPA {version()} cannot bound this network: {_reason(error)}") from error
        return bounded

    def _check_same(self, bounded: Any) -> None:
        """The bounded copy must compute the same function; a tracer that dropped something would make nonsense."""
        shape = self.dummy.shape
        x = torch.linspace(0, 1, self.dummy.numel(), dtype=torch.float64, device=self.device).reshape(shape)
        wanted, got = self.layers(self.normalize(x)), bounded(self.normalize(x))
        if not torch.allclose(wanted, got, rtol=1e-9, atol=1e-9):
            raise Unsupported(f"auto_LiRPA {version()} traced another function than this network")

    def margins(self, lower: Tensor, upper: Tensor, y: Tensor, method: str) -> Tensor:
        """Lower bounds of f_y - f_j over the box of images, [B, K] float64, infinity at j = y.

        Args:
            lower, upper: [B, C, H, W] images, the box. y: [B] int64. method: a key of METHODS.

        Raises:
            ValueError: unknown method. Unsupported: a layer has no such bound.
        """
        if method not in METHODS:
            raise ValueError(f"certifier = {method!r}; choose one of {', '.join(METHODS)}")
        # alpha_crown leaves its layers in a state in which every later call fails, its own too: a fresh copy per call
        alone = method == "alpha_crown"
        bounded = self._build() if alone else self._bounded
        low, high = self.normalize(lower.double()), self.normalize(upper.double())
        classes = int(bounded.final_shape[-1])
        eye = torch.eye(classes, dtype=torch.float64, device=self.device)
        others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
        others = others + (others >= y.unsqueeze(1))
        rows = eye[y].unsqueeze(1) - eye[others]  # [B, K-1, K]
        with _default_dtype(torch.float64), _parameters_kept(self.layers), _silenced():
            x = self.module.BoundedTensor(
                (low + high) / 2, self.module.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high)
            )
            # alpha_crown optimises slopes, also where its caller has switched gradients off
            with torch.enable_grad() if alone else torch.no_grad():
                try:
                    found, _ = bounded.compute_bounds(x=(x,), C=rows, method=METHODS[method], bound_upper=False)
                except NotImplementedError as error:
                    raise Unsupported(f"auto_LiRPA {version()} has no {method} bound here: {_reason(error)}") from error
        found = found.detach()
        return torch.full((len(y), classes), torch.inf, dtype=found.dtype, device=y.device).scatter(1, others, found)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """No prints, log lines and warnings of auto_LiRPA's on our output."""
    import io
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


# --- training ---------------------------------------------------------------------------------------------------------


class Trainer:
    """Differentiable CROWN-IBP bounds of a network that is being trained; the parameters are shared with it.

    Built once per network by `trainer`. Batch norm is refused: auto_LiRPA keeps running statistics of its own, which
    would drift away from the network's.
    """

    def __init__(self, layers: nn.Module, normalize: nn.Module, shape: tuple[int, ...]) -> None:
        module = load()
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in layers.modules()):
            raise Unsupported("auto_LiRPA would keep batch statistics of its own in training; use --set engine=own")
        self.module, self.layers, self.normalize = module, layers, normalize
        some = next(layers.parameters())
        training = layers.training
        try:
            with _silenced(), _parameters_kept(layers), torch.no_grad():
                dummy = normalize(torch.zeros(2, *shape, dtype=some.dtype, device=some.device))
                self.bounded = module.BoundedModule(
                    layers, dummy, bound_opts={"conv_mode": "matrix", "verbosity": 0}, device=some.device
                )
        except (NotImplementedError, AttributeError, KeyError, RuntimeError, AssertionError, TypeError) as error:
            raise Unsupported(f"auto_LiRPA {version()} cannot bound this network: {_reason(error)}") from error
        finally:
            layers.train(training)

    def crown_ibp_margins(self, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:
        """CROWN-IBP lower bounds of f_y - f_j over the box of images, [B, K], 0 at j = y."""
        low, high = self.normalize(lower), self.normalize(upper)
        classes = int(self.bounded.final_shape[-1])
        eye = torch.eye(classes, dtype=low.dtype, device=low.device)
        others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
        others = others + (others >= y.unsqueeze(1))
        rows = eye[y].unsqueeze(1) - eye[others]
        self.bounded.train(self.layers.training)
        with _silenced():
            x = self.module.BoundedTensor(
                (low + high) / 2, self.module.PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high)
            )
            self.bounded(x)
            found, _ = self.bounded.compute_bounds(x=(x,), C=rows, method="CROWN-IBP", bound_upper=False)
        return torch.zeros(len(y), classes, dtype=found.dtype, device=y.device).scatter(1, others, found)


_trainers: weakref.WeakKeyDictionary[nn.Module, Trainer] = weakref.WeakKeyDictionary()


def trainer(layers: nn.Module, normalize: nn.Module, shape: tuple[int, ...]) -> Trainer:
    """The network's `Trainer`, made on first use and kept as long as the network lives.

    Raises:
        LirpaUnavailable, Unsupported: as `Bounds`.
    """
    found = _trainers.get(layers)
    if found is None:
        found = _trainers[layers] = Trainer(layers, normalize, shape)
    return found
