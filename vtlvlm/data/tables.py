"""Reads tables and lists that people write: a CSV of clips, a ``classes.txt``. Reads the usual encodings; errors name the line."""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from vtlvlm.errors import DataError
from vtlvlm.system.text import encodable, shown

MOST_CLASSES = 10_000
"""Most classes of a data set. EPIC-Kitchens has 3,806 pairs of verb and noun"""
MOST_LETTERS = 500
"""Most letters of a class name"""
SIDES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
"""Names of the sides of a split, in lower case"""
_MOST_BYTES = 2**30
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts with the UTF-16 mark
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Table(NamedTuple):
    """The rows of a CSV of clips."""

    paths: list[str]
    labels: list[str]
    """Without spaces around them"""
    splits: list[str]
    """train, val, test or ""; any other text unchanged"""
    groups: list[str]
    lines: list[int]
    """Number of each row's last line, from 1"""


def read_text(file: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 as spreadsheets save it.

    Raises:
        DataError: The file has another encoding (the message names the line), cannot be read, or has over a gigabyte.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise DataError(f"{file}: has {file.stat().st_size:,} bytes, a table at most {_MOST_BYTES:,}")
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    if encoding is None:  # in UTF-16, every ASCII letter has a zero byte
        encoding = "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be" if raw[:1] == b"\0" else "utf-8"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = shown(raw[max(0, error.start - 20) : error.start + 4].decode(errors="surrogateescape"))
        raise DataError(f"{file}: line {line} is not UTF-8 (at ...{found}); save the file as UTF-8 and try again") from error


def read_table(file: Path) -> Table:
    """Read a CSV ``path,label[,split,group]``, separated by commas, semicolons or tabs.

    Raises:
        DataError: The file is not such a table. The message names the line.
    """
    lines = list(io.StringIO(read_text(file), newline=""))
    skipped, mark = 0, ""
    while skipped < len(lines) and ((named := re.fullmatch(r"sep=([,;\t])\s*", lines[skipped])) or not lines[skipped].strip()):
        mark = named[1] if named else mark
        skipped += 1
    if skipped == len(lines):
        raise DataError(f"{file}: holds no rows; the first line must name path,label[,split,group]")
    header, division = _header(lines[skipped], mark)
    if twice := {name for name in ("path", "label", "split", "group") if header.count(name) > 1}:
        raise DataError(f"{file}: the first line names {' and '.join(sorted(twice))} twice")
    if missing := {"path", "label"} - set(header):
        raise DataError(f"{file}: no column {' and '.join(sorted(missing))}; the first line must name path,label[,split,group]")
    table = Table([], [], [], [], [])
    at = {name: header.index(name) for name in ("path", "label", "split", "group") if name in header}
    reader = csv.reader(lines[skipped + 1 :], delimiter=division, strict=True)
    try:
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue
            line = skipped + 1 + reader.line_num
            if len(cells) < len(header) or any(cells[len(header) :]):
                raise DataError(f"{file}: not a CSV table: line {line} has {len(cells)} cells, the first line names {len(header)}")
            table.paths.append(cells[at["path"]])
            table.labels.append(cells[at["label"]].strip())
            side = cells[at["split"]].strip() if "split" in at else ""
            table.splits.append(SIDES.get(side.lower(), side))
            table.groups.append(cells[at["group"]].strip() if "group" in at else "")
            table.lines.append(line)
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV table: line {skipped + 1 + reader.line_num}: {error}") from error
    if not table.paths:
        raise DataError(f"{file}: holds no rows")
    return table


def _header(line: str, mark: str) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter."""
    for division in (mark,) if mark else (",", ";", "\t"):
        try:
            names = [name.strip().lower() for name in next(csv.reader([line], delimiter=division), [])]
        except csv.Error:  # a cell of over 131,072 letters
            continue
        if {"path", "label"} <= set(names):
            return names, division
    return [name.strip().lower() for name in line.split(mark or ",")], mark or ","


def unusable(label: str) -> str:
    """Why a text cannot be a class name, "" if it can."""
    if not label:
        return "no label"
    if len(label) > MOST_LETTERS:
        return f"a label of {len(label):,} letters; at most {MOST_LETTERS}"
    if not encodable(label):
        return "a label that is not UTF-8; rename it"
    if any(unicodedata.category(letter) == "Cc" for letter in label):
        return "a label with control characters; rename it"
    return ""


def require_distinct(names: dict[str, str], what: Path) -> None:
    """Refuse class names that look alike, and too many classes.

    Args:
        names: Class name → where it occurs, in words.
        what: The file or folder of the classes.

    Raises:
        DataError: Two names differ only in capitals or in the encoding of accents, or there are over ``MOST_CLASSES``.
    """
    if len(names) > MOST_CLASSES:
        raise DataError(f"{what}: has {len(names):,} classes, at most {MOST_CLASSES:,} are possible; is this the column of labels?")
    first: dict[str, str] = {}
    for name in sorted(names):
        other = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            how = "capitals" if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFC", other) else "the encoding of accents"
            both = f"{shown(other, 80)!r} ({names[other]}) and {shown(name, 80)!r} ({names[name]})"
            raise DataError(f"{what}: {both} differ in {how} only; write one of them")


def read_names(file: Path) -> list[str]:
    """The lines of a list of names, without outer spaces and without empty lines."""
    return [line.strip("\ufeff \t\r\n\f\v") for line in io.StringIO(read_text(file)) if line.strip("\ufeff \t\r\n\f\v")]
