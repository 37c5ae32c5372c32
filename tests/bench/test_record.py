"""bench.record: what is written can be read, nothing else can; and no record lies about its own arrays."""

from __future__ import annotations

import copy
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from bench import record, record_arrays, record_check

TESTS = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("synthetic_records", TESTS / "synthetic_records.py")
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
OLD = TESTS / "data" / "record_v1"


@pytest.fixture()
def arrays():
    return synthetic.example_arrays(n=50, dataset="mnist", method="linf_dist", seed=0, eps="0.1", reach=0.2)


@pytest.fixture()
def payload(arrays):
    return synthetic.payload(arrays)


def rewrite(folder: Path, change, *, honest_id: bool = True) -> None:
    """Change a record's JSON on disk, with a new matching id unless told otherwise."""
    file = folder / "record.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    if honest_id:
        data["id"] = record.identity(data)
    file.write_bytes(record.canonical(data))


def leaves(value, where=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*where, key))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from leaves(item, (*where, at))
    else:
        yield where


def set_leaf(data, where, value):
    for step in where[:-1]:
        data = data[step]
    data[where[-1]] = value


def get_leaf(data, where):
    for step in where:
        data = data[step]
    return data


# --- round trip -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path, payload, arrays):
    written = record.write(tmp_path, payload, arrays)
    again = record.read(written.path)
    assert again.data == written.data
    for name, array in again.arrays().items():
        assert array.dtype == record_arrays.dtype_of(name), name
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_the_folder_is_named_after_the_cell(tmp_path, arrays):
    made = record.write(tmp_path, synthetic.payload(arrays, eps="0.1", seed=3), arrays)
    cell = made.data["cell"]["id"]
    assert made.path == tmp_path / "mnist" / f"linf_dist-mnist-0.1-paper-s3-{cell}"


def test_a_slash_in_eps_becomes_an_underscore():
    cell = {"method": "ibp", "dataset": "cifar10", "eps": "8/255", "preset": "quick", "seed": 0, "id": "0" * 12}
    assert record.folder_name(cell) == "cifar10/ibp-cifar10-8_255-quick-s0-000000000000"


def test_the_same_run_is_the_same_bytes(tmp_path, payload, arrays):
    one, two = (record.write(tmp_path / name, payload, arrays) for name in ("a", "b"))
    for file in ("record.json", "arrays.npz"):
        assert (one.path / file).read_bytes() == (two.path / file).read_bytes(), file


def test_percentages_are_of_all_examples(tmp_path, payload, arrays):
    made = record.write(tmp_path, payload, arrays)
    assert made.clean == 100 * arrays["correct"].mean()
    assert made.certified <= made.robust <= made.clean


def test_the_row_of_list_runs_has_the_promised_keys(tmp_path, payload, arrays):
    row = record.write(tmp_path, payload, arrays).row()
    promised = {"id", "method", "dataset", "eps", "preset", "seed", "n", "clean", "robust", "certified"}
    assert promised | {"certificate_class", "train_s", "device"} <= set(row)
    json.dumps(row)


def test_numpy_numbers_and_an_infinite_p_are_stored(tmp_path, payload, arrays):
    payload["training"]["history"][0] = {"epoch": np.int64(0), "loss": np.float32(0.5), "p": float("inf")}
    history = record.write(tmp_path, payload, arrays).data["training"]["history"]
    assert history[0] == {"epoch": 0, "loss": 0.5, "p": "inf"}


def test_a_second_run_of_a_cell_replaces_the_first(tmp_path, payload, arrays):
    record.write(tmp_path, payload, arrays)
    payload["wall_s"] = 1.0
    second = record.write(tmp_path, payload, arrays)
    records, problems = record.scan(tmp_path)
    assert [r.id for r in records] == [second.id]
    assert not problems
    assert [p.name for p in second.path.parent.iterdir()] == [second.path.name], "hidden folders were left behind"


def test_records_are_readable_without_torch(tmp_path, payload, arrays):
    record.write(tmp_path, payload, arrays)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from bench import record\n"
        f"r, = record.scan(Path({str(tmp_path)!r}))[0]; print(len(r.arrays()))"
    )
    root = TESTS.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == str(len(arrays)), done.stderr


