"""Seeds are functions of their parts, of nothing else, and stay what they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bench import seeding
from bench.seeding import seed_of

PARTS = st.lists(st.integers(-(2**70), 2**70) | st.text(), min_size=1, max_size=4)


@given(PARTS)
def test_seed_fits_every_generator(parts: list[int | str]) -> None:
    assert 0 <= seed_of(*parts) < 2**63


@given(PARTS, PARTS)
def test_other_parts_give_another_seed(a: list[int | str], b: list[int | str]) -> None:
    """A collision of 63 bits would be news; a clumsy joining of parts would not."""
    separated = not any("\0" in part for part in (*a, *b) if isinstance(part, str))
    assert a == b or not separated or seed_of(*a) != seed_of(*b)


def test_number_and_its_text_are_different_parts() -> None:
    assert seed_of(1) != seed_of("1") and seed_of(1, 23) != seed_of(12, 3)


def test_seeds_stay_what_they_were() -> None:
    """Changing them changes every run ever recorded."""
    assert seed_of(0, "step", 7) == 903526471665134520


def test_seed_is_the_same_in_every_process() -> None:
    root = Path(seeding.__file__).parents[1]
    code = "from bench.seeding import seed_of; print(seed_of(3, 'order', 1))"
    for hash_seed in ("1", "2"):
        output = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            cwd=root,
            capture_output=True,
            check=True,
            text=True,
        )
        assert int(output.stdout) == seed_of(3, "order", 1)
