"""Only what stands between markers is written; a broken marker is an error with its line."""

from __future__ import annotations

import pytest

from bench.report import readme

BLOCKS = {"a": "new a", "b": "new b"}


def test_text_outside_the_markers_stays_byte_for_byte():
    text = "x \r\n<!-- bench:begin a -->\r\nold\r\n<!-- bench:end a -->\r\n\ty"
    done = readme.update(text, BLOCKS, "README.md")
    assert done.startswith("x \r\n<!-- bench:begin a -->\r\n")
    assert done.endswith("<!-- bench:end a -->\r\n\ty")
    assert "new a" in done
    assert "old" not in done


def test_a_second_update_changes_nothing():
    once = readme.update("<!-- bench:begin a -->\n<!-- bench:end a -->\n", BLOCKS, "README.md")
    assert readme.update(once, BLOCKS, "README.md") == once


def test_the_reader_is_warned_inside_the_block():
    assert "edits are overwritten" in readme.update("<!-- bench:begin a -->\n<!-- bench:end a -->", BLOCKS, "R")


def test_markers_inside_code_are_examples():
    text = "```\n<!-- bench:begin nothing -->\n```\n"
    assert readme.update(text, BLOCKS, "README.md") == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- bench:begin a -->\n", "line 1: block a has no end"),
        ("<!-- bench:end a -->\n", "line 1: block a ends without"),
        ("<!-- bench:begin a -->\n<!-- bench:begin b -->\n", "line 2: block b begins inside block a of line 1"),
        ("<!-- bench:begin a -->\n<!-- bench:end b -->\n", "line 2: block b ends without a beginning, inside block a"),
        ("<!-- bench:begin a -->\n<!-- bench:end a -->\n" * 2, "line 3: block a stands already in line 1"),
        ("\n<!-- bench:begin aa -->\n", 'line 2: no block aa; did you mean "a"'),
    ],
)
def test_a_broken_marker_names_its_line(text, said):
    with pytest.raises(ValueError, match=said):
        readme.update(text, BLOCKS, "README.md")
