"""Many cells in processes of their own: hostile ones cost their own row, and nothing stays behind."""

import errno
import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from bench import child, registry
from bench import launch as launching
from bench.cell import plan
from bench.child import Outcome, Slot, Task
from bench.launch import exit_code, launch, slots_for
from bench.options import Options
from bench.progress import Progress, Unfailing

PLUGIN = Path(__file__).with_name("tiny_method.py")
LIMIT_S = 5000.0  # of the hanging cell; the clock is put forward when it hangs, however busy the machine is
FATES = {
    "good": {"epochs": "1"},
    "nan": {"nan_at": "3"},
    "crash": {"crash_at": "2"},
    "hang": {"hang_at": "0"},
}


def tasks_in(folder, fates, **more):
    registry.add_file(PLUGIN)
    options = Options(results=str(folder / "results"), runs_dir=str(folder / "runs"))
    made = []
    for name, changes in fates.items():
        (planned,), _ = plan(["tiny"], ["synthetic"], changes=changes)
        limit = LIMIT_S if name == "hang" else None
        made.append(Task(planned.cell, options, name, (str(PLUGIN),), limit))
    return made


class Clock:
    """Time for the launcher, put forward by LIMIT_S once the hanging cell has printed that it hangs."""

    def __init__(self, log):
        self.log, self.late = log, False

    def monotonic(self):
        if not self.late and self.log.exists() and b"sleeper" in self.log.read_bytes():
            self.late = True
        return time.monotonic() + LIMIT_S * self.late


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Four cells on two slots: (outcome by name, log of the one that hung)."""
    folder = tmp_path_factory.mktemp("launch")
    tasks = tasks_in(folder, FATES)
    log = folder / "runs" / tasks[-1].cell.folder / "stdout"
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(log)
        for module in (launching, child):
            patch.setattr(module, "time", clock)
        outcomes, stopped = launch(
            tasks, [Slot("cpu", 1), Slot("cpu", 1)], progress=lambda label: Progress(quiet=True), grace_s=1.0
        )
    assert not stopped
    assert [o.task for o in outcomes] == tasks
    return {o.task.label: o for o in outcomes}, log


def test_a_good_cell_is_finished_whatever_the_others_do(ended):
    good = ended[0]["good"]
    assert good.code == 0 and good.record.n > 0


def test_a_diverged_cell_says_so(ended):
    diverged = ended[0]["nan"]
    assert diverged.code == 3 and "loss of step 3 is not finite" in diverged.message


def test_a_crashed_process_is_a_failed_cell(ended):
    crashed = ended[0]["crash"]
    assert crashed.code == 1 and "SIGABRT" in crashed.message


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried 2 GiB"), OSError("can't allocate memory")]
)
def test_too_little_memory_in_training_says_what_to_set(error):
    """The batch size is part of the recipe: training never changes it, the user does."""
    from bench.worker import _unexpected

    said = _unexpected(error)
    assert "--set batch_size=" in said and "--device" in said and "\n" not in said


@pytest.mark.parametrize(
    ("line", "error"),
    [("torch.nn.functional.softmax(torch.zeros(2), dim=7)", IndexError), ("json.loads('{')", ValueError)],
)
def test_a_fault_of_a_plugin_names_its_line(line, error):
    """The last line of the author's, not that of the library it called."""
    from bench.worker import _unexpected

    source, made = f"import json, torch\n\ndef loss():\n    return {line}\n", {}
    exec(compile(source, "/home/somebody/torch/my_method.py", "exec"), made)
    with pytest.raises(error) as caught:
        made["loss"]()
    said = _unexpected(caught.value)
    assert said.endswith(" (my_method.py:4, in loss)") and "\n" not in said


def test_a_fault_of_a_library_alone_names_nobody():
    """Nothing on the way is the author's: no line of the standard library is blamed."""
    from bench.errors import place

    try:
        raise ValueError
    except ValueError as error:
        error.__traceback__ = None
        assert place(error) == ""


def test_a_hanging_cell_is_ended(ended):
    hung = ended[0]["hang"]
    assert hung.code == 4 and "at the time limit of 1 h 23 min, it did not stop by itself" in hung.message


def test_what_a_cell_started_is_ended_with_it(ended):
    sleeper = int(ended[1].read_text().split("sleeper ")[1].split()[0])
    for _ in range(50):  # a killed process of somebody else's is a zombie for a moment
        if not _is_alive(sleeper):
            return
        time.sleep(0.1)
    pytest.fail(f"process {sleeper} is still there")


def _is_alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in ("Z", "X")
    except OSError:
        return False


