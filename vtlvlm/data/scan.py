"""Opens the files of a data set to fill an index. Reuses an earlier index for files that have not changed."""

from __future__ import annotations

import errno
import mmap
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.forms import drop_empty, found, listed
from vtlvlm.data.index import COLUMNS, ClipIndex, default_store, require_store, stores
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.cpu import usable_cores
from vtlvlm.system.places import same, within
from vtlvlm.system.text import shown

_SAVE_EVERY = 60.0  # seconds between saves of a long scan; a killed scan continues from the last save
_LEARNT = ("frames", "fps", "duration", "width", "height", "rotation", "variable", "identity", "damage")  # the values of inspect
_UNKNOWN = (-1, np.nan, np.nan, -1, -1, -1, False, "", "")
_ROOM = 512 * 2**20  # bytes that decoding a large picture may take
_EDGE = 64 * 1024  # bytes at each end of a file that its identity covers
_PASSING = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EACCES, errno.EPERM, errno.EINTR, errno.EAGAIN, errno.EBUSY} | {
    errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENOLCK, errno.ENODEV, errno.ENXIO
}  # fmt: skip
# errors of the machine, which may be gone the next time; the file need not be damaged


def scan(
    root: Path,
    classes: str | Path | None,
    csv: str | Path | None,
    *,
    fast: bool,
    verify: bool,
    again: bool,
    workers: int | None,
    progress: bool,
    store: str | Path | None,
) -> dict[str, Any]:
    """The fields of a ``ClipIndex``; see ``ClipIndex.scan``."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one that holds the videos")
    if classes is not None and csv is not None:
        raise UsageError("give either a classes file or a CSV table, not both")
    if fast and verify:
        raise UsageError("fast reads names only and verify decodes every frame: choose one")
    root = root.absolute()
    place = Path(store) if store is not None else default_store(root)
    require_store(place, root)
    index = listed(root, Path(csv)) if csv is not None else found(root, classes)
    kept, before = _reuse(index, root, place)
    wanted = 0 if fast else 2 if verify else 1
    fits = (index.misfit == "") & (index.size >= 0)
    doubted = (index.checked == 1) & (index.damage != "") if again else np.zeros(len(index), dtype=np.bool_)
    unseen = (index.checked < wanted) & ((index.damage == "") | (index.checked == 0))
    pending = np.flatnonzero(fits & (unseen | doubted | (before > 0) | (np.bool_(verify) & (index.checked > 0))))
    _look_into(index, pending, before, level=wanted, workers=workers, progress=progress, place=place)
    if not index.defined:
        drop_empty(index)
    if kept is None or _differ(kept, index):
        _save(index, place)
    if not len(index.usable):
        first = f"{shown(index.path[0])} ({shown(index.problem[0])})"
        raise DataError(f"{root}: none of its {len(index)} clips is usable, the first being {first}")
    return vars(index)


def _reuse(index: ClipIndex, root: Path, place: Path) -> tuple[ClipIndex | None, NDArray[np.int8]]:
    """Copy the values of files with unchanged path, size and time from an earlier scan.

    Returns:
        The index stored at ``place``, if any; and (n,) the earlier ``checked`` of files with the same size and another time, 0 for all
        other files. The identity then decides whether the file is still the same.
    """
    before = np.zeros(len(index), dtype=np.int8)
    files: list[Path] = []
    for file in (place, *stores(root)):
        if file.is_file() and not any(same(file, other) for other in files):
            files.append(file)
    kept: ClipIndex | None = None
    learnt = False
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        here = same(file, place)
        if learnt and not here:
            continue
        try:
            old = ClipIndex.read(file)
        except DataError:
            continue
        if not (same(old.root, root) or within(file, root)):  # an index inside the folder is moved and copied with it
            if here:
                raise DataError(f"{place}: is the index of {shown(old.root)}, not of {root}; name another file")
            continue
        kept = old if here else kept
        if not learnt:
            learnt = True
            take_over(index, old, before)
    return kept, before


def take_over(index: ClipIndex, old: ClipIndex, before: NDArray[np.int8]) -> None:
    """Copy the values of unchanged files from an earlier index, and note in ``before`` (n,) the files with another time."""
    rows = {path: row for row, path in enumerate(old.path.tolist())}
    match = np.array([rows.get(path, -1) for path in index.path.tolist()], dtype=np.int64)
    known = (match >= 0) & (index.size >= 0) & (index.size == np.append(old.size, -1)[match])
    here, there = np.flatnonzero(known), match[known]
    for column in (*_LEARNT, "checked"):
        getattr(index, column)[here] = getattr(old, column)[there]
    touched = here[index.modified[here] != old.modified[there]]
    before[touched] = index.checked[touched]
    index.checked[touched] = 0
    _forget(index, touched[(before[touched] == 0) | (index.identity[touched] == "")])
    before[index.identity == ""] = 0


def _forget(index: ClipIndex, rows: NDArray[np.int64]) -> None:
    for column, value in zip(_LEARNT, _UNKNOWN, strict=True):
        getattr(index, column)[rows] = value


def _differ(one: ClipIndex, other: ClipIndex) -> bool:
    """Whether two indexes differ in classes, layout or any column."""
    if len(one) != len(other) or (one.classes, one.layout, one.official) != (other.classes, other.layout, other.official):
        return True
    pairs = ((getattr(one, name), getattr(other, name)) for name in COLUMNS)
    return not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


class Seen(NamedTuple):
    """The result of opening a file."""

    learnt: tuple[Any, ...] | None
    """Values in the order of ``_LEARNT``; None if the file is unchanged"""
    level: int
    """The new ``ClipIndex.checked``; 0 if the next scan must open the file again"""
    size: int
    modified: int


def _look_into(
    index: ClipIndex, rows: NDArray[np.int64], before: NDArray[np.int8], *, level: int, workers: int | None, progress: bool, place: Path
) -> None:
    """Open files with threads (FFmpeg runs outside Python's lock), and write each result into the index."""
    if not len(rows):
        return
    from tqdm import tqdm

    sound = index.damage == ""

    def work(row: int) -> Seen:
        known = max(int(before[row]), int(index.checked[row]) if sound[row] else 0)
        return look(index.file(row), level, str(index.identity[row]) if sound[row] else "", known)

    def results() -> Iterator[tuple[int, Seen]]:
        with ThreadPoolExecutor(workers or usable_cores()) as pool:
            try:
                yield from zip(rows.tolist(), pool.map(work, rows.tolist()), strict=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    saved = time.monotonic()
    title = ("comparing clips", "reading clips", "decoding all clips")[level]
    try:
        for row, seen in tqdm(results(), total=len(rows), desc=title, unit="clip", delay=1, disable=not progress, leave=False):
            if seen.learnt is not None:
                for column, value in zip(_LEARNT, seen.learnt, strict=True):
                    getattr(index, column)[row] = value
            index.checked[row], index.size[row], index.modified[row] = seen.level, seen.size, seen.modified
            if time.monotonic() - saved > _SAVE_EVERY:
                _save(index, place)
                saved = time.monotonic()
    except BaseException:
        _save(index, place)
        raise


def look(path: Path, level: int, known: str = "", known_level: int = 0) -> Seen:
    """Open one file.

    Args:
        path: The file.
        level: 0 compares the identity only, 1 counts the frames, 2 decodes them.
        known: The file's identity in the earlier scan, "" for none.
        known_level: The ``checked`` of that identity.
    """
    try:
        start = path.stat()
        content = identity(path) if known else ""
        if known and content == known and known_level >= level:
            return Seen(None, known_level, start.st_size, start.st_mtime_ns)
        if not level:
            return Seen((*_UNKNOWN[:7], content, ""), 0, start.st_size, start.st_mtime_ns)
        learnt, passing = inspect(path, level == 2)
        end = path.stat()
    except OSError as error:
        return Seen((*_UNKNOWN[:8], (error.strerror or str(error)).lower()), 0, -1, -1)
    if (start.st_size, start.st_mtime_ns) != (end.st_size, end.st_mtime_ns):
        return Seen((*_UNKNOWN[:8], "changed while it was read; the next start reads it again"), 0, start.st_size, -1)
    return Seen(learnt, 0 if passing else level, start.st_size, start.st_mtime_ns)


def inspect(path: Path, verify: bool = False) -> tuple[tuple[Any, ...], bool]:
    """Read an index's values from one file.

    Returns:
        The values in the order of ``_LEARNT``; the last one is the damage, or "". And whether the machine failed and not the file: then the
        damage may be gone the next time.
    """
    from vtlvlm.data import video

    try:
        info = video.probe(path)
        frames = video.verify(path) if verify else info.frames
        return (frames, info.fps, info.duration, info.width, info.height, info.rotation, info.variable, identity(path), ""), False
    except (DataError, OSError, MemoryError) as error:
        reason = str(error).removeprefix(f"{path}: ") or "no memory is left"
        passing = _is_passing(error) or not os.access(path, os.R_OK) or _memory_is_short()
        return (*_UNKNOWN[:8], f"{reason}; the next start reads it again" if passing and "again" not in reason else reason), passing


def _is_passing(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def _memory_is_short() -> bool:
    """Whether the process is near its memory limit. Decoders then report sound files as damaged."""
    try:
        mmap.mmap(-1, _ROOM).close()  # reserves addresses, uses no memory
    except (OSError, MemoryError):
        return True
    return False


def identity(path: Path) -> str:
    """A key for a file's content without reading all of it: size and blake2b of the first and last 64 KiB."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = blake2b(file.read(_EDGE), digest_size=12)
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return f"{size}-{digest.hexdigest()}"


def _save(index: ClipIndex, place: Path) -> None:
    try:
        index.write(place)
    except OSError as error:
        warnings.warn(f"{place}: the index cannot be written ({error.strerror}); the next start reads all clips again", stacklevel=2)
