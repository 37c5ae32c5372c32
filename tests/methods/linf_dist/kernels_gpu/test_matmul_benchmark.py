"""The rows of `bench kernels --matmul`: complete, in JSON, and right."""

import json
import math
import time

import pytest
from click.testing import CliRunner

from bench.cli import main
from methods.linf_dist import kernels
from methods.linf_dist.kernels import matmul_benchmark
from methods.linf_dist.kernels.matmul_formats import FORMATS

KEYS = {"device", "pass", "p", "batch", "n_in", "n_out", "format", "inputs", "flagged", "max_rel_error", "seconds",
        "ratio_to_direct"}
# Of a distance, and of a gradient entry relative to the largest: see test_matmul.py; the latter is the stricter norm.
TOLERANCE = {("forward", "float32"): 3e-4, ("forward", "tf32"): 5e-3, ("forward", "bf16x3"): 1e-3,
             ("forward_backward", "float32"): 3e-4, ("forward_backward", "tf32"): 2e-2,
             ("forward_backward", "bf16x3"): 2e-3}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul_benchmark, "CPU_SHAPES", ((24, 40, 16),))
        return matmul_benchmark.run(0.0)


def test_every_format_exponent_input_and_pass_has_a_row(rows: list[dict[str, object]]) -> None:
    found = {(r["pass"], r["p"], r["format"], r["inputs"]) for r in rows}
    assert found == {(w, p, f, i) for w in ("forward", "forward_backward") for p in ("8", "10", "12") for f in FORMATS
                     for i in ("gaussian", "identity", "cancelling")}
    assert len(rows) == len(found)


def test_rows_are_json_with_the_promised_keys(rows: list[dict[str, object]]) -> None:
    for row in json.loads(json.dumps(rows, allow_nan=False)):
        assert row.keys() == KEYS
        assert row["device"] == "cpu" and (row["batch"], row["n_in"], row["n_out"]) == (24, 40, 16)
        assert row["seconds"] > 0 and row["ratio_to_direct"] > 0 and 0 <= row["flagged"] <= 1


def test_errors_are_those_of_the_formats(rows: list[dict[str, object]]) -> None:
    for row in rows:
        error = row["max_rel_error"]
        assert isinstance(error, float) and math.isfinite(error)
        assert error <= TOLERANCE[str(row["pass"]), str(row["format"])], row


def test_the_cancelling_inputs_flag_the_outputs_made_to_cancel(rows: list[dict[str, object]]) -> None:
    for row in rows:
        if row["inputs"] == "cancelling":
            assert isinstance(row["flagged"], float) and row["flagged"] >= 0.25, row


def test_an_unknown_kind_of_input_is_refused() -> None:
    with pytest.raises(ValueError, match="gaussian, identity, cancelling"):
        matmul_benchmark.operands("uniform", 2, 3, 4)


def test_it_ends_near_the_time_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no longer fit are timed once, not left out."""
    monkeypatch.setattr(matmul_benchmark, "CPU_SHAPES", ((8, 8, 8),))
    start = time.process_time()
    assert len(matmul_benchmark.run(0.5)) == 54
    assert time.process_time() - start < 30


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_benchmark, "CPU_SHAPES", ((8, 8, 8),))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("small")
def test_the_command_prints_the_rows_as_json() -> None:
    done = CliRunner().invoke(main, ["kernels", "--matmul", "--device", "cpu", "--seconds", "0.1", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["benchmark"]
    assert len(rows) == 54 and all(row.keys() == KEYS for row in rows)


@pytest.mark.usefixtures("small")
def test_the_command_says_that_times_of_an_emulation_mean_nothing() -> None:
    done = CliRunner().invoke(main, ["kernels", "--matmul", "--device", "cpu", "--seconds", "0.1"])
    assert done.exit_code == 0, done.output
    assert "max_rel_error" in done.stdout and "bf16x3" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("seconds and ratio_to_direct mean nothing here")


def test_the_command_names_a_device_without_the_units_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> list[dict[str, object]]:
        raise RuntimeError("matrix products need the Triton kernels on cuda:0: Triton is not installed")

    monkeypatch.setattr(kernels, "benchmark_matmul", refuse)
    done = CliRunner().invoke(main, ["kernels", "--matmul", "--device", "cpu"])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "matrix products need the Triton kernels" in done.output
