"""A process that draws figures for `draw.Painter`: one JSON task on stdin, files into the folder it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .draw import render
from .figures import Spec


def main() -> None:
    """Draw every specification of the task; any failure ends the process with an error code."""
    import matplotlib.figure  # noqa: F401 - while whoever started us still reads records

    task = json.loads(sys.stdin.buffer.read() or b'{"specs": []}')
    for item in task["specs"]:
        spec = Spec(**item, csv_columns=(), csv_rows=(), records=())
        for form, content in render(spec, task["formats"]).items():
            Path(task["folder"], f"{spec.name}.{form}").write_bytes(content)


if __name__ == "__main__":
    main()
