"""Cells handed to an engine for other machines, here to its stand-in that runs processes on this one."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import executor, launch, registry
from bench.cell import plan
from bench.child import Task
from bench.errors import UsageError
from bench.executor import Executor, settings_of
from bench.options import Options

PLUGIN = Path(__file__).with_name("tiny_method.py")


def tasks_in(folder, fates):
    registry.add_file(PLUGIN)
    options = Options(results=str(folder / "results"), runs_dir=str(folder / "runs"))
    return [
        Task(plan(["tiny"], ["synthetic"], changes=changes)[0][0].cell, options, name, (str(PLUGIN),))
        for name, changes in fates.items()
    ]


def run(engine, tasks, **more):
    said, seen = [], []
    outcomes, cut = engine.run(tasks, 1, device="cpu", on_outcome=seen.append, say=said.append, **more)
    assert sorted(map(id, seen)) == sorted(map(id, outcomes)) and not cut
    return outcomes, said


def test_a_missing_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match="pip install submitit"):
        run(Executor("local"), tasks_in(tmp_path, {"good": {"epochs": "1"}}))


def test_a_machine_without_slurm_says_so_in_one_line(tmp_path):
    pytest.importorskip("submitit", reason="the extra [slurm] is not installed")
    with pytest.raises(UsageError, match=r"--executor slurm: .*srun") as error:
        run(Executor("slurm"), tasks_in(tmp_path, {"good": {"epochs": "1"}}))
    assert "\n" not in str(error.value)


def test_cells_of_jobs_end_as_they_do_here(tmp_path):
    """Two jobs: one cell finishes, one diverges in the same job, one kills its process in the other."""
    pytest.importorskip("submitit", reason="the extra [slurm] is not installed")
    fates = {"good": {"epochs": "1"}, "nan": {"nan_at": "3"}, "crash": {"crash_at": "2"}}
    outcomes, said = run(Executor("local", cells_per_job=2), tasks_in(tmp_path, fates))
    assert [o.code for o in outcomes] == [0, 3, 1]
    assert outcomes[0].record is not None and outcomes[0].record.clean > 0
    assert "SIGABRT" in outcomes[2].message
    assert said[0].startswith("3 cells in 2 local jobs")


def test_a_job_that_dies_is_a_failure_of_each_of_its_cells(tmp_path):
    """Killed by the cluster, say: there is no result, and the last line of what the engine knows is the reason."""

    class Died:
        job_id = "17"
        paths = SimpleNamespace(stderr="jobs/17.err")

        def result(self):
            raise RuntimeError("Job 17 was killed\n  by the node's memory limit\n")

    outcomes = executor._collect(Died(), tasks_in(tmp_path, {"good": {}, "nan": {"nan_at": "3"}}))
    assert [o.code for o in outcomes] == [1, 1]
    assert outcomes[0].message == "its job 17 died: by the node's memory limit (log: jobs/17.err)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_us_stops_the_jobs_of_this_machine(tmp_path, monkeypatch, number):
    """Ctrl-C and the SIGTERM of a batch system alike; a job left behind would hold its cell's lock."""
    process = subprocess.Popen(["sleep", "600"])
    job = SimpleNamespace(job_id=str(process.pid), done=lambda: process.poll() is not None)
    monkeypatch.setattr(Executor, "_engine", lambda *_: None)
    monkeypatch.setattr(Executor, "_submit", lambda *_: [job])
    tasks, seen, said = tasks_in(tmp_path, {"slow": {"epochs": "1"}}), [], []
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs deaf to it
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        outcomes, cut = Executor("local").run(tasks, 1, device="cpu", on_outcome=seen.append, say=said.append)
        assert cut and [o.code for o in outcomes] == [4] and seen == outcomes
        assert process.wait(timeout=30) == -signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGINT, ignored)
        process.kill()


def test_nothing_to_do_needs_no_engine(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run(Executor("slurm"), [])[0] == []


def test_settings_are_passed_on_with_numbers_as_numbers():
    assert settings_of(["slurm_partition=gpu", "gpus_per_node=1"]) == {"slurm_partition": "gpu", "gpus_per_node": 1}
    with pytest.raises(UsageError, match="--job gpu: write --job KEY=VALUE"):
        settings_of(["gpu"])


def test_fresh_is_done_once_and_not_by_every_job_that_is_queued_again(tmp_path, monkeypatch):
    (task,) = tasks_in(tmp_path, {"good": {"epochs": "1"}})
    folder = Path(task.options.runs_dir) / task.cell.folder
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"of an earlier run")
    fresh = replace(task, options=replace(task.options, fresh=True))
    given = []

    def submit(self, engine, batches, threads, device):
        given.extend(t for batch in batches for t in batch)
        raise UsageError("no engine here")

    monkeypatch.setattr(Executor, "_engine", lambda *_: None)
    monkeypatch.setattr(Executor, "_submit", submit)
    with pytest.raises(UsageError):
        run(Executor("slurm"), [fresh])
    assert [t.options.fresh for t in given] == [False]
    assert not (folder / "weights.safetensors").exists() and (folder / "restarted").exists()


