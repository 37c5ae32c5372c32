"""The held-out validation split: stratified, and the same for every run, machine and library version."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

SPLIT_SEED = 20_210_205  # a constant of the suite, never a run's seed: tuning and testing see the same split for ever


def stratified(labels: NDArray[Any], n_held: int, *, seed: int = SPLIT_SEED) -> tuple[Indices, Indices]:
    """Split positions 0..N-1 so that every class keeps its share.

    Args:
        labels: [N] integers from 0.
        n_held: how many to hold out.

    Returns:
        kept, held: ascending positions. Each class gives floor(n_held * count / N), the rest goes to the classes with
        the largest remainders (the lower class first on a tie).
    """
    counts = np.bincount(labels.astype(np.int64))
    exact = counts * n_held
    quota = exact // len(labels)
    remainder = exact - quota * len(labels)
    short = n_held - int(quota.sum())
    quota[np.argsort(-remainder, kind="stable")[:short]] += 1
    rank = mixed_bits(np.arange(len(labels), dtype=np.uint64), seed)
    held = [
        members[np.argsort(rank[members], kind="stable")[: quota[c]]]
        for c in range(len(counts))
        if len(members := np.flatnonzero(labels == c))
    ]
    held_sorted = np.sort(np.concatenate(held)).astype(np.int64)
    kept = np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_sorted, assume_unique=True)
    return kept, held_sorted


def mixed_bits(index: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """splitmix64 of `index` from state `seed`: 64 well-mixed bits per index.

    Pure integer arithmetic, since numpy's and torch's random streams may change between versions.
    """
    with np.errstate(over="ignore"):  # wrapping is the point
        z = index * np.uint64(0x9E3779B97F4A7C15) + np.uint64((seed * 0xD1342543DE82EF95 + 1) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def index_hash(index: NDArray[Any]) -> str:
    """sha256 of positions as little-endian int64: what the record keeps of a split."""
    return hashlib.sha256(np.ascontiguousarray(index, dtype="<i8").tobytes()).hexdigest()
