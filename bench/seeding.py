"""Stateless seeds: every random choice is a function of named integers, so a resumed run needs no generator state."""

from __future__ import annotations

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from its parts, e.g. seed_of(run_seed, "order", epoch); the same parts give the same seed."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
