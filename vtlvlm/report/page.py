"""The report as data, and its three formats: Markdown with PNG files, one self-contained HTML page, and a table on the terminal."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TextIO

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from vtlvlm.errors import UsageError
from vtlvlm.report.style import png
from vtlvlm.report.tables import ResultRow, Table, as_markdown, as_text, duration_text, markdown, quantity, summary_table
from vtlvlm.system.files import replacing, write_text
from vtlvlm.system.text import shown


@dataclass(frozen=True)
class Picture:
    """A figure of a section."""

    name: str
    """file name without extension; unique in the report"""
    caption: str
    figure: Figure

    @cached_property
    def png(self) -> bytes:
        """The figure as PNG bytes, drawn once."""
        return png(self.figure)

    @property
    def data_uri(self) -> str:
        """The figure as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def css_width(self) -> int:
        """The figure's width in CSS pixels (96 per inch)."""
        return round(self.figure.get_figwidth() * 96)


@dataclass(frozen=True)
class Section:
    """A headed part of the report."""

    title: str
    text: str = ""
    """plain paragraphs, separated by empty lines"""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


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
    _unique_names(report)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    files = file_names(report)
    parts = [f"# {markdown(report.title)}", *_blocks(report.summary, markdown), as_markdown(summary_table(report.rows))]
    parts += ["## Setting", as_markdown(conditions_table(report.conditions))]
    parts += ["## Difficulty of the videos (set before training)", as_markdown(report.difficulty)]
    for section in report.sections:
        parts.append(f"## {markdown(section.title)}")
        parts += _blocks(section.text, markdown)
        parts += [as_markdown(table) for table in section.tables]
        for picture in section.pictures:
            with replacing(folder / "figures" / files[picture.name]) as temporary:
                temporary.write_bytes(picture.png)
            caption = markdown(picture.caption)
            parts.append(f"![{caption}](figures/{files[picture.name]})\n\n*{caption}*")
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
    _unique_names(report)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vtlvlm", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: shown(value) if type(value) is str else value,  # Markup is ours
    )
    environment.filters.update(paragraphs=_paragraphs, slug=_slug)
    page = environment.get_template("report.html.j2").render(
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


def _paragraphs(text: str) -> Markup:
    return Markup("\n").join(Markup("<p>{}</p>").format(block) for block in _blocks(text, shown))


def _blocks(text: str, harmless: Callable[[str], str]) -> list[str]:
    """The paragraphs of a text, each escaped and on one line."""
    return [harmless(" ".join(block.split())) for block in text.split("\n\n") if block.strip()]


def _slug(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def file_names(report: Report) -> dict[str, str]:
    """The file of each picture: its name without special characters of paths and links, plus a number if two files would be the same."""
    found: dict[str, str] = {}
    for section in report.sections:
        for picture in section.pictures:
            plain = re.sub(r"[^\w.-]+", "-", picture.name, flags=re.ASCII).strip(".-")[:80] or "picture"
            name, number = plain, 1
            while f"{name}.png" in found.values():
                name, number = f"{plain}-{number + 1}", number + 1
            found[picture.name] = f"{name}.png"
    return found


def _unique_names(report: Report) -> None:
    names = [picture.name for section in report.sections for picture in section.pictures]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"report: two pictures are named {name!r}; give each its own file name")
