"""Recordings of an ``.npz`` file as files of their own: the path ``FILE.npz/NAME`` is the recording NAME."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import NamedTuple

from vtlvlm.errors import DataError
from vtlvlm.skeleton.packed import Recordings, open_recordings
from vtlvlm.system.text import shown

PACKED = ".npz"


def packed_in(path: Path) -> Path | None:
    """The ``.npz`` file of a path ``FILE.npz`` or ``FILE.npz/NAME``; None for other paths. The file need not exist."""
    return next((place for place in reversed((path, *path.parents)) if place.suffix == PACKED and not place.is_dir()), None)


def paths_in(file: Path) -> list[Path]:
    """A path for each recording of an ``.npz`` file, in its order.

    Raises:
        DataError: The file cannot be read, or two of its names are the same path.
    """
    return list(Opened.of(file).rows)


class Opened(NamedTuple):
    """An ``.npz`` file that has been read."""

    identity: tuple[Path, int, int]
    """Path, size and time of change"""
    recordings: Recordings
    rows: dict[Path, int]
    """Path of each recording -> its row"""

    @classmethod
    def of(cls, file: Path) -> Opened:
        """Read a file.

        Raises:
            DataError: As for :func:`paths_in`.
        """
        identity, recordings = _identity(file), open_recordings(file)
        rows = {Path(f"{file}/{name}"): row for row, name in enumerate(recordings.paths)}
        if len(rows) < len(recordings) or file in rows:  # names with slashes or dots
            raise DataError(f"{file}: the names of its recordings are no different file names; rename them")
        return cls(identity, recordings, rows)


class PackedFiles:
    """Finds recordings by their paths. The file that was read last stays in memory; threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._opened: Opened | None = None

    def find(self, path: Path) -> tuple[Recordings, int]:
        """The recordings of a file, and the row of the one that a path names. A file with one recording names it, too.

        Raises:
            DataError: The file cannot be read, or lacks the recording.
        """
        file = packed_in(path) or path
        with self._lock:
            if self._opened is None or self._opened.identity != _identity(file):
                self._opened = Opened.of(file)
            opened = self._opened
        if path == file:
            if len(opened.rows) > 1:
                raise DataError(f"{file}: holds {len(opened.rows):,} recordings; name one, such as {shown(next(iter(opened.rows)), 200)}")
            return opened.recordings, 0
        if path not in opened.rows:
            raise DataError(f"{shown(path, 200)}: {file} has no recording of this name, but such as {shown(next(iter(opened.rows)), 200)}")
        return opened.recordings, opened.rows[path]


def _identity(file: Path) -> tuple[Path, int, int]:
    try:
        state = file.stat()
    except OSError:
        return file, -1, -1  # reading it says why
    return file, state.st_size, state.st_mtime_ns
