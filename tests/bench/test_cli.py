"""The command line: what each command prints and where, exit codes, one line for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import bench
from bench import doctor, plan, planning, reattack, record, registry
from bench import estimate as estimating
from bench.cli import main
from bench.environment import device_name, worker_environment
from bench.estimate import Estimate

PLUGIN = Path(__file__).with_name("tiny_method.py")
COMMANDS = [
    "run", "list", "report", "compare", "verify", "attack", "certify", "check", "new-method", "doctor", "kernels",
    "time",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet_surroundings(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(planning, "estimate", lambda cells, **k: {c.id: Estimate(1.0, 0.5, "a guess") for c in cells})
    yield
    torch.set_num_threads(before)


def call(*arguments, **more):
    """The command in this process, with the tests' method known."""
    return CliRunner().invoke(main, ["--plugin", str(PLUGIN), *map(str, arguments)], **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one finished run."""
    place = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "estimate", lambda cells, **k: {})
        done = call(*ONE_RUN, "--results", place / "results", "--runs-dir", place / "runs")
    assert done.exit_code == 0, done.output
    return place


ONE_RUN = ("run", "-m", "tiny", "-d", "synthetic", "--set", "epochs=1", "--device", "cpu", "--threads", "1")


def at(folder):
    return "--results", folder / "results", "--runs-dir", folder / "runs"


# --- light and complete -----------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    """What keeps `bench --help` under half a second is what it does not import."""
    code = (
        "import sys; from bench.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'numpy', 'pandas', 'matplotlib', 'sklearn', 'bench.train')\n"
        "print('HEAVY', [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=worker_environment(1))
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_threads_wait_briefly_unless_the_user_says_how(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    assert 0 < int(worker_environment(2)["GOMP_SPINCOUNT"]) < 300_000  # libgomp's own: many milliseconds
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert worker_environment(2)["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert "GOMP_SPINCOUNT" not in worker_environment(2)


def test_help_names_every_command():
    out = CliRunner().invoke(main, ["--help"]).output
    assert [c for c in COMMANDS if f"  {c} " not in out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = CliRunner().invoke(main, [command, "--help"])
    assert done.exit_code == 0 and "Usage:" in done.output


def test_version():
    assert bench.__version__ in CliRunner().invoke(main, ["--version"]).output


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "-m", "tinny"], 2, 'no method "tinny"; did you mean "tiny"?'),
        (["run", "-m", "tiny", "-d", "digit"], 2, "digits"),
        (["run", "-m", "tiny", "-d", "mnist"], 2, "no recipe for this data set (it has: digits, synthetic, cifar10)"),
        (["run", "-m", "tiny", "--eps", "0.03137"], 2, "did you mean 8/255?"),
        (["run", "-m", "tiny", "--eps", "-1"], 2, "eps = '-1'"),
        (["run", "-m", "tiny", "--eps", "2"], 2, "outside [0, 1]"),
        (["run", "-m", "tiny", "--set", "lr"], 2, "write --set FIELD=VALUE"),
        (["run", "-m", "tiny", "--set", "lrr=1"], 2, 'did you mean "lr"?'),
        (["run", "-m", "tiny", "--set", "lr=fast"], 2, "lr must be"),
        (["run", "-m", "tiny", "--set", "lr=1", "--set", "lr=2"], 2, "given twice"),
        (["run", "-m", "tiny", "--device", "cuda:99"], 2, "this machine has"),
        (["run", "-m", "tiny", "--device", "tpu"], 2, "auto, cpu, cuda or cuda:N"),
        (["run", "-m", "tiny", "--time-limit", "25"], 2, "write 90s, 25m or 1h30m"),
        (["--plugin", "/nowhere.py", "list", "methods"], 2, "no such file"),
        (["report", "--published", "/nowhere"], 2, "there is no such folder"),
        (["report", "--readme", "/nowhere"], 2, "no file with a block to fill"),
        (["compare", str(PLUGIN.parent), str(PLUGIN.parent), "--fail-if-worse", "1"], 2, "no cell in common"),
        (["list", "recipes", "-m", "tiny", "--preset", "quik"], 2, "no such recipe here; there are quick, paper"),
        (["list", "runs", "-m", "tinny"], 2, "-m tinny: there is none of that name"),
        (["list", "runs", "--preset", "quik"], 2, "there are paper, short, hour, quick"),
        (["list", "methods", "-d", "digits"], 2, "`bench list methods` shows all"),
        (["verify"], 2, "name a run"),
        (["verify", "abc", "--results", "/nowhere"], 1, 'no record "abc"'),
        (["check", "tinny"], 2, "tiny"),
        (["new-method", "Bad-Name"], 2, "snake_case"),
        (["time", "-m", "tiny", "--preset", "paper"], 2, "no recipe"),
    ],
)
def test_a_mistake_is_one_line_that_helps(arguments, code, words):
    done = call(*arguments)
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert "Traceback" not in done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1


def test_a_results_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "results").write_text("a file")
    done = call(*ONE_RUN, *at(tmp_path))
    assert done.exit_code == 1 and "--results" in done.stderr


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_every_cell_and_starts_none(tmp_path):
    done = call(
        "run", "-m", "tiny", "-d", "digits", "-d", "mnist", "--seed", 0, "--seed", 1, "--dry-run", *at(tmp_path)
    )
    assert done.exit_code == 0
    assert done.stdout.count("about 1.5 s (training 1.0 s, evaluation 0.5 s)") == 2
    assert "tiny mnist  " in done.stdout and "skipped: no recipe for this data set" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_is_readable_by_programs(tmp_path):
    (row,) = json.loads(call(*ONE_RUN, "--dry-run", "--json", *at(tmp_path)).stdout)
    assert (row["method"], row["finished"], row["train_s"]) == ("tiny", False, 1.0)


@pytest.mark.parametrize(("more", "fate"), [((), "a download is tried"), (("--offline",), "forbids a download")])
def test_a_plan_says_which_data_are_missing(tmp_path, monkeypatch, more, fate):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    asked = ("run", "-m", "tiny", "-d", "cifar10", "-d", "digits", "--preset", "quick", "--dry-run", *more)
    lines = call(*asked, *at(tmp_path)).stdout.splitlines()
    (line,) = (line for line in lines if "not on this machine" in line)
    assert line.startswith("cifar10: ") and fate in line
    rows = json.loads(call(*asked, "--json", *at(tmp_path)).stdout)
    assert {row["dataset"]: row["data_here"] for row in rows} == {"cifar10": False, "digits": True}


def test_a_bare_paper_recipe_on_a_cpu_is_not_started_unasked(tmp_path):
    done = call("run", "-m", "tiny", "-d", "cifar10", "--device", "cpu", *at(tmp_path))
    assert done.exit_code == 2
    assert "about 1.5 s on this CPU; cheaper: --preset quick; as published: --preset paper" in done.stderr


def test_show_config_prints_the_recipe(tmp_path):
    (one,) = json.loads(call(*ONE_RUN, "--show-config").stdout)
    assert one["recipe"]["epochs"] == 1 and one["cell"]["overrides"] == {"epochs": 1}


def test_tuning_results_lie_apart():
    assert plan.Request(("m",), split="val").results_dir == Path("results/tuning")
    assert plan.Request(("m",), split="val", results="here").results_dir == Path("here")


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_finished_cell_is_a_no_op_that_prints_its_record(folder):
    done = call(*ONE_RUN, *at(folder))
    assert done.exit_code == 0
    assert "finished before: clean" in done.stderr and "finished before" in done.stdout
    assert "next: bench report --results" in done.stderr


def test_the_summary_is_readable_by_programs(folder):
    (row,) = json.loads(call(*ONE_RUN, "-q", "--json", *at(folder)).stdout)
    assert row["status"] == "finished before" and 0 <= row["certified"] <= row["robust"] <= row["clean"] <= 100


def test_the_time_limit_stops_resumably_and_the_same_command_continues(tmp_path):
    """Exit code 4, a row that says so; then the run goes on from there."""
    endless = ("run", "-m", "tiny", "-d", "synthetic", "--set", "epochs=5000", "--set", "sleep_s=0.05", "--threads", 1)
    done = call(*endless, *at(tmp_path), "--time-limit", "12s")
    assert done.exit_code == 4, done.output
    assert "stopped, resumable" in done.stdout
    assert "at the time limit of 12 s, stopped" in done.stderr
    again = call(*endless, *at(tmp_path), "--dry-run")
    assert "continues at" in again.stdout or "before it began" in done.stderr  # a very busy machine


# --- the other commands -----------------------------------------------------------------------------------------------


def test_list_runs_has_the_public_fields(folder):
    (row,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    public = {"id", "method", "dataset", "eps", "preset", "seed", "n", "clean", "robust", "certified"}
    public |= {"certificate_class", "train_s", "device"}
    assert row["overrides"] == "epochs=1"
    assert public - set(row) == set()
    assert all(not isinstance(value, (dict, list)) for value in row.values())


def test_list_runs_shows_no_number_that_tables_withhold(folder, tmp_path):
    shutil.copytree(folder / "results", tmp_path, dirs_exist_ok=True)
    (damaged,) = tmp_path.rglob("arrays.npz")
    damaged.write_bytes(b"cut off")
    done = call("list", "runs", "--json", "--results", tmp_path)
    assert json.loads(done.stdout) == [] and "arrays" in done.stderr


def test_list_recipes_has_the_public_fields():
    rows = json.loads(call("list", "recipes", "-m", "tiny", "--json").stdout)
    digits = next(r for r in rows if r["dataset"] == "digits")
    assert set(digits) >= {"method", "dataset", "eps", "preset", "source", "params", "flops"}
    assert digits["params"] == 64 * 16 + 16 + 16 + 16 + 16 * 10 + 10
    assert digits["flops"] == 64 * 16 + 16 * 10


def test_list_methods_and_datasets_are_arrays_of_flat_objects():
    methods = json.loads(call("list", "methods", "--json").stdout)
    assert "tiny" in {row["name"] for row in methods}
    datasets = {row["name"]: row for row in json.loads(call("list", "datasets", "--json").stdout)}
    assert datasets["digits"]["here"] is True and datasets["cifar10"]["n_test"] == 10_000


def test_a_broken_plugin_is_one_red_line(tmp_path):
    broken = tmp_path / "broken_one.py"
    broken.write_text(
        "from bench import register\nraise RuntimeError('no luck')\n@register\nclass X: name = 'broken_one'\n"
    )
    done = CliRunner().invoke(main, ["--plugin", str(broken), "list", "methods"])
    assert done.exit_code == 0
    assert "broken_one (file): RuntimeError: no luck" in done.stderr
    registry._default._files.pop(broken.resolve(), None)
    registry._default._found = None


def test_verify_reads_the_record_and_replays_the_weights(folder):
    done = call("verify", "--all", *at(folder), "--device", "cpu", "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "holds" in done.stdout and "weights" in done.stdout


def test_verify_at_level_2_does_everything_again_and_counts(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    done = call("verify", "--all", "--level", 2, "--points", 30, "--examples", 4, *at(folder), "--json", "--threads", 1)
    assert done.exit_code == 0, done.output
    (report,) = json.loads(done.stdout)
    found = {f["check"]: f for f in report["findings"]}
    assert {"recertified weak", "certified under a new attack", "AutoAttack on certified"} <= set(found)
    assert found["AutoAttack on certified"]["message"].startswith("not run")


def test_verify_all_names_what_it_cannot_read_and_goes_on(folder, tmp_path):
    for name in ("edited", "whole"):
        shutil.copytree(folder / "results", tmp_path / name)
    (file,) = (tmp_path / "edited").rglob("record.json")
    file.write_text(file.read_text().replace('"n_certified": ', '"n_certified": 1'))
    done = call("verify", "--all", "--level", 0, "--results", tmp_path)
    assert done.exit_code == 1
    assert "BAD read: its id is not the hash of its content" in done.stdout and "holds" in done.stdout
    done = call("verify", "--all", "--level", 1, "--results", tmp_path / "whole", "--runs-dir", tmp_path, "--json")
    assert done.exit_code == 1 and "no trained weights" in json.loads(done.stdout)[0]["findings"][0]["message"]
    done = call("verify", "--all", "--level", 1, "--results", tmp_path / "whole", "--runs-dir", tmp_path)
    assert "cannot be replayed here" in done.stdout and "FAILED" not in done.stdout


def test_verify_all_of_nothing_is_a_mistake(tmp_path):
    done = call("verify", "--all", "--results", tmp_path)
    assert done.exit_code == 2 and "no records in" in done.stderr


def test_verify_without_weights_says_that_it_looks_at_the_record_only(folder, tmp_path):
    done = call("verify", "--all", "--results", folder / "results", "--runs-dir", tmp_path)
    assert done.exit_code == 0 and "level 0" in done.stderr


def test_attack_reports_the_union(folder):
    (run,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    done = call("attack", run["cell"], "--steps", 2, "--restarts", 1, *at(folder), "--json", "--threads", 1)
    told = json.loads(done.stdout)
    assert told["certified"] <= told["robust_both"] <= min(told["robust_before"], told["robust_now"])
    (kept,) = (folder / "results").rglob(told["file"])
    assert run["cell"] in kept.parent.name
    (after,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    assert run["later_attacks"] == "" and after["later_attacks"] == "pgd"
    assert after["robust"] == pytest.approx(100 * told["robust_both"] / told["n"])
    compared = json.loads(call("compare", run["cell"], run["cell"], "--json", "--results", folder / "results").stdout)
    assert compared[0]["a"]["robust"] == after["robust"]


def test_attack_all_goes_on_after_a_failure_and_does_nothing_twice(folder, tmp_path, monkeypatch):
    """Two records, the weights of one are gone."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert call(*ONE_RUN, "--seed", 1, *at(tmp_path)).exit_code == 0
    (gone,) = (tmp_path / "runs").glob("*-s0-*/weights.safetensors")
    gone.unlink()
    asked = ("attack", "--all", "--steps", 3, "--restarts", 1, "--threads", 1, *at(tmp_path))
    first = call(*asked, "--examples", 7)
    assert first.exit_code == 1 and first.stdout.count(" examples; robust: ") == 1 and "s1" in first.stdout
    (error,) = (line for line in first.stderr.splitlines() if line.startswith("error: "))
    assert "-s0-" in error and "no trained weights" in error
    assert "attacked before, 7 examples" in call(*asked, "--examples", 6).stdout
    assert "attacked before" not in call(*asked, "--examples", 8).stdout
    with monkeypatch.context() as patch:
        patch.setattr(reattack.Reattack, "n_certified_attacked", -1)  # as if certified examples had been left out
        assert "attacked before" not in call(*asked, "--examples", 8).stdout


def test_attack_on_a_sample_counts_the_sample_only(folder):
    (run,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    more = ("--steps", 2, "--restarts", 1, "--examples", 5, *at(folder), "--json", "--threads", 1)
    told = json.loads(call("attack", run["cell"], *more).stdout)
    assert told["n"] == 5 and told["file"] == "attacked-pgd-2x1-s1-n5.json"
    assert all(0 <= told[key] <= 5 for key in ("correct", "robust_before", "robust_now", "robust_both", "certified"))


@pytest.mark.parametrize(("cls", "left_out"), [("D", True), ("F32", True), ("R", False), (None, False)])
def test_attack_leaves_out_only_what_no_attack_can_break(folder, monkeypatch, cls, left_out):
    seen = []
    monkeypatch.setattr(record.Record, "certificate_class", cls)
    monkeypatch.setattr("bench.recheck.attack", lambda *a, **_: seen.append(a[2]))
    (run,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    call("attack", run["cell"], "--skip-certified", *at(folder))
    call("attack", run["cell"], *at(folder))
    assert [config.attack_certified for config in seen] == [not left_out, True]
    assert all(config.surrogates >= 10 for config in seen)  # every one the method has


def test_autoattack_without_its_library_is_one_line_before_anything_is_done(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    (run,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    for command in (("attack", run["cell"], *at(folder)), ("run", "-m", "linf_dist", *at(folder))):
        done = call(*command, "--autoattack")
        assert done.exit_code == 1 and "pip install pyautoattack" in done.stderr and done.stderr.count("\n") == 1


def test_compare_takes_two_runs(folder):
    (run,) = json.loads(call("list", "runs", "--json", "--results", folder / "results").stdout)
    done = call("compare", run["cell"], run["id"][:10], "--results", folder / "results")
    assert done.exit_code == 0, done.output
    assert "same record" in done.stdout


def test_compare_takes_two_folders(folder):
    (line,) = json.loads(call("compare", folder / "results", folder / "results", "--json").stdout)
    assert "tiny synthetic" in line["cell"]


def test_report_hands_on_what_it_was_told(monkeypatch, tmp_path):
    """Its exit code is the build's; README.md is filled only where it has markers."""
    from bench import report

    told = []

    def build(results, out, **more):
        told.append((results, out, more))
        return report.BuildResult(differences=["a"], checked=True)

    monkeypatch.setattr(report, "build", build)
    monkeypatch.chdir(tmp_path)
    mistyped = call("report", "--results", "here")
    assert mistyped.exit_code == 2 and "there is no such folder" in mistyped.stderr and told == []
    Path("here").mkdir()
    done = call("report", "--results", "here", "--out", "there", "--check")
    assert done.exit_code == 1
    assert told == [(Path("here"), Path("there"), {"published_dir": None, "check": True, "readme": None})]
    Path("README.md").write_text("<!-- bench:begin x -->\n<!-- bench:end x -->\n")
    call("report")
    assert told[1][2]["readme"] == Path("README.md")


def test_time_measures_and_says_that_it_extrapolates():
    done = call("time", "-m", "tiny", "-d", "synthetic", "--budget", "0.3s", "--threads", 1)
    assert done.exit_code == 0, done.output
    assert "s_per_epoch" in done.stdout and "extrapolated" in done.stdout


def test_time_names_the_machine_and_tells_costs_in_epochs_of_one_method():
    done = call(
        "time", "-m", "ibp", "-m", "standard", "-d", "synthetic", "--budget", "0.3s", "--threads", 1, "--json",
        "--device", "cpu",
    )  # fmt: skip
    ibp, standard = json.loads(done.stdout)
    assert ibp["device"] == device_name(torch.device("cpu"))
    assert (ibp["relative"], ibp["relative_to"]) == (1.0, "ibp")
    assert standard["relative"] == standard["s_per_epoch"] / ibp["s_per_epoch"]


def test_doctor_names_every_topic(monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "numpy"))  # importing seaborn takes seconds
    facts = json.loads(call("doctor", "--json").stdout)
    assert {"certbench", "torch", "cpu", "data", "runs", "results", "methods"} <= {f["topic"] for f in facts}


@pytest.mark.slow
def test_estimates_come_from_timed_steps():
    """The one test that starts the timing process."""
    from bench.cell import plan

    registry.add_file(PLUGIN)
    cells = [p.cell for p in plan(["tiny"], ["synthetic"], seeds=[0, 1])[0]]
    found = estimating.estimate(cells, device="cpu", threads=1, plugins=[str(PLUGIN)])
    assert [found[c.id].train_s > 0 for c in cells] == [True, True]
    assert "timed steps" in found[cells[0].id].how
