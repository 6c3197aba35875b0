"""A document of sections with tables and figures, and its files: Markdown, one self-contained HTML page, LaTeX and CSV of each table."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from vtlvlm.errors import UsageError
from vtlvlm.report.formats import as_csv, as_latex
from vtlvlm.report.style import png
from vtlvlm.report.tables import Table, as_markdown, markdown
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
class Document:
    """A title, a summary of plain paragraphs, main numbers as (value, description), and sections."""

    title: str
    summary: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def write_document(document: Document, folder: Path) -> list[Path]:
    """Write ``report.md`` with ``figures/NAME.png``, ``report.html``, and ``tables/NAME.tex`` and ``tables/NAME.csv`` of every named table.

    Args:
        document: What to write.
        folder: Made if it does not exist. Files of an older report with the same names are replaced.

    Returns:
        The two pages and the folder of tables.

    Raises:
        UsageError: Two pictures or two tables have the same name.
    """
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    tables = [table for section in document.sections for table in section.tables if table.name]
    unique("tables", [table.name for table in tables])
    names = plain_names([table.name for table in tables])
    for table in tables:
        write_text(folder / "tables" / f"{names[table.name]}.tex", as_latex(table))
        write_text(folder / "tables" / f"{names[table.name]}.csv", as_csv(table))
    facts = [f"**{markdown(value)}** {markdown(name)}" for value, name in document.facts]
    parts = [f"# {markdown(document.title)}", *blocks(document.summary, markdown), "\n".join(f"- {line}" for line in facts)]
    text = folder / "report.md"
    write_text(text, "\n\n".join(part for part in [*parts, *markdown_sections(document.sections, folder)] if part) + "\n")
    page = folder / "report.html"
    write_text(page, template("tables.html.j2").render(report=document, facts=document.facts))
    return [text, page, folder / "tables"]


def markdown_sections(sections: Sequence[Section], folder: Path) -> list[str]:
    """The paragraphs of sections in Markdown. Writes their figures to ``figures/NAME.png`` in the folder."""
    unique("pictures", [picture.name for section in sections for picture in section.pictures])
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    files = file_names(sections)
    parts = []
    for section in sections:
        parts.append(f"## {markdown(section.title)}")
        parts += blocks(section.text, markdown)
        for table in section.tables:
            parts += blocks(table.caption, markdown)
            parts.append(as_markdown(table))
        for picture in section.pictures:
            with replacing(folder / "figures" / files[picture.name]) as temporary:
                temporary.write_bytes(picture.png)
            caption = markdown(picture.caption)
            parts.append(f"![{caption}](figures/{files[picture.name]})\n\n*{caption}*")
    return parts


def template(name: str) -> jinja2.Template:
    """A template of this folder. Text that it shows is harmless."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vtlvlm", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
    )
    environment.filters.update(paragraphs=_paragraphs, slug=_slug)
    return environment.get_template(name)


def _harmless(value: Any) -> Any:
    return shown(value) if type(value) is str else value  # Markup is ours


def _paragraphs(text: str) -> Markup:
    return Markup("\n").join(Markup("<p>{}</p>").format(block) for block in blocks(text, shown))


def blocks(text: str, harmless: Callable[[str], str]) -> list[str]:
    """The paragraphs of a text, each escaped and on one line."""
    return [harmless(" ".join(block.split())) for block in text.split("\n\n") if block.strip()]


def _slug(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def file_names(sections: Iterable[Section]) -> dict[str, str]:
    """The file of each picture: its name without special characters of paths and links, plus a number if two files would be the same."""
    names = [picture.name for section in sections for picture in section.pictures]
    return {name: f"{plain}.png" for name, plain in plain_names(names).items()}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names without special characters of paths and links, all different."""
    found: dict[str, str] = {}
    for given in names:
        plain = re.sub(r"[^\w.-]+", "-", given, flags=re.ASCII).strip(".-")[:80] or "picture"
        name, number = plain, 1
        while name in found.values():
            name, number = f"{plain}-{number + 1}", number + 1
        found[given] = name
    return found


def unique(what: str, names: Sequence[str]) -> None:
    """Refuse two equal names.

    Raises:
        UsageError: The message names the first one.
    """
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"report: two {what} are named {name!r}; give each its own file name")
