"""The per-example arrays of a record: a zip of .npy files with fixed bytes, and the order they must keep.

Written without clock, so equal arrays are equal files; read without pickle, and never larger than n allows.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

DTYPES = {  # every record has these, [n] each
    "label": "int16",
    "index": "int32",  # position in the official split
    "pred": "int16",
    "margin": "float64",
    "radius": "float32",  # certified radius, pixel units, rounded down; 0 if misclassified
    "correct": "bool",
    "robust": "bool",
    "certified": "bool",
}
_PREFIXES = {"bound_": "float64", "survived_": "bool"}  # one per certificate, one per attack
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date a zip can hold
_HEADER = 4096  # more than any .npy header of one dimension


def dtype_of(name: str) -> str | None:
    """The dtype a field is stored in, or None for a name that no record has."""
    if name in DTYPES:
        return DTYPES[name]
    return next((dtype for prefix, dtype in _PREFIXES.items() if name.startswith(prefix)), None)


def pack(arrays: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """The bytes of the .npz and {name: dtype}.

    Raises:
        ValueError: a field is missing or unknown, not [n], not finite where it must be, or would lose digits.
    """
    missing = sorted(set(DTYPES) - set(arrays))
    if missing:
        raise ValueError(f"arrays lack {', '.join(missing)}")
    n = len(arrays["label"])
    stored = {name: _stored(name, np.asarray(arrays[name]), n) for name in sorted(arrays)}
    return archived(stored), {name: str(array.dtype) for name, array in stored.items()}


def archived(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an .npz; equal arrays give equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, arrays[name], version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            info.create_system = 3  # the same bytes on every system
            archive.writestr(info, member.getvalue())
    return out.getvalue()


def unpack(
    raw: bytes, names: Sequence[str], n: int | None, dtypes: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """The named arrays from the bytes of an .npz; n examples each, if n is given.

    Args:
        dtypes: what each must be; default: as in a record.

    Raises:
        ValueError: damaged, a field is missing, or a length is not n.
    """
    found = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = set(archive.namelist())
            for name in names:
                if f"{name}.npy" not in members:
                    raise ValueError(f"no field {name}")
                size = archive.getinfo(f"{name}.npy").file_size
                if n is not None and size > 16 * n + _HEADER:  # before anything is inflated
                    raise ValueError(f"{name} takes {size} bytes, too many for {n} examples")
                wanted = dtype_of(name) if dtypes is None else dtypes[name]
                found[name] = _array(archive.read(f"{name}.npy"), name, n, wanted)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"damaged ({error})") from error
    return found


def check(evaluation: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str | None:
    """The first contradiction between a record's counts and its arrays, or inside them; None if there is none."""
    n = evaluation["n"]
    for name, array in arrays.items():
        if len(array) != n:
            return f"{n} examples but {len(array)} values of {name}"
    correct, robust, certified = arrays["correct"], arrays["robust"], arrays["certified"]
    for key, flags in (("n_correct", correct), ("n_robust", robust), ("n_certified", certified)):
        if evaluation[key] != int(flags.sum()):
            return f"evaluation.{key} = {evaluation[key]} but the array holds {int(flags.sum())}"
    rules = [
        ("certified but not robust", certified & ~robust),
        ("robust but not correct", robust & ~correct),
        ("correct although another class is predicted", correct & (arrays["pred"] != arrays["label"])),
        ("correct with a margin of 0 or less", correct & ~(arrays["margin"] > 0)),
        ("correct is false with the right prediction and a margin above 0",
         ~correct & (arrays["pred"] == arrays["label"]) & (arrays["margin"] > 0)),
        ("of negative radius", arrays["radius"] < 0),
        ("misclassified with a radius above 0", ~correct & (arrays["radius"] > 0)),
    ]  # fmt: skip
    for attack in evaluation["attacks"]:
        survived = arrays.get(f"survived_{attack['name']}")
        if survived is None:
            return f"attack {attack['name']} has no array survived_{attack['name']}"
        rules.append((f"robust but broken by {attack['name']}", robust & ~survived))
    for certificate in evaluation["certificates"]:
        bound = arrays.get(f"bound_{certificate['name']}")
        if bound is None:
            return f"certificate {certificate['name']} has no array bound_{certificate['name']}"
        if certificate["headline"]:
            rules.append((f"certified with a {certificate['name']} bound of 0 or less", certified & ~(bound > 0)))
    for what, bad in rules:
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            return f"{int(bad.sum())} examples are {what}, the first is index {int(arrays['index'][first])}"
    if len(np.unique(arrays["index"])) != n:
        return "some index stands twice: an example was counted more than once"
    return None


def _stored(name: str, array: np.ndarray, n: int) -> np.ndarray:
    wanted = dtype_of(name)
    if wanted is None:
        raise ValueError(f"array {name} is no field of a record (fields: {', '.join(DTYPES)}, bound_*, survived_*)")
    if array.shape != (n,):
        raise ValueError(f"array {name} has shape {list(array.shape)}; one value for each of {n} examples is needed")
    if array.dtype == wanted:
        stored = array
    elif array.dtype.kind in "biu" and np.dtype(wanted).kind in "biu":
        stored = array.astype(wanted)
        if (stored.astype(array.dtype) != array).any():
            raise ValueError(f"array {name} holds values that {wanted} cannot")
    else:  # rounding a radius or a bound may raise it: the caller decides how
        raise ValueError(f"array {name} is {array.dtype}; {wanted} is needed")
    if stored.dtype.kind == "f" and np.isnan(stored).any():
        raise ValueError(f"array {name} holds NaN")
    return np.ascontiguousarray(stored)


def _array(raw: bytes, name: str, n: int | None, wanted: str | None) -> np.ndarray:
    """One .npy from memory. The header is believed only as far as the bytes that follow it."""
    if len(raw) < 10 or raw[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError(f"{name} is not a .npy of version 1.0")
    start = 10 + int.from_bytes(raw[8:10], "little")
    shape, dtype = _header(raw[:start])
    if dtype.hasobject or str(dtype) != wanted:
        raise ValueError(f"{name} is {dtype}, not {wanted}")
    if len(shape) != 1 or shape[0] * dtype.itemsize != len(raw) - start:
        raise ValueError(f"{name} is cut: its header promises shape {list(shape)}")
    if n is not None and shape[0] != n:
        raise ValueError(f"{n} examples but {shape[0]} values of {name}")
    return np.frombuffer(raw, dtype, offset=start)


@lru_cache(maxsize=64)
def _header(raw: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype; the arrays of a thousand records share a handful of headers."""
    stream = io.BytesIO(raw)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype
