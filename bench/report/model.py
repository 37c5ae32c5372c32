"""A table before it is Markdown, CSV, TeX or HTML: columns, blocks of rows, cells with marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .fmt import DASH

MARKS = {  # sign -> legend line, in the order legends print them
    DASH: "not run",
    "n/a": "cannot be compared, or does not exist for this row",
    "\u2020": "published, not measured here",
    "\u2021": "published by a paper other than the method's own",
    "v": "taken from a later source that quotes it",
    "q": "preset quick: minutes on a CPU, never comparable with a paper's numbers",
    "h": "preset hour: about an hour on a CPU, not the published recipe",
    "sh": "preset short: the published network, fewer epochs",
    "s": "a subset of the test images or classes; n stands in the row",
    "m": "the recipe was changed by hand (the change is named beside the method)",
    "w": "robust accuracy from less than PGD of 40 steps and 2 restarts, or AutoAttack warned that it may be too high",
    "a": "after later attacks too (table Attacked again)",
    "e": "eps is not exactly the block's: the paper rounded it",
    "c": "class R, contradicted by an attack on some examples; they count as not certified",
    "b": "class R with certified bounds within rounding of zero",
    "+": "the working tree had uncommitted changes",
    "t": "not separable from the best row of its block (exact McNemar on the same images, seed by seed; Holm)",
    "!": "a guard is broken; the number is withheld",
}


BOLD = "bold"
BEST = (
    "best of its block, separated from every rival by interval and paired test; clean and robust among the rows that "
    "certify 1 % or more, if any does"
)


@dataclass(frozen=True)
class Cell:
    """One printed value. `sort` orders rows (None: missing, always last); `ref` names what it comes from."""

    text: str = DASH
    marks: tuple[str, ...] = ()
    bold: bool = False
    sort: float | str | None = None
    note: str = ""  # printed small behind the value: an interval
    ref: str = ""  # record id or published key
    href: str = ""

    @property
    def is_empty(self) -> bool:
        return self.text == DASH


_NOTHING = Cell()


@dataclass(frozen=True)
class Column:
    """A column: its key in rows, its head, which direction is better, and the formats that have room for it."""

    key: str
    head: str
    best: str | None = None  # up | down
    numeric: bool = True
    formats: tuple[str, ...] = ("md", "tex", "html")
    keep: bool = False  # shown even if empty in every row: an honest dash says more than no column


@dataclass(frozen=True)
class Row:
    """Cells by column key; `data` are attributes for filters on the page."""

    cells: Mapping[str, Cell]
    data: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Cell:
        return self.cells.get(key, _NOTHING)


@dataclass(frozen=True)
class Block:
    """Rows that may be compared with each other; nothing outside a block is."""

    heading: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """A table in all its formats. `csv_rows` hold counts and unrounded values under stable names."""

    name: str
    title: str
    summary: str  # the first line of every file: setting, n, version, number of records
    columns: Sequence[Column]
    blocks: Sequence[Block]
    csv_columns: Sequence[str]
    csv_rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()

    def rows(self) -> Iterator[Row]:
        for block in self.blocks:
            yield from block.rows

    def columns_for(self, form: str) -> list[Column]:
        """The columns a format shows: those it has room for, without the ones that are empty in every row."""
        rows = list(self.rows())
        return [
            c
            for c in self.columns
            if form in c.formats and (c.keep or not rows or any(not row[c.key].is_empty for row in rows))
        ]

    def legend(self, form: str) -> list[tuple[str, str]]:
        """(sign, meaning) of the signs that occur."""
        shown = self.columns_for(form)
        used = {m for row in self.rows() for c in shown for m in (*row[c.key].marks, row[c.key].text)}
        found = [(sign, meaning) for sign, meaning in MARKS.items() if sign in used]
        bold = any(row[c.key].bold for row in self.rows() for c in shown)
        return [*found, (BOLD, BEST)] if bold else found
