"""How and where cells run: what a parent process hands to its workers."""

from __future__ import annotations

from dataclasses import dataclass

from .state import SAVE_EVERY_S


@dataclass(frozen=True)
class Options:
    """How and where a cell runs; none of it changes what the cell is, only how hard its net is attacked."""

    results: str
    runs_dir: str
    device: str = "cpu"  # "cpu" or "cuda:N"
    threads: int = 1
    data_root: str | None = None
    offline: bool = False
    fresh: bool = False
    save_every_s: float = SAVE_EVERY_S
    autoattack: bool = False  # AutoAttack too; a record without it is evaluated again
