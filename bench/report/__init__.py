"""Reports: records and published numbers in, tables, figures, one page and README blocks out. Torch-free, clock-free.

from bench.report import build
build(Path("results"), Path("reports"), readme=Path("README.md"))
"""

from __future__ import annotations

from .assemble import BuildResult, build

__all__ = ["BuildResult", "build"]
