"""Compares places on the disk by file, not by spelling, and keeps outputs apart from sources."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vtlvlm.errors import UsageError


def real(path: str | Path) -> Path:
    """The absolute path without links and ``..``; it need not exist."""
    return Path(os.path.realpath(path))


def same(one: str | Path, other: str | Path) -> bool:
    """Whether two paths are one file or folder, also through mounts, symbolic and hard links."""
    try:
        return Path(one).samefile(other)
    except OSError:
        return real(one) == real(other)


def within(path: str | Path, folder: str | Path) -> bool:
    """Whether a path is ``folder`` or lies below it."""
    place, top = real(path), real(folder)
    if place == top or top in place.parents:
        return True
    return any(same(parent, top) for parent in (place, *place.parents) if parent.exists()) if top.exists() else False


def require_apart(output: str | Path, sources: Iterable[str | Path | None], what: str) -> None:
    """Refuse an output that is a source of the command, lies in a source or holds one.

    Args:
        output: File or folder to write.
        sources: Files and folders that are only read; None is skipped.
        what: The output in words, such as ``the folder of copies``.

    Raises:
        UsageError: The message names both.
    """
    for source in sources:
        if source is None:
            continue
        if same(output, source):
            raise UsageError(f"{output}: {what} would overwrite its source {source}; name another place")
        if within(output, source):
            raise UsageError(f"{output}: {what} would lie inside its source {source}; name a place outside it")
        if within(source, output):
            raise UsageError(f"{output}: holds {source}, the source of {what}; name another place")


def below(folder: str | Path, relative: str) -> Path:
    """Join an output folder and a path that comes from data.

    Raises:
        UsageError: The result would lie outside the folder: through an absolute path, ``..``, or a link in the folder that leads out.
    """
    inner = PurePosixPath(relative.replace(os.sep, "/"))
    place = Path(folder, *inner.parts)
    if inner.is_absolute() or ".." in inner.parts or not inner.parts or not within(place, folder) or same(place, folder):
        raise UsageError(f"{relative!r} would be written outside {folder}; give paths that stay inside it")
    return place


def require_json_place(path: str | Path) -> None:
    """Refuse a JSON output that would replace a folder, or a file without a JSON object.

    Raises:
        UsageError: The message names the folder or file.
    """
    place = Path(os.path.abspath(path))  # noqa: PTH100 - `missing/../file` means `file`
    if place.is_dir():
        raise UsageError(f"{path}: is a folder; name a file for the JSON")
    if not place.exists():
        return
    try:
        known = place.suffix == ".json" and isinstance(json.loads(place.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        known = False
    if not known:
        raise UsageError(f"{path}: exists and holds no JSON object; name a new file that ends in .json")
