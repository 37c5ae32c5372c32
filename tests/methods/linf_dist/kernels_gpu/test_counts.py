"""Machine code for sm_90, compiled without a device: the inner loops stay near the floors of the design notes."""

import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch's CUDA wheels")

from methods.linf_dist.kernels.gpu import counts


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compiled kernels go to a folder of this run, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


# Just above what Triton 3.7.1 makes. The arithmetic alone: 2, 6, 4, 6, 7, 6 and 8; the rest is loads (3 of 128 bits per
# 32 elements) and a few additions per trip. A layout that sends operands through shared memory costs 0.3 or more.
LIMITS = {"inf, argmax": 2.25, "bounds": 6.25, "p = 8": 4.2, "p = 8, both gradients": 7.6}
SLOW_LIMITS = {"inf": 2.15, "p = 8, one gradient": 6.2, "real p": 6.2, "real p, both gradients": 9.0}


@pytest.mark.parametrize(("name", "limit"), [
    *LIMITS.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW_LIMITS.items())
])
def test_inner_loops_stay_near_their_floor(name: str, limit: float) -> None:
    """Triton chooses layouts by itself: one load more per element would double the time unnoticed."""
    row = counts.count(name)
    assert row.per_element <= limit, row.opcodes
    assert row.spills <= 0.01, row.opcodes


@pytest.mark.parametrize("name", ["inf, argmax", "bounds", pytest.param("inf", marks=pytest.mark.slow)])
def test_certificates_neither_flush_nor_approximate_nor_drop_nan(name: str) -> None:
    listing = counts.listing(name)
    for line in listing.splitlines():
        assert not any(word in line for word in (".FTZ", "MUFU", "FFMA", "FMUL")), line
        assert "FMNMX" not in line or ".NAN" in line, line
    assert listing.count("FADD") >= 32


def test_lists_at_infinity_neither_flush_nor_approximate() -> None:
    listing = counts.listing("lists, inf, argmax")
    assert not any(word in listing for word in (".FTZ", "MUFU", "FFMA", "FMUL"))
    assert "FMNMX.NAN" in listing


@pytest.mark.slow
@pytest.mark.parametrize("name", counts.names())
def test_every_kernel_compiles_for_sm_90(name: str) -> None:
    """The interpreter accepts what the compiler does not."""
    assert counts.count(name).registers <= 255


@pytest.mark.parametrize(("name", "unit"), [
    ("products in bf16x3, values", "F32.BF16"),
    pytest.param("products in tf32, values", "F32.TF32", marks=pytest.mark.slow),
])
def test_products_run_on_the_matrix_units_with_float32_sums(name: str, unit: str) -> None:
    listing = counts.listing(name)
    assert "HGMMA" in listing and unit in listing


@pytest.mark.slow
def test_products_in_float32_stay_off_the_matrix_units() -> None:
    assert not re.search(r"\bH?G?MMA\.", counts.listing("products in float32, values"))
