"""The state of a run on disk: written atomically, the last two kept, refused when it belongs to another cell.

One file holds a whole state: tensors as safetensors, everything else as JSON in the header of the same file, so that
there is no moment at which the two disagree. Nothing is pickled; loading runs no code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BenchError
from .files import TEMPORARY, remove, replacing

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
KEEP = 2  # states kept, newest first
SAVE_EVERY_S = 60.0
SAVE_SHARE = 20.0  # a save of t seconds is followed by at least 20 t seconds of work


class StateError(BenchError):
    """A state that cannot be used."""


@dataclass(frozen=True)
class State:
    """What a state file holds. meta: JSON; tensors: on the CPU, as saved."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """One safetensors file with JSON in its header, written atomically; the header carries a hash of the content.

    Raises:
        FileError: it cannot be written.
    """
    from safetensors.torch import save_file

    plain = _plain(tensors)
    header = {"meta": json.dumps({**meta, "sha256": _digest(plain)})}
    with replacing(path) as temporary:
        try:
            save_file(plain, str(temporary), metadata=header)
        except Exception as error:  # safetensors raises its own type for I/O errors, with the errno in its text only
            text = str(error)
            full = "os error 28" in text or "No space" in text
            code = errno.ENOSPC if full else getattr(error, "errno", None)
            raise OSError(code, os.strerror(code) if code else text) from error


def load_tensors(path: Path) -> State:
    """Read what `save_tensors` wrote.

    Raises:
        StateError: not there, cut off, altered, or of a newer schema.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StateError(f"{path} cannot be read ({error}); it is cut off or damaged") from error
    if meta.get("schema", 0) > SCHEMA:
        raise StateError(
            f"{path} has state schema {meta['schema']}, this certbench reads {SCHEMA}: update it, "
            "or start over with --fresh"
        )
    if meta.get("sha256") != _digest(tensors):
        raise StateError(f"{path} is damaged: its tensors do not match their hash")
    return State(meta, tensors)


def read_meta(path: Path) -> dict[str, Any] | None:
    """The JSON part of a state file, cheaply and without torch; None where there is none to read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            meta = json.loads((file.metadata() or {})["meta"])
            return meta if isinstance(meta, dict) else None
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, each with memory of its own: what safetensors takes."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        storage = value.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size()
        if shared and value.numel():
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        plain[name] = value
    return plain


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over (name, dtype, shape, little-endian bytes), sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_sha256(net: nn.Module) -> str:
    """Hash of every parameter and buffer: (name, dtype, shape, bytes) sorted by name."""
    return _digest(net_tensors(net))


def net_tensors(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of `state_dict`.

    Raises:
        StateError: the net keeps something else in its state; all of it must be tensors (a p is a buffer).
    """
    import torch

    found = dict(net.state_dict())
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise StateError(
                f"{type(net).__name__} keeps {name} as {kind}; a net's state must be tensors (use a buffer)"
            )
    return found


def load_net(net: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors into a net, bit for bit.

    Raises:
        StateError: names or shapes differ.
    """
    try:
        net.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise StateError(f"{where} does not fit this recipe's network: {first}; start over with --fresh") from error


class StateStore:
    """The states of one run in its folder: state-<iteration>.safetensors, the newest two.

    Args:
        folder: the run's folder.
        identity: JSON fields that a state must agree on to be continued.
        every_s: seconds between saves; longer where a save itself takes long.
        code: the code that trains from now on, kept with every state; `StateStore.code` lists all that ever did.
        warn: called with one line about anything unexpected that was mended.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        every_s: float = SAVE_EVERY_S,
        code: Mapping[str, Any] | None = None,
        warn: Any = lambda text: None,
    ) -> None:
        self.folder = folder
        self.code = [dict(code)] if code else []
        self.identity = json.loads(json.dumps(identity))  # as files hold it: a tuple comes back as a list
        self.every_s = every_s
        self.warn = warn
        self._next = time.monotonic() + every_s

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._next

    def save(self, iteration: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write the state after `iteration` steps, then forget all but the newest two.

        Raises:
            FileError: it cannot be written; the older states are intact.
        """
        start = time.monotonic()
        content = {**meta, "schema": SCHEMA, "identity": self.identity, "code": self.code, "iteration": iteration}
        save_tensors(self.folder / f"state-{iteration:09d}.safetensors", tensors, content)
        for old in self._files()[KEEP:]:
            remove(old)
        took = time.monotonic() - start
        self._next = time.monotonic() + max(self.every_s, SAVE_SHARE * took)

    def load(self) -> State | None:
        """The newest state that can be read, or None.

        Raises:
            StateError: it belongs to another cell, or to a newer certbench.
        """
        for path in self._files():
            meta = read_meta(path)
            if meta is not None:
                self._check(path, meta)
            try:
                state = load_tensors(path)
                self._continue_from(state.meta.get("code", []))
                return state
            except StateError as error:
                if meta is not None and meta.get("schema", 0) > SCHEMA:
                    raise
                self.warn(f"{error}; going back to the one before")
        return None

    def _continue_from(self, before: list[dict[str, Any]]) -> None:
        if before and self.code and before[-1] != self.code[-1]:
            self.warn("the code has changed since this state was saved; the record will name both")
        self.code = [*before, *(one for one in self.code if one not in before[-1:])]

    def clear(self) -> None:
        """Forget every state and temporary file."""
        for path in [*self._files(), *self.folder.glob(f"{TEMPORARY}*")]:
            remove(path)

    def tidy(self) -> None:
        """Remove temporary files that a killed process left; only while holding the lock."""
        for path in self.folder.glob(f"{TEMPORARY}*"):
            remove(path)

    def check(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Refuse the file of another cell, naming the first field that differs."""
        self._check(path, meta)

    def _check(self, path: Path, meta: Mapping[str, Any]) -> None:
        if meta.get("schema", 0) > SCHEMA:
            raise StateError(
                f"{path} has state schema {meta['schema']}, this certbench reads {SCHEMA}: update it, "
                "or start over with --fresh"
            )
        theirs = meta.get("identity", {})
        for field, ours in self.identity.items():
            if theirs.get(field) != ours:
                raise StateError(
                    f"{path} belongs to another run: its {field} is {_brief(theirs.get(field))}, "
                    f"this run's is {_brief(ours)}; start over with --fresh or choose another --runs-dir"
                )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.safetensors"), reverse=True)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
