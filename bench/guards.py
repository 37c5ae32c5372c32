"""What an evaluation refuses to believe: outputs of a method that cannot be right, and how a violation is kept.

Every refusal names the method. trust.md 2.1 (order and bundles), P14 and P49 (vices of plugins).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contract import Bound
from .errors import BenchError
from .files import write_atomic

R_SLACK = 1e-4  # of max(1, |logits|): what a class R bound may be off by rounding (trust.md 1.9)
_CERTIFICATE = re.compile(r"[a-z0-9_]{1,40}")


class Violation(BenchError):
    """A certificate of class D or F32 is contradicted by the net itself; never a result, always a bug."""


def check_logits(method: str, logits: Tensor, n: int, classes: int) -> Tensor:
    """Logits [n, classes] float32, finite, detached; anything else is a BenchError."""
    if logits.shape != (n, classes):
        raise BenchError(f"method {method}: logits of shape {list(logits.shape)}; [{n}, {classes}] are needed")
    if logits.dtype != torch.float32:
        raise BenchError(f"method {method}: logits are {logits.dtype}; the deployed net must give float32")
    if not bool(torch.isfinite(logits).all()):
        raise BenchError(f"method {method}: the net gives logits that are not finite; training has failed")
    return logits.detach()


def check_bound(method: str, bound: Bound, clean: Tensor, logits: Tensor) -> np.ndarray:
    """One certificate's lower bounds of a batch, [B] float64.

    Args:
        clean: [B] float64 margins at the images; a bound above them is no bound (class R: by more than rounding).
        logits: [B, K], the scale of class R's rounding.

    Raises:
        Violation: a bound exceeds the margin at the image itself.
        BenchError: wrong name, length or values.
    """
    who = f"method {method}, certificate {bound.certificate!r}"
    if not _CERTIFICATE.fullmatch(bound.certificate):
        raise BenchError(f"{who}: the name must be [a-z0-9_], at most 40 characters")
    lower = bound.lower.detach().double()
    if lower.shape != clean.shape:
        raise BenchError(f"{who}: {lower.numel()} bounds for {clean.numel()} examples")
    if bool((torch.isnan(lower) | (lower == torch.inf)).any()):
        raise BenchError(f"{who}: bounds that are NaN or infinite; a net with such values has no certificate")
    above = lower > clean + (slack_r(logits) if bound.cls == "R" else 0.0)
    if bool(above.any()):
        i = int(above.nonzero()[0, 0])
        raise Violation(
            f"{who}: the lower bound {float(lower[i])!r} exceeds the margin {float(clean[i])!r} at the image itself "
            f"({int(above.sum())} of {len(above)} in this batch); the certificate is unsound"
        )
    return lower.cpu().numpy()


def slack_r(logits: Tensor) -> Tensor:
    """[B] float64: how far rounding may carry a class R bound, by the size of the logits."""
    return R_SLACK * logits.abs().amax(dim=1).double().clamp(min=1.0)


def check_radius(method: str, radius: Tensor, n: int) -> np.ndarray:
    """Radii of a batch, [n] float64, finite and not negative."""
    values = radius.detach().double().cpu().numpy()
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any():
        raise BenchError(f"method {method}: radius must give one finite number >= 0 per example")
    return values


def write_bundle(folder: Path, index: int, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Keep a violation: `violation-<index>.json` with images as hex of their little-endian float32 bytes and logits
    as hex floats, so that every bit can be replayed. Returns the file's name."""
    data = dict(content) | {"torch": torch.__version__}
    for name, tensor in tensors.items():
        data[name] = {"shape": list(tensor.shape), "float32_le": tensor.cpu().numpy().astype("<f4").tobytes().hex()}
        if tensor.ndim == 1:
            data[name]["hex"] = [float(v).hex() for v in tensor]
    name = f"violation-{index}.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / name, (json.dumps(data, indent=1) + "\n").encode())
    return name
