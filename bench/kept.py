"""Finished parts of an evaluation on disk: a stop in the middle of hours of attacks costs one attack and not all."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .environment import device_name, method_sha256, source_sha256
from .files import remove, write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

META = "meta"  # the array that holds the JSON as bytes


class Kept:
    """Parts by name, each JSON and arrays, as part-<name>.npz in a folder.

    Args:
        folder: where; None keeps nothing.
        key: what all parts depend on, as JSON; parts of another key are not used and get replaced.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self.folder = folder
        self._key = json.loads(json.dumps(key))
        self._began, self._before = time.monotonic(), 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since this was made, and those of the earlier processes whose parts were loaded."""
        return self._before + time.monotonic() - self._began

    def load(self, name: str, **about: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """A part that was saved under this name with equal `about`; None where there is none to rely on."""
        if self.folder is None:
            return None
        try:
            with np.load(io.BytesIO(self._path(name).read_bytes()), allow_pickle=False) as stored:
                arrays = {field: stored[field] for field in stored.files}
            meta = json.loads(arrays.pop(META).tobytes())
            if meta["key"] != self._key or meta["about"] != json.loads(json.dumps(about)):
                return None
            self._before = max(self._before, float(meta["elapsed"]))
            return meta["content"], arrays
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # absent or damaged
            return None

    def save(self, name: str, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray], **about: Any) -> None:
        """Keep a part. Raises FileError where it cannot be written."""
        if self.folder is None:
            return
        meta = json.dumps({"key": self._key, "about": about, "content": content, "elapsed": self.elapsed}).encode()
        out = io.BytesIO()
        np.savez(out, **{META: np.frombuffer(meta, np.uint8), **arrays})  # type: ignore[arg-type]
        write_atomic(self._path(name), out.getvalue())

    def clear(self) -> None:
        """Forget every part: what they were for is finished."""
        for path in self.folder.glob("part-*.npz") if self.folder else ():
            remove(path)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"part-{name}.npz"


NOTHING = Kept(None, {})


def parts_key(method: object, weights_sha256: str, index: Tensor, eps: str, device: torch.device) -> dict[str, Any]:
    """What the parts of an evaluation depend on besides what each says itself: net, images, radius, code, device."""
    return {
        "weights": weights_sha256,
        "images": hashlib.sha256(index.cpu().numpy().tobytes()).hexdigest(),
        "eps": eps,
        "code": [source_sha256(), method_sha256(method)],
        "device": device_name(device),  # not its number: any card of one kind may go on
    }
