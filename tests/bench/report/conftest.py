"""Invented records that carry every sign a report knows, and one report made of them for all tests of this folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import record, record_arrays
from bench.report import build, draw, published, rows

TESTS = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script> =cmd|x_{}$&\\"


def _load(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


synthetic = _load("synthetic_records", TESTS / "synthetic_records.py")


@pytest.fixture(scope="session", autouse=True)
def drawn_once():
    """Drawing is most of a build's time and a pure function of the specification (test_assemble holds that in another
    process), so one session draws each figure once."""
    memo: dict[tuple[str, str], bytes] = {}
    real = draw.render

    def render(spec, formats):
        missing = [f for f in formats if (spec.input_hash, f) not in memo]
        if missing:
            memo.update({(spec.input_hash, f): content for f, content in real(spec, missing).items()})
        return {f: memo[spec.input_hash, f] for f in formats}

    patch = pytest.MonkeyPatch()
    patch.setattr(draw, "render", render)
    yield real
    patch.undo()


@pytest.fixture(scope="session")
def make():
    """Write one invented record: make(folder, method=..., ...)."""
    return synthetic.make


def break_order(folder: Path) -> None:
    """Certify an example that is not robust, and give the file every hash it needs to look untouched."""
    file = folder / "record.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    raw = (folder / "arrays.npz").read_bytes()
    arrays = record_arrays.unpack(raw, sorted(data["arrays"]["fields"]), None)
    arrays = {k: v.copy() for k, v in arrays.items()}
    inside = int(np.flatnonzero(arrays["certified"])[0])
    outside = int(np.flatnonzero(~arrays["robust"])[0])
    arrays["certified"][[inside, outside]] = [False, True]
    packed, _ = record_arrays.pack(arrays)
    (folder / "arrays.npz").write_bytes(packed)
    data["arrays"]["sha256"] = record.hashlib.sha256(packed).hexdigest()
    data["id"] = record.identity(data)
    file.write_bytes(record.canonical(data))


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """Records of two settings: every preset, three seeds, a subset, a dirty tree, class R, a plugin, a broken guard."""
    out = tmp_path_factory.mktemp("results") / "measured"
    n = 1000
    common = {"n": n, "dataset": "mnist", "eps": "0.1", "preset": "quick", "epochs": 5}
    for seed in (0, 1, 2):
        synthetic.make(out, **common, method="linf_dist", seed=seed, skill=1.6, reach=0.15)
    synthetic.make(out, **common, method="linf_dist_v2", skill=1.65, reach=0.15)
    synthetic.make(out, **common, method="ibp", skill=1.4, reach=0.08, train_s=4000.0)
    synthetic.make(out, **common, method="ibp", skill=1.4, reach=0.07, overrides={"lr": "0.01"})
    synthetic.make(out, **common, method="groupsort", skill=1.7, reach=0.02, dirty=True)
    synthetic.make(
        out, **common, method="my_plugin", title=HOSTILE, cls="R", n_contradicted=3, n_borderline=2, reach=0.06
    )
    broken = synthetic.make(out, **common, method="crown_ibp", reach=0.1)
    break_order(broken.path)
    synthetic.make(out, **{**common, "n": 600}, method="linf_dist", n_test=1000, skill=1.6, reach=0.15)
    paper = {"n": 6000, "dataset": "cifar10", "eps": "8/255", "preset": "paper", "epochs": 5, "device": "NVIDIA H100"}
    synthetic.make(out, **paper, method="linf_dist", skill=0.2, reach=0.05)
    synthetic.make(out, **paper, method="ibp", skill=0.0, reach=0.02)
    synthetic.make(out, **{**paper, "split": "val"}, method="ibp", skill=3.0, reach=0.9)
    return out


@pytest.fixture(scope="session")
def inputs(results):
    """The results, gathered."""
    records, problems = record.scan(results)
    assert not problems
    return rows.gather(records, published.load())


@pytest.fixture(scope="session")
def report(results, tmp_path_factory):
    """A whole report on disk: .out its folder, .result what build returned, .readme a README with markers."""
    base = tmp_path_factory.mktemp("repo")
    readme = base / "README.md"
    readme.write_text(README, encoding="utf-8")
    out = base / "reports"
    result = build(results, out, readme=readme, jobs=1)
    return SimpleNamespace(out=out, result=result, readme=readme, results=results)


README = """# A suite

Prose before, with \u00fcmlauts.

<!-- bench:begin headline -->
old
<!-- bench:end headline -->

```
<!-- bench:begin example -->
```

<!-- bench:begin figure -->
<!-- bench:end figure -->

<!-- bench:begin what_was_run -->
<!-- bench:end what_was_run -->
Prose after.
"""
