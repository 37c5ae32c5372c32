"""The held-out split: stratified, disjoint, the same for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.data.splits import index_hash, stratified


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.floats(0, 1))
def test_kept_and_held_are_a_partition_of_the_positions(labels, share):
    n_held = int(share * len(labels))
    kept, held = stratified(np.array(labels), n_held)
    assert len(held) == n_held and sorted([*kept, *held]) == list(range(len(labels)))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.floats(0, 1))
def test_every_class_keeps_its_share_to_within_one(labels, share):
    n_held = int(share * len(labels))
    _, held = stratified(np.array(labels), n_held)
    counts, got = np.bincount(labels, minlength=7), np.bincount(np.array(labels)[held], minlength=7)
    assert (np.abs(got - counts * n_held / len(labels)) < 1).all()


def test_the_split_is_the_same_for_ever():
    """A change here changes every validation number; the hash was taken when the split was first used."""
    _, held = stratified(np.arange(60_000) % 10, 5_000)
    assert index_hash(held) == "94a8665343daafbc3c76411a0d587053ac6a659370a88e8b74f1b79566653e90"


def test_held_out_positions_are_spread_over_the_whole_split():
    """A split by position would follow whatever order the files have."""
    _, held = stratified(np.arange(10_000) % 10, 1_000)
    assert abs(held.mean() - 5_000) < 300 and len(set(np.diff(held))) > 20


def test_another_seed_gives_another_split():
    labels = np.arange(1_000) % 10
    assert not np.array_equal(stratified(labels, 100)[1], stratified(labels, 100, seed=1)[1])
