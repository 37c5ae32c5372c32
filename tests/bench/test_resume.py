"""Real processes that are really killed: what they leave continues to the same bits as an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from bench import registry
from bench import run as running
from bench.cell import plan
from bench.environment import worker_environment
from bench.options import Options
from bench.run import run
from bench.trained import WEIGHTS

PLUGIN = Path(__file__).with_name("tiny_method.py")
SLOW_S = 60.0  # no test waits longer for a process to reach a point
SLOWED = {"epochs": "3", "batch_size": "64", "sleep_s": "0.05"}  # 24 steps, over a second
ENDLESS = {"epochs": "1000", "batch_size": "64", "sleep_s": "0.02"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    registry.add_file(PLUGIN)
    yield
    torch.set_num_threads(before)


def cell_of(changes):
    return plan(["tiny"], ["synthetic"], changes=changes)[0][0]


def options(folder, **more):
    return Options(results=str(folder / "results"), runs_dir=str(folder / "runs"), save_every_s=0.0, **more)


class Worker:
    """A real worker process on a cell."""

    def __init__(self, planned, where):
        self.folder = Path(where.runs_dir) / planned.cell.folder
        self.events, write_end = os.pipe()
        job = {
            "cell": planned.cell.as_record(),
            "options": asdict(where),
            "plugins": [str(PLUGIN)],
            "events": write_end,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
            env=worker_environment(1),
        )
        os.close(write_end)
        self.process.stdin.write(json.dumps(job).encode())
        self.process.stdin.close()

    def wait_for(self, name):
        """Until a file of this name, or one that sorts after it, appears in the run's folder."""
        kind, end = name.partition("-")[0], time.monotonic() + SLOW_S
        while not any(path.name >= name for path in self.folder.glob(f"{kind}*")):
            assert self.process.poll() is None, self.process.stdout.read().decode()
            assert time.monotonic() < end, f"no {name}"
            time.sleep(0.002)

    def end(self, *numbers):
        """Send signals and wait; returns the exit code."""
        for number in numbers:
            self.process.send_signal(number)
        self.process.stdout.read()
        os.close(self.events)
        return self.process.wait(SLOW_S)


@pytest.fixture
def start():
    """Starts workers, and sees to it that none outlives the test."""
    workers = []

    def begin(planned, where):
        workers.append(Worker(planned, where))
        return workers[-1]

    yield begin
    for worker in workers:
        if worker.process.returncode is None:
            worker.process.kill()
            worker.process.wait()
        worker.process.stdout.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run."""
    registry.add_file(PLUGIN)
    folder = tmp_path_factory.mktemp("whole")
    return run(cell_of(SLOWED), options(folder))


def same(record, whole):
    """Everything but times and how often it was resumed."""

    def plain(r):
        history = [{k: v for k, v in row.items() if k != "s"} for row in r.data["training"]["history"]]
        counts = {k: v for k, v in r.data["evaluation"].items() if k.startswith("n")}
        return r.data["weights_sha256"], history, counts

    return plain(record) == plain(whole)


def test_killed_in_training(start, whole, tmp_path):
    """kill -9 after some state was written: the newest whole one is continued, bit for bit."""
    planned = cell_of(SLOWED)
    worker = start(planned, options(tmp_path))
    worker.wait_for("state-000000003")
    assert worker.end(signal.SIGKILL) == -signal.SIGKILL
    record = run(planned, options(tmp_path))
    assert record.data["training"]["resumes"] == 1
    assert same(record, whole)


def test_killed_in_evaluation(start, whole, tmp_path, monkeypatch):
    """kill -9 once the weights are there: nothing is trained again."""
    planned = cell_of(SLOWED)
    worker = start(planned, options(tmp_path))
    worker.wait_for(WEIGHTS)
    worker.end(signal.SIGKILL)
    monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("it trained again"))
    assert same(run(planned, options(tmp_path)), whole)


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM,), (signal.SIGUSR2,), pytest.param((signal.SIGINT,), marks=pytest.mark.slow)]
)
def test_terminated_in_training(start, whole, tmp_path, signals):
    """SIGTERM, SIGINT or Slurm's warning: the step is finished, the state saved, exit code 4."""
    planned = cell_of(SLOWED)
    where = options(tmp_path)
    slow = Options(**{**asdict(where), "save_every_s": 1e9})  # so that only the stop itself can have saved
    worker = start(planned, slow)
    read_until(worker.events, b'"name": "train"')
    assert worker.end(*signals) == 4
    assert len(list(worker.folder.glob("state-*"))) == 1
    assert same(run(planned, where), whole)


def test_told_twice_at_once_it_still_saves(start, whole, tmp_path):
    """A signal to a whole process group comes once from there and once from the launcher, which passes it on."""
    planned = cell_of(SLOWED)
    where = options(tmp_path)
    worker = start(planned, Options(**{**asdict(where), "save_every_s": 1e9}))
    read_until(worker.events, b'"name": "train"')
    assert worker.end(signal.SIGTERM, signal.SIGINT, signal.SIGTERM) == 4
    assert len(list(worker.folder.glob("state-*"))) == 1
    assert same(run(planned, where), whole)


@pytest.mark.slow
def test_told_again_later_it_ends_at_once(start, tmp_path):
    """Its step takes ten minutes: the first stop would wait for it, the second does not."""
    worker = start(cell_of({"sleep_s": "600"}), options(tmp_path))
    read_until(worker.events, b'"name": "train"')
    worker.process.send_signal(signal.SIGTERM)
    time.sleep(6)
    assert worker.process.poll() is None
    assert worker.end(signal.SIGTERM) == 4


@pytest.mark.slow
def test_a_worker_without_its_parent_saves_and_stops(start, tmp_path):
    """A parent that was killed cannot stop its worker; the worker notices."""
    worker = start(cell_of(ENDLESS), Options(**{**asdict(options(tmp_path)), "save_every_s": 1e9}))
    read_until(worker.events, b'"name": "train"')
    os.close(worker.events)
    worker.process.stdout.read()
    assert worker.process.wait(SLOW_S) == 4
    assert list(worker.folder.glob("state-*"))


def read_until(fd, text):
    """Read events until one contains `text`."""
    seen = b""
    while text not in seen:
        data = os.read(fd, 1 << 16)
        assert data, seen
        seen += data


@pytest.mark.slow
def test_killed_again_and_again_at_random_times(start, whole, tmp_path):
    """Ten kills at random times, in training, evaluation and writing alike, then a normal end: the same bits."""
    planned, chance = cell_of(SLOWED), random.Random(0)
    for _ in range(10):
        worker = start(planned, options(tmp_path))
        try:
            read_until(worker.events, b'"phase"')
        except AssertionError:  # it had finished
            break
        time.sleep(chance.uniform(0, 0.4))
        worker.end(signal.SIGKILL)
    assert same(run(planned, options(tmp_path)), whole)