# --- old records ------------------------------------------------------------------------------------------------------


def test_a_record_of_schema_1_stays_readable_for_ever():
    """If this fails, write a migration; never regenerate the fixture."""
    records, problems = record.scan(OLD)
    assert not problems
    (old,) = records
    assert old.id == "081dc2069d38679af6d3121a9a43b8945e7cff16d45312b5dbf3487cad332a6a"
    assert (old.method, old.dataset, str(old.eps), old.preset, old.seed) == ("linf_dist", "digits", "0.1", "quick", 0)
    assert (old.n, old.n_correct, old.n_robust, old.n_certified) == (40, 37, 30, 28)
    assert old.certificate_class == "D"
    assert old.check_arrays() is None


def test_a_newer_schema_is_refused_with_the_mend(tmp_path, payload, arrays):
    made = record.write(tmp_path, payload, arrays)
    rewrite(made.path, lambda d: d.update(schema=99))
    with pytest.raises(record.RecordError, match=r"newer than this suite reads .* pip install -U"):
        record.read(made.path)


def test_a_migration_runs_for_an_older_schema(tmp_path, payload, arrays, monkeypatch):
    made = record.write(tmp_path, payload, arrays)
    rewrite(made.path, lambda d: d.update(schema=1, days=d.pop("wall_s")))
    monkeypatch.setitem(record._MIGRATIONS, 1, lambda d: {**d, "schema": 2, "wall_s": d["days"]})
    monkeypatch.setattr(record, "SCHEMA", 2)
    newer = copy.deepcopy(record_check.schema())
    newer["properties"]["schema"], newer["properties"]["days"] = {"enum": [2]}, {}
    monkeypatch.setattr(record_check, "schema", lambda: newer)
    assert record.read(made.path).data["wall_s"] == payload["wall_s"]


# --- what write refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(synthetic.payload(synthetic.example_arrays(
    n=5, dataset="mnist", method="ibp", seed=0, eps="0.1"))))  # fmt: skip
def test_a_payload_without_a_section_is_refused_by_name(tmp_path, payload, arrays, key):
    del payload[key]
    with pytest.raises(record.RecordError, match=key):
        record.write(tmp_path, payload, arrays)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("cell", "eps"), "0.03137", "did you mean 8/255"),
        (("cell", "preset"), "tiny", "preset"),
        (("cell", "method"), "../evil", "method"),
        (("evaluation", "eps"), "0.3", "differs from cell.eps"),
        (("data", "name"), "cifar10", "differs from cell.dataset"),
        (("evaluation", "n_certified"), 49, "n_certified"),
        (("training", "train_s"), float("nan"), "finite"),
        (("training", "train_s"), -1.0, "train_s"),
        (("evaluation", "certificates", 0, "cls"), "S", "certificates.0.cls"),
        (("evaluation", "certificates", 1, "headline"), True, "headline"),
        (("evaluation", "attacks", 0, "name"), "square", "survived_square"),
        (("code", "commit"), object(), "commit"),
        (("evaluation", "notes"), ["kept in /home/someone/runs"], "absolute path"),
        (("environment", "kernels"), {"file": "C:\\cache\\k.so"}, "absolute path"),
        (("finished",), "2026-01-31T10:00:00", "finished"),
    ],
)
def test_a_bad_field_is_refused_by_name(tmp_path, payload, arrays, where, value, said):
    set_leaf(payload, where, value)
    with pytest.raises(record.RecordError, match=said):
        record.write(tmp_path, payload, arrays)


