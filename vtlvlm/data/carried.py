"""The index that a cache carries. With it, the cache can be read where the videos are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtlvlm.data.forms import Entry, drop_empty, listed, of_listing, spellings
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.listing import Listing
from vtlvlm.data.scan import take_over
from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

INDEX = "index.parquet"
"""Name of the file in the cache folder"""
_TWICE = "the same file as "


def carry_index(folder: Path, index: ClipIndex) -> None:
    """Write an index into a cache folder. A link of that name is replaced; its target stays as it is.

    Raises:
        DataError: The file cannot be written.
    """
    path = folder / INDEX
    try:
        if path.is_symlink():
            path.unlink()
        index.write(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); make room, and run the same command again") from error


def carried_index(folder: Path, root: Path | None = None, classes: str | Path | None = None, csv: str | Path | None = None) -> ClipIndex:
    """The index that a cache carries. No video is looked for or opened.

    Args:
        folder: The cache folder.
        root: Folder of the videos on the machine that has them; None for the cache folder. Messages name it.
        classes: A classes.txt that names the classes anew.
        csv: A table of clips. Its paths are those of the index, or names of clips.

    Raises:
        DataError: The cache carries no index, it is damaged, or no clip is usable.
    """
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        known = ClipIndex.read(path)
    except DataError as error:
        raise DataError(
            f"{path}: not an index of this version of vtlvlm; copy the cache again, or give the folder of the videos (--data.source.root)"
        ) from error
    known.root = root or folder
    index = known
    if csv is not None:
        index = listed(known.root, Path(csv), _among(known))
    elif classes is not None:
        index = of_listing(known.root, _listing(known), Path(classes), named=True)
    if index is not known:
        take_over(index, known, np.zeros(len(index), dtype=np.int8))
        if not index.defined:
            drop_empty(index)
    if not len(index.usable):
        first = f", the first being {shown(index.path[0])} ({shown(index.problem[0])})" if len(index) else ""
        raise DataError(f"{path}: none of its {len(index)} clips is usable{first}")
    return index


def _listing(known: ClipIndex) -> Listing:
    """The videos of an index, as if their folder had been searched."""
    paths, misfits = known.path.tolist(), known.misfit.tolist()
    again = {path: misfit.removeprefix(_TWICE) for path, misfit in zip(paths, misfits, strict=True) if misfit.startswith(_TWICE)}
    return Listing(paths, known.size.tolist(), known.modified.tolist(), again, (), ())


def _among(known: ClipIndex) -> Callable[[str], Entry]:
    """Finds a path of a table among the paths of an index, or else among the names of its clips."""
    columns = zip(known.path.tolist(), known.size.tolist(), known.modified.tolist(), range(len(known)), known.name.tolist(), strict=True)
    entries = [Entry(*values) for values in columns]
    rows = {entry.name: entry for entry in reversed(entries)} | {entry.path: entry for entry in entries}

    def find(written: str) -> Entry:
        return next((rows[path] for path in spellings(written) if path in rows), Entry(written, -1, -1, written, written))

    return find
