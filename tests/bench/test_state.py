"""States on disk: whole or absent, the last two kept, refused when they belong to another run."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from bench import files, state
from bench.files import FileError, check_writable, locked, write_atomic
from bench.state import SCHEMA, StateError, StateStore, load_tensors, net_tensors, read_meta, save_tensors

IDENTITY = {"method": "m", "seed": 0, "recipe": "abc"}


def tensors(value=1.0):
    return {"net/w": torch.full((3, 2), value), "net/count": torch.tensor(7), "empty": torch.zeros(0, 4)}


def test_round_trip_is_exact(tmp_path):
    """Bits, shapes, dtypes; scalars, empty tensors, views and shared memory included."""
    base = torch.randn(4, 5)
    given = {**tensors(), "view": base[1:3, ::2], "a": base, "same": base, "double": torch.randn(3).double()}
    save_tensors(tmp_path / "s.safetensors", given, {"schema": SCHEMA, "x": [1, "inf"]})
    back = load_tensors(tmp_path / "s.safetensors")
    assert all(torch.equal(back.tensors[k], v) and back.tensors[k].dtype == v.dtype for k, v in given.items())
    assert back.meta["x"] == [1, "inf"]


def test_the_last_two_are_kept(tmp_path):
    store = StateStore(tmp_path, IDENTITY)
    for i in (1, 2, 10, 300):
        store.save(i, tensors(i), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-000000010.safetensors", "state-000000300.safetensors"]
    assert store.load().meta["iteration"] == 300


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "text", "no header"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, damage):
    said = []
    store = StateStore(tmp_path, IDENTITY, warn=said.append)
    store.save(1, tensors(1), {})
    store.save(2, tensors(2), {})
    newest = tmp_path / "state-000000002.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(
        {
            "cut": whole[:-5],
            "empty": b"",
            "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
            "text": b"not a state",
            "no header": whole[8:],
        }[damage]
    )
    assert store.load().meta["iteration"] == 1
    assert len(said) == 1 and "state-000000002" in said[0]


def test_no_state_is_no_error(tmp_path):
    assert StateStore(tmp_path / "nothing", IDENTITY).load() is None


@pytest.mark.parametrize(("field", "value"), [("method", "other"), ("seed", 1), ("recipe", "xyz")])
def test_the_state_of_another_run_is_refused_naming_the_field(tmp_path, field, value):
    StateStore(tmp_path, {**IDENTITY, field: value}).save(1, tensors(), {})
    with pytest.raises(StateError, match=f"its {field} is .*{value}.*--fresh"):
        StateStore(tmp_path, IDENTITY).load()


def test_a_newer_schema_is_refused(tmp_path, monkeypatch):
    store = StateStore(tmp_path, IDENTITY)
    monkeypatch.setattr(state, "SCHEMA", SCHEMA + 1)
    store.save(1, tensors(), {})
    monkeypatch.undo()
    with pytest.raises(StateError, match=f"schema {SCHEMA + 1}.*reads {SCHEMA}"):
        store.load()


def test_meta_is_readable_without_torch(tmp_path):
    StateStore(tmp_path, IDENTITY).save(5, tensors(), {"iterations": 10})
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; from bench.state import read_meta;"
        f"print(read_meta(Path({str(tmp_path)!r}) / 'state-000000005.safetensors')['iteration'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=files.__file__[:-15])
    assert done.stdout.strip() == "5", done.stderr


def test_a_failing_disk_at_any_call_keeps_the_older_state(tmp_path, monkeypatch):
    """Disk full at the k-th call, for every k until none fires: one sentence, the old state whole, nothing half."""
    store = StateStore(tmp_path, IDENTITY)
    store.save(1, tensors(1), {})
    calls = {"left": 0}

    def failing(real):
        def call(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    for name in ("open", "fsync", "replace"):
        monkeypatch.setattr(files.os, name, failing(getattr(os, name)))
    fired = 0
    for k in range(1, 50):
        calls["left"] = k
        try:
            store.save(2, tensors(2), {})
        except FileError as error:
            fired += 1
            assert "No space left" in str(error) and "\n" not in str(error)
            calls["left"] = 0
            assert store.load().meta["iteration"] in (1, 2)
            assert not list(tmp_path.glob(".tmp-*"))
            continue
        break
    assert fired >= 4


def test_write_atomic_replaces_the_whole_file(tmp_path):
    write_atomic(tmp_path / "a", b"long content")
    write_atomic(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_folder_that_another_writer_puts_there_meanwhile_is_replaced(tmp_path, monkeypatch):
    """Between the two renames of one writer a second one fits: the first tries again, the last one stays."""
    target, real, came = tmp_path / "cell", os.rename, []

    def rename(old, new):
        if os.fspath(new) == os.fspath(target) and not came:
            came.append(1)
            target.mkdir()
            (target / "record").write_bytes(b"theirs")
        real(old, new)

    monkeypatch.setattr(files.os, "rename", rename)
    files.replace_folder(target, {"record": b"ours"})
    assert came and (target / "record").read_bytes() == b"ours"
    assert [path.name for path in tmp_path.iterdir()] == ["cell"]


def test_left_over_temporary_files_are_removed(tmp_path):
    (tmp_path / ".tmp-123-state").write_bytes(b"half")
    StateStore(tmp_path, IDENTITY).tidy()
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    with locked(tmp_path):
        code = f"from bench.files import locked\nfrom pathlib import Path\nwith locked(Path({str(tmp_path)!r})): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=files.__file__[:-15])
    assert f"is being worked on by process {os.getpid()} since" in done.stderr


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    code = "import os\nfrom bench.files import locked\nfrom pathlib import Path\n"
    code += f"with locked(Path({str(tmp_path)!r})): os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=files.__file__[:-15])
    with locked(tmp_path):
        pass


def test_a_full_disk_is_found_before_work_begins(tmp_path):
    with pytest.raises(FileError, match=r"MB free, the run needs .* --runs-dir"):
        check_writable(tmp_path, "--runs-dir", need_bytes=1 << 62)


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(FileError, match=r"cannot write to .*f: .*--results"):
        check_writable(tmp_path / "f", "--results")


def test_a_net_whose_state_is_no_tensor_is_refused():
    class Odd(nn.Module):
        def get_extra_state(self):
            return {"p": 8}

    with pytest.raises(StateError, match="must be tensors"):
        net_tensors(Odd())


def test_the_header_is_json_and_nothing_is_pickled(tmp_path):
    save_tensors(tmp_path / "s", tensors(), {"schema": 1})
    raw = (tmp_path / "s").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert json.loads(raw[8 : 8 + length])["__metadata__"]["meta"]
    assert read_meta(tmp_path / "s")["schema"] == 1


def test_an_identity_with_tuples_is_recognised(tmp_path):
    given = {**IDENTITY, "overrides": {"widths": (8, 4)}}
    StateStore(tmp_path, given).save(1, tensors(), {})
    assert StateStore(tmp_path, given).load().meta["iteration"] == 1
    with pytest.raises(StateError, match="its overrides is"):
        StateStore(tmp_path, {**IDENTITY, "overrides": {"widths": (8, 5)}}).load()


def test_every_code_that_trained_is_remembered_and_a_change_said(tmp_path):
    one, two, said = {"commit": "a"}, {"commit": "b"}, []
    StateStore(tmp_path, IDENTITY, code=one).save(1, tensors(), {})
    same = StateStore(tmp_path, IDENTITY, code=one, warn=said.append)
    same.load()
    assert same.code == [one] and said == []
    other = StateStore(tmp_path, IDENTITY, code=two, warn=said.append)
    other.load()
    other.save(2, tensors(), {})
    assert other.code == [one, two] and "the code has changed" in said[0]
    back = StateStore(tmp_path, IDENTITY, code=one)
    back.load()
    assert back.code == [one, two, one]