def test_the_name_of_the_host_is_refused(tmp_path, payload, arrays, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node17.cluster.example")
    payload["evaluation"]["notes"] = ["ran on node17"]
    with pytest.raises(record.RecordError, match=r'evaluation.notes\[0\] holds "node17", the name of this host'):
        record.write(tmp_path, payload, arrays)


def test_the_name_of_the_user_and_paths_below_home_are_refused(tmp_path, payload, arrays, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "someuser")
    for note, said in (("someuser was here", "name of this host or user"), ("see ~/runs", "absolute path")):
        payload["evaluation"]["notes"] = [note]
        with pytest.raises(record.RecordError, match=said):
            record.write(tmp_path, payload, arrays)


def test_a_path_in_a_key_is_refused(tmp_path, payload, arrays):
    payload["environment"]["kernels"] = {"/opt/someone/k.so": "loaded"}
    with pytest.raises(record.RecordError, match="absolute path"):
        record.write(tmp_path, payload, arrays)


def test_what_is_far_too_large_to_be_a_record_is_not_read(tmp_path, payload, arrays, monkeypatch):
    made = record.write(tmp_path, payload, arrays)
    monkeypatch.setattr(record, "_LARGEST", 100)
    with pytest.raises(record.RecordError, match="bytes; a record is smaller"):
        record.read(made.path)


@pytest.mark.parametrize("name", ["linf_dist", "python", "torch", "kernels", "robust", "device", "someauthor"])
def test_names_that_are_words_of_a_record_do_no_harm(tmp_path, payload, arrays, monkeypatch, name):
    """Its keys, and what the authors of a method and its recipes wrote."""
    monkeypatch.setattr("socket.gethostname", lambda: name)
    monkeypatch.setattr("getpass.getuser", lambda: name)
    payload["recipe"]["source"] = "github.com/someauthor/code, tuned"
    record.write(tmp_path, payload, arrays)


def test_sources_may_name_web_pages_and_radii(tmp_path, payload, arrays):
    payload["recipe"]["source"] = "https://example.org/a/b, command/cifar_8/255.sh, eps 8/255"
    record.write(tmp_path, payload, arrays)


def flip(name, to, where=None):
    def change(arrays):
        rows = np.flatnonzero(arrays[name] != to if where is None else where(arrays))
        arrays[name] = arrays[name].copy()
        arrays[name][rows[0]] = to

    return change


def right_but_called_wrong(arrays):
    """A wrong example with the prediction and the margin of a right one."""
    row = np.flatnonzero(~arrays["correct"])[0]
    arrays["pred"], arrays["margin"] = arrays["pred"].copy(), arrays["margin"].copy()
    arrays["pred"][row], arrays["margin"][row] = arrays["label"][row], 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip("certified", True, lambda a: ~a["robust"] & a["correct"]), "n_certified|certified but not robust"),
        (flip("robust", False), "n_robust"),
        (flip("survived_pgd", False, lambda a: a["robust"]), "robust but broken by pgd"),
        (flip("bound_interval", -1.0, lambda a: a["certified"]), "interval bound of 0 or less"),
        (flip("pred", -1, lambda a: a["correct"]), "another class is predicted"),
        (flip("margin", -1.0, lambda a: a["correct"]), "margin of 0 or less"),
        (right_but_called_wrong, "correct is false"),
        (flip("radius", np.float32(0.1), lambda a: ~a["correct"]), "misclassified with a radius"),
        (flip("radius", np.float32(-0.1)), "negative radius"),
        (flip("index", 1), "stands twice"),
        (flip("margin", np.nan), "NaN"),
        (lambda a: a.pop("radius"), "lack radius"),
        (lambda a: a.pop("survived_pgd"), "survived_pgd"),
        (lambda a: a.pop("bound_interval"), "bound_interval"),
        (lambda a: a.update(radius=a["radius"].astype(np.float64)), "float32 is needed"),
        (lambda a: a.update(margin=a["margin"][:-1]), "shape"),
        (lambda a: a.update(extra=a["margin"]), "extra is no field"),
        (lambda a: a.update(label=a["label"].astype(np.int64) + 70000), "int16 cannot"),
        (lambda a: a.update(label=a["label"].astype(object)), "int16 is needed"),
    ],
)
def test_arrays_that_contradict_are_refused(tmp_path, payload, arrays, change, said):
    change(arrays)
    with pytest.raises(record.RecordError, match=said):
        record.write(tmp_path, payload, arrays)


def test_certified_must_imply_robust_even_when_the_counts_agree(tmp_path, payload, arrays):
    """The order is checked per example: swapping two examples leaves every count as it was."""
    inside, outside = np.flatnonzero(arrays["certified"])[0], np.flatnonzero(arrays["correct"] & ~arrays["robust"])[0]
    arrays["certified"][[inside, outside]] = [False, True]
    with pytest.raises(record.RecordError, match="certified but not robust"):
        record.write(tmp_path, payload, arrays)


