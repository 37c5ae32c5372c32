"""The committed reports and README blocks are what the committed records give, byte for byte."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from bench import record
from bench.cell import reopen
from bench.report.assemble import build

ROOT = Path(__file__).parents[1]
DRAWING = ("matplotlib", "numpy", "contourpy", "pillow", "seaborn", "fonttools")  # whose versions show in a picture


def test_the_committed_reports_agree_with_the_committed_records():
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name in DRAWING:
        have = importlib.metadata.version(name)
        if pins.get(name, have) != have:
            pytest.skip(f"{name} {have} is not the pinned {pins[name]}: pictures may differ by a byte")
    result = build(ROOT / "results" / "measured", ROOT / "reports", readme=ROOT / "README.md", check=True)
    assert result.problems == []
    assert result.differences == [], "run `bench report` and commit the result"


def test_every_committed_record_is_of_a_recipe_that_is_still_there():
    """Else the command printed beside it trains another net, and a reader finds recipe and number that disagree."""
    records, problems = record.scan(ROOT / "results" / "measured")
    assert not problems
    stale = [r.path.name for r in records if reopen(r.data["cell"]).cell.id != r.cell_id]
    assert stale == [], "their recipes have changed since: run these cells again, or remove the records"
