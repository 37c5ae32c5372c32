"""Damaged and invented records never crash a report: each is a row, a marked row or a line among the problems."""

import copy
import json
import random
import shutil

import pytest

from bench import record
from bench.report import build

LIGHT = {"formats": (), "jobs": 1}
PER_BUILD = 50
TEXTS = [
    "",
    " ",
    "\n",
    "<script>",
    "=1+1",
    "\u202e",
    "\x1b[31m",
    "a" * 5000,
    "1e999",
    "0x10",
    "../../x",
    "é",
    "|",
    "nan",
    "\\",
]
NUMBERS = [0, -1, 1, 2**63, 10**400, -(10**30), 0.5, -0.0, 1e308, 5e-324, True, False]
VALUES = [*TEXTS, *NUMBERS, None, [], {}, [None], {"": None}, [[[]]], {"a": {"b": {"c": 1}}}]


def places(value, path=()):
    """Every place of a JSON value, inner ones too."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def damaged(data, chance):
    """A copy with one to three places changed, deleted, doubled or swapped."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice([1, 1, 2, 3])):
        path = chance.choice(list(places(data))[1:])
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        kind = chance.random()
        if kind < 0.2:
            del holder[path[-1]]
        elif kind < 0.3 and isinstance(holder, dict):
            holder[chance.choice(TEXTS)] = holder[path[-1]]
        elif kind < 0.4 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        elif kind < 0.55 and isinstance(holder[path[-1]], (int, float)):
            holder[path[-1]] = holder[path[-1]] * chance.choice([-1, 0, 2, 1e6]) + chance.choice([0, 1, 0.1])
        elif kind < 0.7 and isinstance(holder[path[-1]], str):
            holder[path[-1]] += chance.choice(TEXTS)
        else:
            holder[path[-1]] = copy.deepcopy(chance.choice(VALUES))
    return data


def signed(data):
    """The id that makes it look untouched; as it is where even that cannot be computed."""
    try:
        return {**data, "id": record.identity(data)}
    except (ValueError, TypeError, UnicodeEncodeError):
        return data


def write(folder, original, chance):
    """One fuzzed record: its JSON, its bytes or its arrays; most are signed again, so that they reach the tables."""
    kind = chance.random()
    shutil.copytree(original.path, folder)
    file, arrays = folder / "record.json", folder / "arrays.npz"
    if kind < 0.7:
        data = damaged(original.data, chance)
        if chance.random() < 0.85:
            data = signed(data)
        file.write_text(json.dumps(data, sort_keys=True, indent=1), encoding="utf-8", errors="surrogatepass")
        return
    path = file if kind < 0.85 else arrays
    raw = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 3, 30])):
        at = chance.randrange(len(raw))
        raw[at : at + chance.choice([0, 1, 1, 9])] = bytes(
            chance.randrange(256) for _ in range(chance.choice([0, 1, 5]))
        )
    path.write_bytes(bytes(raw[: chance.choice([len(raw), len(raw), chance.randrange(len(raw))])]))


def fuzz(tmp_path, make, builds, seed):
    """Reports on `builds` times PER_BUILD fuzzed records, each beside one honest one."""
    chance = random.Random(seed)
    originals = [make(tmp_path / "originals", n=60, seed=k, **more) for k, more in enumerate(KINDS)]
    shown = 0
    for number in range(builds):
        results, out = tmp_path / f"r{number}", tmp_path / f"o{number}"
        results.mkdir()
        make(results, n=60, seed=9)
        for k in range(PER_BUILD):
            write(results / f"fuzzed{k}", chance.choice(originals), chance)
        result = build(results, out, **LIGHT)
        assert result.exit_code in (0, 1)
        assert result.problems and all("\n" not in problem for problem in result.problems)
        shown += result.records - 1
        assert build(results, out, check=True, **LIGHT).exit_code == result.exit_code
        shutil.rmtree(results)
    return shown


KINDS = ({}, {"method": "ibp", "dataset": "cifar10", "eps": "8/255"}, {"preset": "quick", "split": "val"})


def test_a_hundred_fuzzed_records_never_crash_the_report(tmp_path, make):
    assert fuzz(tmp_path, make, 2, seed=0) > 5  # some are readable, and reach the tables


@pytest.mark.slow
def test_a_thousand_fuzzed_records_never_crash_the_report(tmp_path, make):
    assert fuzz(tmp_path, make, 20, seed=1) > 50