def test_fresh_destroys_nothing_where_there_is_no_engine(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    (task,) = tasks_in(tmp_path, {"good": {"epochs": "1"}})
    weights = Path(task.options.runs_dir) / task.cell.folder / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"of an earlier run")
    with pytest.raises(UsageError, match="pip install submitit"):
        run(Executor("slurm"), [replace(task, options=replace(task.options, fresh=True))])
    assert weights.exists() and not weights.with_name("restarted").exists()


def test_a_job_has_the_time_of_all_its_cells_and_paths_that_hold_elsewhere(tmp_path, monkeypatch):
    """As submitit is told: minutes for the cells and for starting each; no path depends on where one stands."""
    told, handed = {}, []

    class Engine:
        def __init__(self, folder, cluster):
            pass

        def update_parameters(self, **settings):
            told.update(settings)

        def map_array(self, job, batches):
            handed.extend(batches)
            return []

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Engine))
    monkeypatch.chdir(tmp_path)
    tasks = [replace(t, time_limit_s=600.0) for t in tasks_in(Path("."), {"a": {"epochs": "1"}, "b": {"epochs": "2"}})]
    slurm = Executor("slurm", cells_per_job=2, at_once=3)
    slurm._submit(slurm._engine(tmp_path, tasks, 2, 8), [tasks], 8, "cpu")
    assert (told["timeout_min"], told["cpus_per_task"], told["slurm_array_parallelism"]) == (30, 8, 3)
    (batch,) = handed
    assert all(Path(p).is_absolute() for t in batch for p in (t.options.results, t.options.runs_dir, *t.plugins))
    slurm._engine(tmp_path, [tasks[0], replace(tasks[1], time_limit_s=None)], 2, 8)
    assert told["timeout_min"] == executor.DAY_MIN


def test_jobs_of_this_machine_are_no_more_than_asked_for_and_those_of_a_cluster_queue():
    local, slurm = Executor("local", at_once=2), Executor("slurm", at_once=2)
    assert (local._cells_per_job(7), local.jobs_at_once(7)) == (4, 2)
    assert (slurm._cells_per_job(7), slurm.jobs_at_once(7)) == (1, 2)
    assert Executor("local").jobs_at_once(7) == 7 and Executor("local", cells_per_job=3).jobs_at_once(7) == 3


def test_a_job_that_is_cut_short_saves_is_queued_again_and_goes_on(tmp_path, monkeypatch):
    """The engine's warning to a real job; no state is due for an hour, so what continues was saved on the warning."""
    pytest.importorskip("submitit", reason="the extra [slurm] is not installed")
    monkeypatch.setenv("TINY_ANNOUNCES", "1")
    changes = {"epochs": "3", "batch_size": "64", "sleep_s": "0.1"}  # 24 steps
    (task,) = tasks_in(tmp_path, {"good": changes})
    task = replace(task, options=replace(task.options, save_every_s=3600.0))
    local = Executor("local")
    (job,) = local._submit(local._engine(tmp_path / "jobs", [task], 1, 1), [[task]], 1, "cpu")
    output = Path(task.options.runs_dir) / task.cell.folder / "stdout"
    wait_until(lambda: output.exists() and "at work" in output.read_text(), "a training step")
    os.kill(only_child(int(job.job_id)), signal.SIGUSR2)
    wait_until(job.done, "the end of the job")
    (outcome,) = executor._collect(job, [task])
    assert outcome.code == 0, outcome.message
    assert outcome.record.data["training"]["resumes"] == 1


def wait_until(reached, what):
    end = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def only_child(pid):
    """Of a process with one: submitit's controller and the job it runs."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("needs /proc")
    wait_until(lambda: children.read_text().split(), "the job's process")
    (child,) = children.read_text().split()
    return int(child)


@pytest.mark.parametrize(("engine", "waits"), [("slurm", True), ("local", False)])
def test_a_job_of_a_cluster_that_is_told_to_end_waits_for_its_end(tmp_path, monkeypatch, engine, waits):
    """A preempted Slurm job is queued again if it is killed, and is over if it returns."""
    slept = []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", engine)
    monkeypatch.setattr(executor.time, "sleep", slept.append)
    monkeypatch.setattr(launch, "launch", lambda *a, **k: ([], True))
    assert executor.Job(1, "cpu")([]) == []
    assert slept == [executor.KILL_WAIT_S] * waits
