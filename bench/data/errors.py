"""What can go wrong with data, as one line for the user: the file, what was expected, the command that mends it."""

from __future__ import annotations

import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BenchError, UsageError


class DataError(BenchError):
    """A data set is missing, damaged, or not what it says it is. Exit code 1."""


class UnknownDatasetError(DataError, UsageError):
    """No data set of that name. Exit code 2."""


class UnexpectedError(ValueError):
    """Raised inside `reading`: the file can be read, but holds something else than expected; the words say what."""


# everything the standard library, numpy and Pillow raise on a damaged file; MemoryError belongs here because sizes are
# checked before they are believed, and what is left is a file that lies in some new way
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    tarfile.TarError,
    pickle.UnpicklingError,
)


@contextmanager
def reading(name: str, path: Path, mend: str) -> Iterator[None]:
    """Turn any complaint about one file of data set `name` into a DataError that names the file and the mend."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{name}: {shown(path)}: {_reason(error)}; {mend}") from error


def shown(path: Path) -> str:
    """A path for a message: as it is, or quoted where it holds newlines or terminal escapes."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _reason(error: BaseException) -> str:
    """One short line; the exception's own words where they are for humans."""
    words = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    if isinstance(error, UnexpectedError):
        return words
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror.lower()})"
    return f"is damaged or truncated ({words[:160] or type(error).__name__})"
