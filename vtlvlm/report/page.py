"""The demo's report as data, and its three formats: Markdown with PNG files, one self-contained HTML page, and a table on the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from markupsafe import Markup

from vtlvlm.report.document import Picture, Section, blocks, markdown_sections, template, unique
from vtlvlm.report.tables import ResultRow, Table, as_markdown, as_text, duration_text, markdown, quantity, summary_table
from vtlvlm.system.files import write_text
from vtlvlm.system.text import shown

__all__ = ["Conditions", "Picture", "Report", "Section", "print_table", "write_html", "write_markdown"]


@dataclass(frozen=True)
class Conditions:
    """What was tested, and at what cost: the context of the results."""

    protocol: str
    split_sizes: Mapping[str, int]
    """clips in ``train``, ``val``, ``test``"""
    num_classes: int
    seed: int
    trainable_parameters: int
    total_parameters: int
    seconds_per_clip: float
    """from video file to probabilities, on ``machine``"""
    machine: str
    training_seconds: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that a report shows."""

    title: str
    summary: str
    """plain paragraphs: method and result"""
    conditions: Conditions
    rows: Sequence[ResultRow]
    difficulty: Table
    """difficulty of the videos, set before any training: probe, accuracy, limit, whether the limit holds"""
    sections: Sequence[Section] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """version of every package that can change a result"""
    commands: Sequence[str] = ()
    """commands that make this report again"""


def write_markdown(report: Report, folder: Path) -> Path:
    """Write ``report.md`` and its figures (``figures/NAME.png``) into a folder.

    Returns:
        The path of ``report.md``.

    Raises:
        UsageError: Two pictures have the same name.
    """
    parts = [f"# {markdown(report.title)}", *blocks(report.summary, markdown), as_markdown(summary_table(report.rows))]
    parts += ["## Setting", as_markdown(conditions_table(report.conditions))]
    parts += ["## Difficulty of the videos (set before training)", as_markdown(report.difficulty)]
    parts += markdown_sections(report.sections, folder)
    parts += ["## Versions and seed", as_markdown(versions_table(report))]
    if report.commands:
        lines = "\n".join(map(shown, report.commands))
        fence = "`" * (max(map(len, re.findall("`+", lines)), default=0) + 3)
        parts += ["## Reproduce", f"{fence}sh\n{lines}\n{fence}"]
    path = folder / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def write_html(report: Report, path: Path) -> Path:
    """Write one page that needs no other file and no network. It follows the reader's light or dark theme.

    Raises:
        UsageError: Two pictures have the same name.
    """
    unique("pictures", [picture.name for section in report.sections for picture in section.pictures])
    page = template("report.html.j2").render(
        report=report,
        line_end=Markup("\n"),
        summary=summary_table(report.rows),
        facts=facts(report),
        setting=conditions_table(report.conditions),
        versions=versions_table(report),
    )
    write_text(path, page)
    return path


def print_table(report: Report, file: TextIO | None = None) -> None:
    """Print the title, the results, and two lines about the conditions as aligned text."""
    conditions = report.conditions
    sizes = ", ".join(f"{count:,} {name}" for name, count in conditions.split_sizes.items())
    lines = [
        shown(report.title),
        "",
        as_text(summary_table(report.rows)),
        "",
        f"protocol {shown(conditions.protocol)} ({sizes} clips, {conditions.num_classes} actions) · seed {conditions.seed}",
        f"{quantity(conditions.trainable_parameters)} of {quantity(conditions.total_parameters)} parameters trained · "
        f"{duration_text(conditions.seconds_per_clip)} a clip on {shown(conditions.machine)}",
    ]
    print("\n".join(lines), file=file or sys.stdout)


def facts(report: Report) -> list[tuple[str, str]]:
    """The main numbers at the top of the page: (value, description)."""
    conditions = report.conditions
    ours = [(f"{row.top1:.3f}", f"top-1 accuracy, {row.name}") for row in report.rows if row.ours]
    return [
        *ours[:1],
        (f"{conditions.split_sizes.get('test', 0):,}", f"test clips, {conditions.num_classes} actions"),
        (quantity(conditions.trainable_parameters), f"parameters trained of {quantity(conditions.total_parameters)}"),
        (duration_text(conditions.seconds_per_clip), "per clip, file to answer"),
    ]


def conditions_table(conditions: Conditions) -> Table:
    """Protocol, split sizes, seed, parameters and times, one per row."""
    rows = [
        ("protocol", conditions.protocol),
        ("clips", ", ".join(f"{count:,} {name}" for name, count in conditions.split_sizes.items())),
        ("actions", str(conditions.num_classes)),
        ("seed", str(conditions.seed)),
        ("trainable parameters", f"{conditions.trainable_parameters:,} of {conditions.total_parameters:,}"),
        ("seconds per clip", f"{conditions.seconds_per_clip:.3f}"),
        ("machine", conditions.machine),
    ]
    if conditions.training_seconds is not None:
        rows.insert(6, ("training", duration_text(conditions.training_seconds)))
    return Table(("", "value"), rows)


def versions_table(report: Report) -> Table:
    """The seed, then every version."""
    return Table(("", "version"), [("seed", str(report.conditions.seed)), *report.versions.items()])
