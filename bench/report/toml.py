"""Reading TOML on every supported Python: tomllib came with 3.11."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_parser: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def read(file: Path, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """The content of a file; raises OSError or ValueError."""
    with file.open("rb") as handle:
        return dict(_parser.load(handle, parse_float=parse_float))


def loads(text: str) -> dict[str, Any]:
    """The content of a text; raises ValueError."""
    return dict(_parser.loads(text))
