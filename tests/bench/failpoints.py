"""A process in which a disk call fails: run as a script, it runs a tiny cell again and again and fails at chosen calls.

Every attempt is a fork, so that torch is imported once. Reads one JSON object per line, {"folder", "mode", "k"}, and
answers with one: "kill" ends the process with SIGKILL at its k-th call, after cutting the file that an fsync was about
to save; "full" makes that call fail with ENOSPC; "none" lets the run come to its end.
"""

import builtins
import errno
import io
import json
import os
import signal
import sys
import traceback
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Failpoints:
    """Counts the calls that change files below `folder`, and fails the k-th."""

    def __init__(self, folder, mode, k):
        self.folder, self.mode, self.left = str(folder), mode, k
        self.calls = 0
        self.fired = ""

    def install(self):
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "ftruncate"):
            setattr(os, name, self._wrap(name, getattr(os, name), lambda *args: True))
        os.open = self._wrap("os.open", os.open, lambda *args: bool(args[1] & WRITING))
        opened = self._wrap("open", io.open, lambda *args: len(args) > 1 and set(args[1]) & set("wax+"))
        io.open = builtins.open = opened

    def _wrap(self, name, real, counts):
        def call(*args, **kwargs):
            if counts(*args, *([kwargs["mode"]] if "mode" in kwargs and name == "open" else [])):
                self._count(name, args[0])
            return real(*args, **kwargs)

        return call

    def _count(self, name, where):
        if isinstance(where, int):
            where = os.readlink(f"/proc/self/fd/{where}")
        if not str(where).startswith(self.folder) or self.mode == "none":
            return
        self.calls += 1
        if self.calls != self.left:
            return
        self.fired = f"{name} {Path(where).name}"
        if self.mode == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(where))
        if name == "fsync" and os.path.isfile(where):
            os.truncate(where, os.path.getsize(where) // 2)  # what was not yet on the disk may be lost
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def attempt(planned, folder, mode, k, cost):
    """One run in this very process; what became of it."""
    from bench import run as running
    from bench.errors import BenchError
    from bench.options import Options

    running.measure_cost = cost
    points = Failpoints(folder, mode, k)
    points.install()
    options = Options(results=str(folder / "results"), runs_dir=str(folder / "runs"), save_every_s=0.0)
    try:
        data = running.run(planned, options).data
    except BenchError as error:
        return {"ended": "refused", "fired": points.fired, "message": str(error)}
    except BaseException:
        return {"ended": "crashed", "fired": points.fired, "message": traceback.format_exc()}
    history = [{key: value for key, value in row.items() if key != "s"} for row in data["training"]["history"]]
    counts = {key: value for key, value in data["evaluation"].items() if key.startswith("n")}
    found = [data["weights_sha256"], data["arrays"]["sha256"], history, counts]
    return {"ended": "finished", "fired": points.fired, "calls": points.calls, "result": found}


def main():
    import torch

    from bench import registry
    from bench.cell import plan
    from bench.cost import measure_cost

    torch.set_num_threads(1)
    registry.add_file(Path(sys.argv[1]))
    planned = plan(["tiny"], ["synthetic"], changes={"epochs": "1", "batch_size": sys.argv[2]})[0][0]
    measured = []

    def cost(*args, **kwargs):
        return measured[0] if measured else measure_cost(*args, **kwargs)

    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            answer = attempt(planned, Path(asked["folder"]), asked["mode"], asked["k"], cost)
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
        os.close(write)
        said = b""
        while more := os.read(read, 1 << 16):
            said += more
        os.close(read)
        _, status = os.waitpid(child, 0)
        answer = {"ended": "killed", "fired": "killed"} if os.WIFSIGNALED(status) else json.loads(said)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
