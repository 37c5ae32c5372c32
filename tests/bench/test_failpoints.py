"""Every disk call of a run may be its last, or may fail: what is left continues to the same bits (P41, P43)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import record
from bench.environment import worker_environment

HERE = Path(__file__).parent
BATCH = "512"  # steps of the tiny cell, and with them saved states, are few
MOST_CALLS = 400


class Process:
    """`failpoints.py`, asked line by line."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "failpoints.py"), str(HERE / "tiny_method.py"), BATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=worker_environment(1),
        )

    def __call__(self, folder, mode="none", k=0):
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), "mode": mode, "k": k}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def attempt():
    process = Process()
    yield process
    process.close()


@pytest.fixture(scope="module")
def whole(attempt, tmp_path_factory):
    """The undisturbed run: its result, and how many calls it makes."""
    folder = tmp_path_factory.mktemp("whole")
    answer = attempt(folder, "kill", 10**9)
    assert answer["ended"] == "finished"
    return answer


def check(attempt, folder, mode, k, whole):
    """Fail at call k, look at what is left, run again to the end; returns what the failing attempt answered."""
    answer = attempt(folder, mode, k)
    assert answer["ended"] in (("killed", "finished") if mode == "kill" else ("refused", "finished")), answer
    if answer["ended"] == "refused":
        assert "\n" not in answer["message"] and "No space left" in answer["message"], answer
    records, problems = record.scan(folder / "results") if (folder / "results").exists() else ([], [])
    assert not problems, (k, problems)  # nothing half-written is ever seen as a record
    assert all(r.check_arrays() is None for r in records)
    again = attempt(folder)
    assert again["ended"] == "finished", (k, again)
    assert again["result"] == whole["result"], k
    left = [p.name for p in (folder / "runs").rglob(".tmp-*")]
    assert not left, (k, left)
    return answer


def test_a_few_calls_of_a_run_may_be_its_last(attempt, whole, tmp_path):
    """In training and near the end of writing the record; the long version tries every call."""
    assert whole["calls"] > 20
    for share in (0.3, 0.95):
        k = max(1, round(share * whole["calls"]))
        assert check(attempt, tmp_path / f"{k}", "kill", k, whole)["ended"] == "killed"


def test_a_disk_that_fills_up_stops_with_one_line_and_loses_nothing(attempt, whole, tmp_path):
    for share in (0.5,):
        k = max(1, round(share * whole["calls"]))
        check(attempt, tmp_path / f"{k}", "full", k, whole)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "full"])
def test_every_call_of_a_run_may_fail(attempt, whole, tmp_path, mode):
    """k = 1, 2, ... until a run comes to its end without having met its failure."""
    for k in range(1, MOST_CALLS):
        answer = check(attempt, tmp_path / f"{k}", mode, k, whole)
        if answer["ended"] == "finished" and not answer["fired"]:
            assert k > 20
            print(f"{k - 1} calls, each of them failed once ({mode})")
            return
    pytest.fail(f"more than {MOST_CALLS} calls")
