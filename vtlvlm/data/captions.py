"""Captions of clips, from a table ``clip,caption`` in which a clip may have several rows."""

from __future__ import annotations

import csv
import io
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.index import ClipIndex
from vtlvlm.data.tables import read_text
from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

MOST_LETTERS, MOST_ROWS = 1_000, 2_000_000
"""Letters of a caption, and rows of a table, at most"""


class Captions(NamedTuple):
    """The captions of an index's clips. Equal captions are one text."""

    texts: tuple[str, ...]
    """different ones"""
    starts: NDArray[np.int64]
    """(n + 1,) where the captions of each clip begin in ``of``"""
    of: NDArray[np.int64]
    """places in ``texts``, clip by clip"""
    identity: str
    """hash of the table's rows"""

    def clip(self, row: int) -> list[str]:
        """The captions of a clip."""
        return [self.texts[place] for place in self.of[self.starts[row] : self.starts[row + 1]]]

    def drawn(self, rows: NDArray[np.int64], chance: NDArray[np.float64]) -> NDArray[np.int64]:
        """One caption of each clip, as a place in ``texts``.

        Args:
            rows: (B,) clips that have captions.
            chance: (B,) in [0, 1), which of a clip's captions.
        """
        counts = self.starts[rows + 1] - self.starts[rows]
        found: NDArray[np.int64] = self.of[self.starts[rows] + (chance * counts).astype(np.int64)]
        return found


def read_captions(file: Path, index: ClipIndex, wanted: NDArray[np.int64]) -> Captions:
    """Read a table of captions.

    Args:
        file: CSV in UTF-8 whose first line names ``clip`` and ``caption``. A clip is named as in the index: by its name or its path.
        index: The clips. Rows of other clips are passed over.
        wanted: Clips that must have a caption.

    Raises:
        DataError: The file is not such a table, or a wanted clip has no caption.
    """
    texts: dict[str, int] = {}
    places = {str(path): row for row, path in enumerate(index.path)} | {str(name): row for row, name in enumerate(index.name)}
    clips, captions = [], []
    digest = blake2b(digest_size=16)
    for clip, caption in _rows(file):
        digest.update(f"{clip}\0{caption}\0".encode())
        if clip in places:
            clips.append(places[clip])
            captions.append(texts.setdefault(caption, len(texts)))
    order = np.argsort(np.array(clips, dtype=np.int64), kind="stable")
    counts = np.bincount(np.array(clips, dtype=np.int64), minlength=len(index))
    if len(lacking := wanted[counts[wanted] == 0]):
        first = shown(index.name[lacking[0]])
        raise DataError(f"{file}: has no caption for {len(lacking)} of {len(wanted)} clips, the first being {first}; add a row for each")
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Captions(tuple(texts), starts, np.array(captions, dtype=np.int64)[order], digest.hexdigest())


def _rows(file: Path) -> list[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(read_text(file).lstrip("\ufeff"), newline=""), strict=True)
    found: list[tuple[str, str]] = []
    try:
        if missing := {"clip", "caption"} - set(reader.fieldnames or ()):
            raise DataError(f"{file}: no column {' and '.join(sorted(missing))}; the first line must name clip,caption")
        for row in reader:
            clip, caption = (" ".join((row[name] or "").split()) for name in ("clip", "caption"))
            if not clip or not caption:
                raise DataError(f"{file}: line {reader.line_num} has no {'clip' if not clip else 'caption'}; complete or remove it")
            if len(caption) > MOST_LETTERS:
                raise DataError(f"{file}: line {reader.line_num}: a caption of {len(caption):,} letters, at most {MOST_LETTERS:,}")
            found.append((clip, caption))
            if len(found) > MOST_ROWS:
                raise DataError(f"{file}: more than {MOST_ROWS:,} rows")
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV table: line {reader.line_num}: {error}") from error
    if not found:
        raise DataError(f"{file}: holds no rows")
    return found
