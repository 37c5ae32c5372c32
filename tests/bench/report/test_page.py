"""The page: one file, nothing loaded, everything labelled, nothing a record says can become markup."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from bench import record
from bench.report import build, page, rows

VOID = {"meta", "link", "input", "br", "img", "hr"}
SVG_LEAVES = {"path", "use", "rect", "circle", "line", "stop"}


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.stack, self.wrong = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs, tuple(self.stack)))
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs, tuple(self.stack)))
        if "id" in attrs:
            self.ids.append(attrs["id"])

    def handle_endtag(self, tag):
        if not self.stack or self.stack[-1] != tag:
            self.wrong.append((tag, self.stack[-3:]))
        else:
            self.stack.pop()


@pytest.fixture(scope="module")
def text(report):
    return (report.out / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_every_element_is_closed_where_it_was_opened(parsed):
    assert parsed.wrong == []
    assert parsed.stack == []


def test_nothing_is_loaded_from_anywhere(parsed, text):
    for tag, attrs, _ in parsed.tags:
        assert "src" not in attrs, tag
        assert tag not in ("link", "iframe", "img", "object", "embed", "base"), tag
        if tag != "a" and "href" in attrs:
            assert attrs["href"].startswith("#"), attrs
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_policy_forbids_every_request(parsed):
    (policy,) = (a["content"] for t, a, _ in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def test_ids_are_unique_and_every_reference_has_a_target(parsed, text):
    assert len(parsed.ids) == len(set(parsed.ids))
    targets = set(re.findall(r"url\(#([^)]+)\)", text)) | {
        a["href"][1:] for t, a, _ in parsed.tags if t == "use" and "href" in a
    }
    assert targets <= set(parsed.ids)


def test_no_event_handler_comes_from_data(parsed):
    assert not [a for _, attrs, _ in parsed.tags for a in attrs if a.startswith("on")]


def test_a_hostile_title_stays_text(text, parsed):
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert sum(tag == "script" for tag, _, _ in parsed.tags) == 2


def test_every_head_has_a_scope_every_table_a_caption(parsed):
    for tag, attrs, _ in parsed.tags:
        if tag == "th":
            assert attrs.get("scope") in ("col", "row", "rowgroup")
    count = [tag for tag, _, _ in parsed.tags]
    assert count.count("caption") == count.count("table")


def test_headings_are_in_order_with_one_h1(parsed):
    levels = [int(tag[1]) for tag, _, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    # cards stand in the header, before the first h2; after that no level is skipped
    body = levels[levels.index(2) :]
    assert all(b <= a + 1 for a, b in itertools.pairwise(body))


def test_every_drawing_has_a_title_and_a_description(text):
    drawings = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert drawings
    for svg in drawings:
        assert re.search(r"<title>[^<]+</title><desc>[^<]+</desc>", svg)
        assert 'role="img"' in svg[:200]


def test_drawings_follow_the_theme(text):
    """No colour of the light theme is left in a drawing: all are variables."""
    css = text[text.index("<style>") : text.index("</style>")]
    rules = re.findall(r"\.s\d+\{([^}]*)\}", css)
    assert rules
    left = {c for rule in rules for c in re.findall(r"#[0-9a-fA-F]{6}", rule)}
    assert left == set()


def test_the_data_block_is_json_and_explains_every_button(text):
    raw = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert "<" not in raw
    data = json.loads(raw)
    known = set(data["records"]) | set(data["published"])
    refs = set(re.findall(r'data-r="([^"]+)"', text))
    assert refs <= known, refs - known
    some = data["records"][next(iter(data["records"]))]
    assert some["command"].startswith("bench run -m ")


def test_a_withheld_number_is_not_in_the_data_either(text):
    raw = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    (broken,) = (r for r in json.loads(raw)["records"].values() if "broken" in r)
    assert broken["counts"] == {}


def test_a_broken_guard_stands_at_the_top(text):
    assert text.index("Problem:") < text.index('id="results"')


def test_an_empty_results_folder_gives_a_page(tmp_path):
    build(tmp_path / "none", tmp_path / "out", formats=("svg",), jobs=1)
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "No records yet" in text
    assert "bench run" in text
    parsed = Parsed(text)
    assert parsed.wrong == []


def test_the_page_is_small(report):
    assert (report.out / "index.html").stat().st_size < 1_000_000


def test_a_card_shows_the_best_row_of_any_preset_and_whole_splits_first(tmp_path, make):
    make(tmp_path, n=1000, method="ibp", preset="quick", reach=0.05)
    make(tmp_path, n=1000, method="linf_dist", preset="hour", reach=0.2)
    make(tmp_path, n=500, n_test=1000, method="linf_dist_v2", preset="quick", reach=0.9)  # a subset, and better
    inputs = rows.gather(record.scan(tmp_path)[0], [])
    (setting,) = {b.setting for b in inputs.blocks}
    best = page._best(inputs, setting)
    assert (best.method, best.first.preset) == ("linf_dist", "hour")
