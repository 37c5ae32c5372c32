"""Study files: what an entry means, and that a mistake is one line that names it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import plan, planning, registry, study
from bench.cli import main
from bench.errors import UsageError
from bench.executor import Executor

PLUGIN = Path(__file__).with_name("tiny_method.py")


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "study.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def labels(path, **more):
    registry.add_file(PLUGIN)
    request = plan.Request(study=study.read(path), **more)
    return [p.cell.label for p in planning.select(request, "cpu")[0]]


def test_entries_multiply_their_selectors_and_keep_the_order_of_the_file(write):
    path = write(
        """
        title = "two sets"
        [[cells]]
        method = "tiny"
        dataset = ["synthetic", "digits"]
        seed = [1, 0]
        [[cells]]
        method = ["tiny"]
        dataset = "cifar10"
        eps = "8/255"
        preset = "quick"
        set = { lr = 0.01, epochs = 3 }
        """
    )
    assert labels(path) == [
        "tiny synthetic 0.1 quick s1",
        "tiny synthetic 0.1 quick s0",
        "tiny digits 0.1 quick s1",
        "tiny digits 0.1 quick s0",
        "tiny cifar10 8/255 quick s0 epochs=3 lr=0.01",
    ]


def test_a_cell_named_twice_runs_once(write):
    entry = '[[cells]]\nmethod = "tiny"\ndataset = "synthetic"\n'
    assert labels(write(entry + entry)) == ["tiny synthetic 0.1 quick s0"]


def test_all_means_every_method_with_such_a_recipe_and_reports_no_gaps(write):
    """Named one by one, methods without a published CIFAR-10 2/255 recipe are gaps that a user wants to hear of."""
    cell = 'dataset = "cifar10"\neps = "2/255"\npreset = "paper"\n'
    every = study.read(write(f'[[cells]]\nmethod = "all"\n{cell}'))
    planned, missing = planning.select(plan.Request(study=every), "cpu")
    names = {p.cell.method for p in planned}
    assert {"linf_dist_v2", "ibp"} <= names and "crown_ibp_fusion" not in names and missing == []
    named = study.read(write(f'[[cells]]\nmethod = ["ibp", "crown_ibp_fusion"]\n{cell}'))
    assert [gap.method for gap in planning.select(plan.Request(study=named), "cpu")[1]] == ["crown_ibp_fusion"]


def test_shards_share_the_cells_out(write):
    path = write('[[cells]]\nmethod = "tiny"\ndataset = "synthetic"\nseed = [0, 1, 2, 3, 4]\n')
    whole = labels(path)
    shares = [labels(path, shard=plan.Shard.parse(f"{k}/3")) for k in (1, 2, 3)]
    assert sorted(label for share in shares for label in share) == sorted(whole) and max(map(len, shares)) == 2


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        plan.Shard.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "study.toml"),
        ("title = 'x'", "no [[cells]]"),
        ("cells = []", "no [[cells]]"),
        ("[[cells]]\ndataset = 'digits'", "entry 1: method is missing"),
        ("[[cells]]\nmethod = 'tiny'\nmethods = 'tiny'", "entry 1: unknown key 'methods'"),
        ("[[cells]]\nmethod = 'tiny'\neps = 0.1", "entry 1: eps must be a text"),
        ("[[cells]]\nmethod = 'tiny'\n[[cells]]\nmethod = 'tiny'\nseed = -1", "entry 2: seed"),
        ("[[cells]]\nmethod = 'tiny'\nseed = true", "entry 1: seed"),
        ("[[cells]]\nmethod = 'tiny'\npreset = 'huge'", "entry 1: preset 'huge'"),
        ("[[cells]]\nmethod = 'tiny'\nset = { lr = { a = 1 } }", "set.lr"),
        ("colour = 'red'\n[[cells]]\nmethod = 'tiny'", "unknown key 'colour'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_entry(write, text, said):
    with pytest.raises(UsageError) as error:
        study.read(write(text))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="nowhere"):
        study.read(tmp_path / "nowhere.toml")


def test_a_study_goes_with_no_selectors(write):
    path = write('[[cells]]\nmethod = "tiny"\n')
    done = CliRunner().invoke(main, ["run", "--study", str(path), "-m", "tiny"])
    assert done.exit_code == 2 and "--study names the cells" in done.output


def test_the_command_runs_a_study(write, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = write('[[cells]]\nmethod = "tiny"\ndataset = "synthetic"\nseed = [0, 1]\nset = { epochs = 1 }\n')
    done = CliRunner().invoke(
        main,
        ["run", "--study", str(path), "--plugin", str(PLUGIN), "--results", str(tmp_path / "results"),
         "--runs-dir", str(tmp_path / "runs"), "--threads", "1", "--quiet", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [row["seed"] for row in json.loads(done.stdout)] == [0, 1]


def test_the_example_of_the_documents_can_be_run(write):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = text.split("## Add a study")[1].split("```toml\n")[1].split("```")[0]
    planned, missing = planning.select(plan.Request(study=study.read(write(example))), "cpu")
    assert len(planned) == 12 and not missing


def test_committed_studies_can_be_read():
    """Each names only methods, data sets and recipes that exist."""
    folder = Path(__file__).parents[2] / "results" / "studies"
    files = sorted(folder.glob("*.toml"))
    assert files
    for path in files:
        planned, missing = planning.select(plan.Request(study=study.read(path)), "cpu")
        assert planned and not missing, (path.name, missing)


def test_a_share_without_cells_is_no_mistake(capsys, tmp_path):
    request = plan.Request(
        methods=("tiny",), datasets=("synthetic",), shard=plan.Shard(3, 3), runs_dir=str(tmp_path), device="cpu"
    )
    said = []
    assert planning.execute(request, plugins=(), say=said.append, ask=None) == 0
    assert said == ["--shard 3/3: there are fewer cells, none is left for this share"]


def test_what_runs_elsewhere_is_not_judged_by_this_machine(tmp_path):
    """No GPU here, but in the cluster; without a preset its default would depend on the machine, so it is asked for."""
    elsewhere = {"methods": ("tiny",), "datasets": ("synthetic",), "executor": Executor("slurm"), "device": "cuda"}
    more = {"runs_dir": str(tmp_path), "results": str(tmp_path / "r"), "dry_run": True}
    made = planning.make_plan(plan.Request(**elsewhere, **more, presets=("quick",)), ())
    assert made.device == "cuda" and not made.estimates
    with pytest.raises(UsageError, match="--preset"):
        planning.make_plan(plan.Request(**elsewhere, **more), ())