def test_whole_numbers_of_another_width_are_narrowed(tmp_path, payload, arrays):
    arrays["label"] = arrays["label"].astype(np.int64)
    assert record.write(tmp_path, payload, arrays).arrays("label")["label"].dtype == np.int16


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_results_folder_that_is_a_file_is_one_line(tmp_path, payload, arrays):
    (tmp_path / "results").write_text("")
    with pytest.raises(record.RecordError, match="choose another folder with --results"):
        record.write(tmp_path / "results", payload, arrays)


def test_a_failed_write_leaves_the_old_record(tmp_path, payload, arrays, monkeypatch):
    old = record.write(tmp_path, payload, arrays)
    payload["wall_s"] = 2.0
    calls = []

    def full(handle):
        calls.append(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(record.RecordError, match="No space left"):
        record.write(tmp_path, payload, arrays)
    assert calls
    assert record.read(old.path).id == old.id
    assert [p.name for p in old.path.parent.iterdir()] == [old.path.name]


def test_sixteen_writers_of_one_cell_leave_one_whole_record(tmp_path, payload, arrays):
    errors = []

    def writer(wall_s):
        try:
            record.write(tmp_path, {**payload, "wall_s": wall_s}, arrays)
        except record.RecordError as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(float(i),)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records, problems = record.scan(tmp_path)
    assert len(records) == 1
    assert not problems
    assert records[0].check_arrays() is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_sixteen_processes_writing_records_lose_none(tmp_path, payload, arrays):
    """P44: fifteen cells and one of them twice, written at once by processes that know nothing of each other."""
    context = multiprocessing.get_context("fork")
    cells = [synthetic.payload(arrays, seed=seed % 15) for seed in range(16)]
    writers = [context.Process(target=record.write, args=(tmp_path, cell, arrays)) for cell in cells]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert {writer.exitcode for writer in writers} == {0}
    records, problems = record.scan(tmp_path)
    assert not problems
    assert sorted(r.data["cell"]["seed"] for r in records) == list(range(15))
    assert all(r.check_arrays() is None for r in records)


# --- what reading finds -----------------------------------------------------------------------------------------------


def test_every_edited_leaf_is_found(tmp_path, payload, arrays):
    made = record.write(tmp_path, payload, arrays)
    file = made.path / "record.json"
    original = json.loads(file.read_text(encoding="utf-8"))
    for where in leaves(original):
        data = copy.deepcopy(original)
        value = get_leaf(data, where)
        set_leaf(data, where, (value + 1) if type(value) in (int, float) else "edited")
        file.write_bytes(record.canonical(data))
        with pytest.raises(record.RecordError):
            record.read(made.path)


def test_edited_white_space_is_no_edit(tmp_path, payload, arrays):
    """A checkout with other line ends must not break a record."""
    made = record.write(tmp_path, payload, arrays)
    file = made.path / "record.json"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert record.read(made.path).id == made.id


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "cut or damaged"),
        (lambda raw: b"", "cut or damaged"),
        (lambda raw: b"\xff\xfe" + raw, "UTF-8"),
        (lambda raw: b"[1]", "not a JSON object"),
        (lambda raw: b"{}", "edited|schema"),
        (lambda raw: raw.replace(b'"wall_s"', b'"finished"'), "stands twice"),
        (lambda raw: raw.replace(b'"wall_s": ', b'"wall_s": NaN, "x": '), "NaN is not a number"),
        (lambda raw: raw.replace(b'"wall_s": ', b'"wall_s": 1e999, "x": '), "too large"),
        (lambda raw: raw.replace(b'"wall_s": ', b'"wall_s": 1' + b"0" * 400 + b', "x": '), "too large"),
        (lambda raw: b'{"a":' * 100_000, "nested|cut"),
    ],
)
def test_a_damaged_record_is_one_problem_and_no_exception(tmp_path, payload, arrays, damage, said):
    made = record.write(tmp_path, payload, arrays)
    good = record.write(tmp_path, synthetic.payload(arrays, seed=1), arrays)
    file = made.path / "record.json"
    file.write_bytes(damage(file.read_bytes()))
    records, problems = record.scan(tmp_path)
    assert [r.id for r in records] == [good.id]
    (problem,) = problems
    assert problem.path == file
    assert "\n" not in problem.reason
    with pytest.raises(record.RecordError, match=said):
        record.read(made.path)