def test_messages_are_one_line(ended):
    assert all("\n" not in o.message for o in ended[0].values())


def test_a_signal_stops_what_runs_and_starts_nothing_more(tmp_path):
    tasks = tasks_in(tmp_path, {"slow": {"epochs": "1000", "sleep_s": "0.05"}, "waiting": {"epochs": "1"}})

    class Trigger(Progress):
        def phase(self, name, total):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    outcomes, stopped = launch(tasks, [Slot("cpu", 1)], progress=lambda label: Trigger(quiet=True))
    assert stopped
    assert [o.code for o in outcomes] == [4, 4]
    assert "stopped after step" in outcomes[0].message
    assert outcomes[1].message == "not started"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_ends_what_does_not_stop(tmp_path):
    """A cell that hangs would be waited for; Ctrl-C twice does not wait."""
    tasks = tasks_in(tmp_path, {"hang": FATES["hang"]})

    class Trigger(Progress):
        def phase(self, name, total):
            for wait_s in (0.5, 1.5):
                threading.Timer(wait_s, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    outcomes, stopped = launch(tasks, [Slot("cpu", 1)], progress=lambda label: Trigger(quiet=True), grace_s=600.0)
    assert stopped and outcomes[0].record is None
    assert time.monotonic() - began < 60


def test_a_runs_folder_that_cannot_be_made_is_a_failed_cell(tmp_path):
    (tmp_path / "runs").write_text("a file")
    outcomes, _ = launch(
        tasks_in(tmp_path, {"good": {}}), [Slot("cpu", 1)], progress=lambda label: Progress(quiet=True)
    )
    assert outcomes[0].code == 1 and "--runs-dir" in outcomes[0].message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_ends_no_cell(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "no space left on device")

        flush = write

    (task,) = tasks_in(tmp_path, {"good": {"epochs": "1"}})
    log = Path(task.options.runs_dir) / task.cell.folder / "stdout"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    monkeypatch.setenv("TINY_ANNOUNCES", "1")
    outcomes, _ = launch([task], [Slot("cpu", 1)], progress=lambda label: Progress(Unfailing(Full())))
    assert [o.code for o in outcomes] == [0]


def test_a_fault_of_the_launcher_lets_its_cells_save(tmp_path):
    (task,) = tasks_in(tmp_path, {"slow": {"epochs": "1000", "sleep_s": "0.05"}})
    states = Path(task.options.runs_dir) / task.cell.folder

    class Faulty(Progress):
        def update(self, done, **values):
            raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        launch([task], [Slot("cpu", 1)], progress=lambda label: Faulty(quiet=True))
    assert list(states.glob("state-*.safetensors"))  # saved at SIGTERM: a minute had not passed


@pytest.mark.parametrize(
    ("codes", "stopped", "expected"),
    [
        ([0, 0], False, 0),
        ([], False, 0),
        ([0, 1], False, 1),
        ([3, 1, 4], False, 1),
        ([3, 4], False, 3),
        ([0, 4], False, 4),
        ([1, 4], True, 4),
        ([0, 0], True, 0),
    ],
)
def test_exit_codes(codes, stopped, expected):
    assert exit_code([Outcome(None, code, "") for code in codes], stopped=stopped) == expected


def test_one_worker_per_gpu():
    slots = slots_for("cuda:0", jobs=None, gpus=4, threads=None, cores=lambda n: 32 // n)
    assert slots == [Slot(f"cuda:{i}", 8) for i in range(4)]


def test_jobs_share_the_cores():
    assert slots_for("cpu", jobs=2, gpus=0, threads=None, cores=lambda n: 8 // n) == [Slot("cpu", 4)] * 2


def test_a_named_gpu_is_the_only_one_used():
    assert slots_for("cuda:1", jobs=None, gpus=0, threads=3, cores=lambda n: 1) == [Slot("cuda:1", 3)]


def test_a_process_that_escapes_with_the_pipes_does_not_hold_the_launcher(tmp_path, monkeypatch):
    """It is in no group that can be killed, and the ends of the pipes it inherited never close."""
    monkeypatch.setenv("TINY_ESCAPES", "1")
    (task,) = tasks_in(tmp_path, {"good": {"epochs": "1"}})
    began = time.monotonic()
    (outcome,), _ = launch([task], [Slot("cpu", 1)], progress=lambda label: Progress(quiet=True))
    escaped = int((tmp_path / "runs" / task.cell.folder / "stdout").read_text().split("escaped ")[1].split()[0])
    os.kill(escaped, signal.SIGKILL)
    assert outcome.code == 0 and outcome.record is not None
    assert time.monotonic() - began < 300  # it would sleep for ten minutes
