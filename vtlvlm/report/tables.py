"""Tables as data, and their three formats: terminal text, Markdown, and (through the page's template) HTML."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vtlvlm.system.text import shown

NOT_RUN = "not run"
"""Text of a cell that no run has filled"""
NUMBER = re.compile(r"[<>≤≥±+\-−~ ]*\d[\d.,]*(?![\w.,])")
"""Beginning of a cell that is a number; "3D skeleton" is none"""


@dataclass(frozen=True)
class ResultRow:
    """One row of the results: a model and its accuracies in [0, 1]; None for an accuracy that makes no sense."""

    name: str
    top1: float
    top5: float | None = None
    mean_class: float | None = None
    num_clips: int | None = None
    """test clips; None for chance"""
    note: str = ""
    ours: bool = False
    """whether the row is the model of the report"""


@dataclass(frozen=True)
class Table:
    """Any table, with header and cells as text. Columns of numbers are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = field(default_factory=frozenset)
    """row numbers to emphasise"""
    headings: Mapping[int, str] = field(default_factory=dict)
    """row number -> a line that stands before this row, over all columns"""
    name: str = ""
    """file name without extension, for formats with a file for each table; unique in a document"""
    caption: str = ""
    """what the table shows, in a sentence or two"""

    @cached_property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether every row holds a number, nothing, or ``not run``."""
        return tuple(
            any(row[i] for row in self.rows) and all(_is_number(row[i]) or row[i] == NOT_RUN for row in self.rows)
            for i in range(len(self.header))
        )


def summary_table(rows: Sequence[ResultRow]) -> Table:
    """The result rows as a table of text. The column of notes is left out if no row has a note."""
    header = ["", "top-1", "top-5", "mean class", "clips"]
    cells = [[r.name, *map(accuracy_text, (r.top1, r.top5, r.mean_class)), "" if r.num_clips is None else f"{r.num_clips:,}"] for r in rows]
    if any(row.note for row in rows):
        header.append("note")
        for line, row in zip(cells, rows, strict=True):
            line.append(row.note)
    return Table(header, cells, frozenset(i for i, row in enumerate(rows) if row.ours))


def as_text(table: Table) -> str:
    """Aligned plain text for a terminal, with a rule under the header and ``*`` before emphasised rows."""
    mark = bool(table.strong)
    table = Table([*map(shown, table.header)], [[*map(shown, row)] for row in table.rows], table.strong, table.headings)
    widths = [max(display_width(line[i]) for line in (table.header, *table.rows)) for i in range(len(table.header))]
    lines = [_aligned(table.header, widths, table.numeric, "  " if mark else "")]
    lines.append(("  " if mark else "") + "  ".join("─" * width for width in widths))
    for number, row in enumerate(table.rows):
        lead = ("* " if number in table.strong else "  ") if mark else ""
        if number in table.headings:
            lines.append(shown(table.headings[number]))
        lines.append(_aligned(row, widths, table.numeric, lead))
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """A GitHub Markdown table with emphasised rows in bold."""
    ruler = ["---:" if numeric else ":---" for numeric in table.numeric]
    lines = [[markdown(cell) for cell in table.header], ruler]
    for number, row in enumerate(table.rows):
        if number in table.headings:
            lines.append([f"*{markdown(table.headings[number])}*", *[""] * (len(table.header) - 1)])
        lines.append([f"**{markdown(cell)}**" if number in table.strong and cell else markdown(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy_text(value: float | None) -> str:
    """An accuracy with three digits; an empty text for None."""
    return "" if value is None else f"{value:.3f}"


def duration_text(value: float) -> str:
    """A duration in a suitable unit: ``12 ms``, ``1.84 s``, ``14 min 20 s``, ``3 h 05 min``."""
    if value < 1:
        return f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def quantity(value: int) -> str:
    """A count: ``1,179,648`` below ten million, ``134.5 M`` above."""
    return f"{value:,}" if value < 10_000_000 else f"{value / 1e6:,.1f}\N{NO-BREAK SPACE}M"


def display_width(text: str) -> int:
    """Width of a text in terminal columns: two for wide East Asian characters, none for combining characters."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _aligned(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool], lead: str) -> str:
    padded = [
        " " * (width - display_width(cell)) + cell if right else cell + " " * (width - display_width(cell))
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return (lead + "  ".join(padded)).rstrip()


def markdown(text: str) -> str:
    """Text that Markdown shows literally: marks and HTML escaped, one line."""
    return re.sub(r"[\\`*_{}\[\]|~]", r"\\\g<0>", html.escape(shown(text), quote=False))


def _is_number(cell: str) -> bool:
    return not cell or NUMBER.match(cell) is not None