def test_a_changed_bit_in_the_arrays_is_found(tmp_path, payload, arrays):
    made = record.write(tmp_path, payload, arrays)
    file = made.path / "arrays.npz"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(record.RecordError, match="sha256 differs"):
        made.arrays()
    assert "sha256 differs" in (record.read(made.path).check_arrays() or "")


def test_missing_arrays_are_one_line(tmp_path, payload, arrays):
    made = record.write(tmp_path, payload, arrays)
    (made.path / "arrays.npz").unlink()
    with pytest.raises(record.RecordError, match=r"arrays\.npz: .*repeat the run"):
        made.arrays()


def test_an_npy_header_buys_no_memory():
    """A header that promises 10^12 numbers is refused by its length, before anything is allocated."""
    import io
    import zipfile

    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("margin.npy", member.getvalue())
    with pytest.raises(ValueError, match="header promises"):
        record_arrays.unpack(out.getvalue(), ["margin"], None)


def test_a_zip_that_inflates_beyond_n_is_refused():
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("margin.npy", bytes(10_000_000))
    with pytest.raises(ValueError, match="too many for 50 examples"):
        record_arrays.unpack(out.getvalue(), ["margin"], 50)


def test_the_quick_check_agrees_with_jsonschema(tmp_path, payload, arrays):
    """Reading uses a check of our own for speed; on every removed or retyped field it must say what jsonschema says."""
    payload["training"]["history"] = payload["training"]["history"][:1]
    data = dict(record.write(tmp_path, payload, arrays).data)
    validator = jsonschema.Draft202012Validator(record_check.schema())
    seen = {True: 0, False: 0}
    for where in leaves(data):
        for value in ("?", -1, None, [], True):
            changed = copy.deepcopy(data)
            set_leaf(changed, where, value)
            valid = validator.is_valid(changed)
            assert (record_check.first_error(record_check.schema(), changed) is None) == valid, (where, value)
            seen[valid] += 1
        changed = copy.deepcopy(data)
        holder = get_leaf(changed, where[:-1])
        if isinstance(holder, dict):
            del holder[where[-1]]
            valid = validator.is_valid(changed)
            assert (record_check.first_error(record_check.schema(), changed) is None) == valid, where
    assert min(seen.values()) > 100


def test_hidden_folders_are_unfinished_writes(tmp_path, payload, arrays):
    made = record.write(tmp_path, payload, arrays)
    shutil.copytree(made.path, made.path.parent / f".{made.path.name}.ab12")
    assert len(record.scan(tmp_path)[0]) == 1


def test_an_empty_or_missing_folder_has_no_records(tmp_path):
    assert record.scan(tmp_path / "nothing") == ([], [])


# --- find -------------------------------------------------------------------------------------------------------------


def test_find_takes_ids_cells_folders_and_paths(tmp_path, payload, arrays):
    made = record.write(tmp_path, payload, arrays)
    record.write(tmp_path, synthetic.payload(arrays, seed=1), arrays)
    for selector in (made.id, made.id[:8], made.cell_id, made.cell_id[:9], made.path.name, str(made.path)):
        assert record.find(tmp_path, selector).id == made.id, selector


@pytest.mark.parametrize(("selector", "said"), [("zzz", "no record .* it holds 2"), ("", "no record")])
def test_find_says_what_there_is(tmp_path, arrays, selector, said):
    for seed in (0, 1):
        record.write(tmp_path, synthetic.payload(arrays, seed=seed), arrays)
    with pytest.raises(record.RecordError, match=said):
        record.find(tmp_path, selector)


def test_find_refuses_an_ambiguous_selector(tmp_path, arrays):
    ids = [record.write(tmp_path, synthetic.payload(arrays, seed=s), arrays).id for s in range(20)]
    first = next(i[0] for i in ids if sum(j.startswith(i[0]) for j in ids) > 1)
    with pytest.raises(record.RecordError, match="write more digits"):
        record.find(tmp_path, first)
