"""Finds the clips of a data set. It has one of three forms: NTU names in any tree, a folder for each class, or a CSV.

Class folders may lie in train, val and test folders, or hold them.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vtlvlm.data.index import ClipIndex, Layout, strings
from vtlvlm.data.listing import VIDEO_ENDINGS, Listing, some, videos_in
from vtlvlm.data.ntu import ACTIONS, EXAMPLE, parse_names, plain_names, read_classes
from vtlvlm.data.tables import SIDES, read_table, require_distinct, unusable
from vtlvlm.errors import DataError
from vtlvlm.system.text import encodable, not_text, shown


def found(root: Path, classes: str | Path | None) -> ClipIndex:
    """Find the clips in a tree: by NTU names if it has any, else by class folders.

    Raises:
        DataError: The tree has no videos, or the list of classes cannot be read.
    """
    given = Path(classes) if classes is not None else root / "classes.txt"
    listing = videos_in(root, [given])
    if not listing.paths:
        also = f"; {'; '.join((*listing.lost, *listing.notes))}" if listing.lost or listing.notes else ""
        raise DataError(f"{root}: holds no video files ({' '.join(sorted(VIDEO_ENDINGS))}){also}")
    return of_listing(root, listing, given, classes is not None or given.is_file())


def of_listing(root: Path, listing: Listing, given: Path, named: bool) -> ClipIndex:
    """Index the clips of a listing: by NTU names if it has any, else by class folders.

    Args:
        root: Folder of the data set.
        listing: Its videos.
        given: List of classes.
        named: Whether that list names the classes.

    Raises:
        DataError: The list of classes cannot be read.
    """
    files = [path.rpartition("/")[2] for path in listing.paths]
    ntu = bool(parse_names(files).valid.any()) or any("_rgb." in file for file in files)
    if ntu:
        names = read_classes(given) if named else None
        index = ntu_clips(root, listing.paths, listing.sizes, files, names, str(given), _misfits(listing))
    else:
        index = _class_folders(root, listing, _names_for_folders(given) if named else None, given)
    index.modified[:] = listing.modified
    index.notes, index.lost = (*index.notes, *listing.notes), (*index.lost, *listing.lost)
    return _with_escapes(index)


def _names_for_folders(given: Path) -> list[str]:
    if not given.is_file():
        raise DataError(f"{given}: no such classes file; give a text file of lines such as 'A008 sitting down', or of names of folders")
    return plain_names(given)


def _misfits(listing: Listing) -> list[str]:
    """For each video, why its path excludes it; "" if it does not."""
    return [
        f"the same file as {listing.again[path]}" if path in listing.again else "" if path.isascii() or encodable(path) else not_text(path)
        for path in listing.paths
    ]


def ntu_clips(
    root: Path,
    paths: list[str],
    sizes: list[int],
    files: list[str],
    names: dict[int, str] | None,
    origin: str,
    misfits: list[str] | None = None,
) -> ClipIndex:
    """Index clips by their NTU names.

    Args:
        root: Folder of the data set.
        paths: Paths relative to ``root``.
        sizes: File sizes in bytes.
        files: File names without folders.
        names: Action number → class name; None for the official names.
        origin: Where the classes come from, for messages.
        misfits: Why each clip is already left out, "" if it is not.
    """
    columns = parse_names(files)
    highest = int(columns.action[columns.valid].max(initial=0))
    known = names or dict(enumerate(ACTIONS[: 60 if highest <= 60 else 120], start=1))
    position = np.full(1000, -1, dtype=np.int64)
    position[list(known)] = np.arange(len(known))
    label = np.where(columns.valid, position[columns.action], -1)
    misfit = np.where(columns.valid, "", f"not an NTU clip name such as {EXAMPLE}").astype(object)
    where = origin if names else f"the {len(ACTIONS)} official actions"
    for row in np.flatnonzero(columns.valid & (label < 0)):
        misfit[row] = f"label outside the classes: A{columns.action[row]:03} is not in {where}"
    if misfits is not None and any(misfits):
        misfit = np.where(strings(misfits) != "", strings(misfits), misfit)
    short = [f[:20] for f in files]
    keys = (
        short if columns.valid.all() else [name if valid else path for name, valid, path in zip(short, columns.valid, paths, strict=True)]
    )
    index = _index(root, "ntu", paths, sizes, misfit.tolist(), keys)
    index.classes, index.official, index.label = tuple(known.values()), names is None, np.where(index.misfit == "", label, -1)
    index.setup, index.camera, index.subject, index.replication = columns[1:5]
    index.group = strings([f"P{subject:03}" if subject >= 0 else "" for subject in columns.subject.tolist()])
    return index


def _class_folders(root: Path, listing: Listing, names: list[str] | None, given: Path) -> ClipIndex:
    """Index clips by their class folders. Folders named train, val or test, above or inside the class folders, divide the clips."""
    parts = [path.split("/")[:-1] for path in listing.paths]
    order = _order_of_sides(parts)
    depth = 0 if order is None else 2
    sides, labels, misfits = [], [], _misfits(listing)
    for row, folders in enumerate(parts):
        side = SIDES.get(folders[order].lower(), "") if order is not None and len(folders) >= depth else ""
        label = folders[1 - order if order is not None else 0].strip() if len(folders) >= max(depth, 1) and (side or order is None) else ""
        sides.append(side)
        labels.append(label)
        if not misfits[row] and not label:
            misfits[row] = (
                "in no class folder: put each clip into a folder named after its class"
                if order is None
                else "in no class folder inside train, val or test: put each clip into a folder such as train/CLASS"
            )
        elif not misfits[row]:
            misfits[row] = unusable(label)
    if names is not None:
        known, wanted = {unicodedata.normalize("NFC", name): name for name in names}, set(names)
        labels = [known.get(unicodedata.normalize("NFC", label), label) for label in labels]
        for row, label in enumerate(labels):
            if not misfits[row] and label not in wanted:
                misfits[row] = f"its folder {shown(label, 80)} is not in {given}: add it there, or rename the folder"
    index = _index(root, "folders", listing.paths, listing.sizes, misfits)
    where = _first_paths(labels, listing.paths)
    index.split = strings(sides)
    _label(index, labels, names, where, root)
    index.defined = names is not None
    if order is not None:
        which = "train/CLASS" if order == 0 else "CLASS/train"
        index.notes = (f"folders such as {which} divide the clips: --data.source.protocol csv uses this split",)
    at = 1 if order is None else 2
    inner: dict[str, set[str]] = {}
    for folders in parts:
        inner.setdefault(folders[0] if folders else "", set()).update(folders[at : at + 1])
    if order is None and len(index.classes) > 1 and (same := _same_inside(inner)):
        index.lost = (
            *index.lost,
            f"the class folders {shown(', '.join(sorted(inner)), 80)} hold folders of the same names ({shown(', '.join(same), 80)}): if "
            "the inner folders are the classes and the outer ones a split, name the outer ones train, val and test",
        )
    used = np.flatnonzero(index.misfit == "")
    if order != 0 and len(index.classes) == 1 and len(used) and len(set().union(*inner.values())) > 1:
        top = parts[int(used[0])][0]
        index.lost = (
            *index.lost,
            f"all clips lie in one folder, which makes one class; if {shown(top)} holds the class folders, name {shown(root / top)}",
        )
    if names is not None and (lacking := [name for name in names if name not in where]):
        index.notes = (*index.notes, f"classes of {given} that have no folder: {some(lacking)}")
    return index


def _same_inside(inner: dict[str, set[str]]) -> list[str]:
    """The names of the inner folders, if two or three top folders hold the same names and more than one; else none."""
    names = list(inner.values())
    return sorted(names[0]) if len(names) in (2, 3) and len(names[0]) > 1 and all(other == names[0] for other in names) else []


def _first_paths(labels: list[str], paths: list[str]) -> dict[str, str]:
    """Label → the first folder that has it, in words."""
    where: dict[str, str] = {}
    for label, path in zip(labels, paths, strict=True):
        if label and label not in where:
            where[label] = f"in {shown(path.rpartition('/')[0], 120)}"
    return where


def _order_of_sides(parts: list[list[str]]) -> int | None:
    """The level of the train, val and test folders: 0 for the top folders, 1 for the folders inside them, None for neither."""
    tops = Counter(folders[0].lower() for folders in parts if folders)
    sides = {SIDES[top] for top in tops if top in SIDES}
    deep = {SIDES[folders[0].lower()] for folders in parts if len(folders) > 1 and folders[0].lower() in SIDES}
    alone = all(top in SIDES for top in tops)
    if (len(sides) > 1 and (alone or deep == sides)) or (deep and alone):
        return 0
    seconds = [folders[1].lower() if len(folders) > 1 else "" for folders in parts if folders]
    return 1 if seconds and all(name in SIDES for name in seconds) and len({SIDES[name] for name in seconds}) > 1 else None


class Entry(NamedTuple):
    """A file that a table lists."""

    path: str
    size: int
    """Bytes, -1 if it is missing"""
    modified: int
    key: object
    """Equal for two paths of the same file"""
    name: str
    """The clip's unique key"""


def listed(root: Path, csv: Path, find: Callable[[str], Entry] | None = None) -> ClipIndex:
    """Index the clips that a CSV lists.

    Args:
        root: Base of its paths.
        csv: The table.
        find: Finds a path of the table; None for files below ``root``.

    Raises:
        DataError: The table is missing or cannot be read, or two labels look alike.
    """
    file = table_file(root, csv)
    table = read_table(file)
    find = find or (lambda written: _on_disk(root, written))
    entries = [find(written) for written in table.paths]
    misfits = []
    first: dict[object, int] = {}
    for row, (entry, label, side) in enumerate(zip(entries, table.labels, table.splits, strict=True)):
        reason = unusable(label)
        if not reason and side not in ("train", "val", "test", ""):
            reason = f"split {shown(side, 40)!r} is not train, val or test"
        elif not reason and entry.size < 0:
            reason = "no such file"
        elif not reason and not encodable(entry.path):
            reason = not_text(entry.path)
        if not reason:
            one = first.setdefault(entry.key, row)
            if one != row:
                reason = (
                    f"the same clip as {entries[one].path}{_contradiction(table.labels, table.splits, one, row)} in line {table.lines[one]}"
                )
        misfits.append(reason)
    paths, names = [entry.path for entry in entries], [entry.name for entry in entries]
    index = _index(root, "csv", paths, [entry.size for entry in entries], misfits, names)
    index.modified[:] = [entry.modified for entry in entries]
    where: dict[str, list[int]] = {}
    for label, line in zip(table.labels, table.lines, strict=True):
        where.setdefault(label, []).append(line)
    _label(index, table.labels, None, {label: _in_lines(lines) for label, lines in where.items() if label}, file)
    index.split, index.group = strings(table.splits), strings(table.groups)
    return _with_escapes(index)


def table_file(root: Path, csv: Path) -> Path:
    """The CSV table at the given path, or else inside ``root``.

    Raises:
        DataError: The table is in neither place.
    """
    file = csv if csv.is_file() else root / csv
    if not file.is_file():
        raise DataError(f"{csv}: no such CSV table, neither here nor in {root}")
    return file


def _in_lines(lines: list[int]) -> str:
    return f"line {', '.join(map(str, lines[:3]))}{', ...' if len(lines) > 3 else ''}"


def _contradiction(labels: list[str], sides: list[str], one: int, row: int) -> str:
    """How two rows for the same file contradict each other, for the message."""
    if labels[one] != labels[row]:
        return f", labelled {shown(labels[one], 80)},"
    return f", on the side {sides[one]}," if sides[one] != sides[row] else ""


def spellings(written: str) -> Iterable[str]:
    """A path of a table, then without outer spaces and in other Unicode forms, as the disk may spell it."""
    return dict.fromkeys((written, written.strip(), *(unicodedata.normalize(form, written.strip()) for form in ("NFC", "NFD"))))


def _on_disk(root: Path, written: str) -> Entry:
    """A path of a table as the disk spells it."""
    for path in spellings(written):
        try:
            status = os.stat(os.path.join(root, path))  # noqa: PTH116, PTH118 - a hundred thousand times
        except (OSError, ValueError):
            continue
        key = (status.st_dev, status.st_ino) if status.st_ino else os.path.normpath(os.path.join(root, path))  # noqa: PTH118
        return Entry(path, status.st_size, status.st_mtime_ns, key, path)
    return Entry(written, -1, -1, written, written)


def _label(index: ClipIndex, labels: list[str], names: list[str] | None, where: dict[str, str], what: Path) -> None:
    """Set the classes, and the labels of the usable clips."""
    fits = index.misfit == ""
    kept = np.array(labels, dtype=object)
    require_distinct({label: where[label] for label in sorted(set(kept[fits].tolist()))}, what)
    classes = names if names is not None else sorted(set(kept[fits].tolist()))
    position = {name: number for number, name in enumerate(classes)}
    index.classes = tuple(classes)
    index.label = np.array([position.get(label, -1) for label in labels], dtype=np.int64)
    index.label[~fits] = -1
    named = {label for label in labels if not unusable(label)} if names is None else set()
    if gone := sorted(named - set(classes)):
        index.lost = (*index.lost, f"{NO_CLIP}: {some(gone)}")


NO_CLIP = "categories left out, because none of their clips can be used"


def _index(root: Path, layout: Layout, paths: list[str], sizes: list[int], misfits: list[str], names: list[str] | None = None) -> ClipIndex:
    """Make an index of files that have not been opened yet. Among clips of the same name, only the first is usable."""
    count = len(paths)
    path, misfit = strings(paths), strings(misfits)
    name = path.copy() if names is None else strings(names)
    first: dict[str, int] = {}
    for row, key in enumerate(name.tolist()):
        if not misfit[row] and (one := first.setdefault(key, row)) != row:
            misfit[row] = f"the same clip as {path[one]}"
    unknown = np.full(count, -1, dtype=np.int16)
    empty = strings([""] * count)
    size = np.asarray(sizes, dtype=np.int64)
    damage = empty.copy()
    damage[(size < 0) & (misfit == "")] = "no such file or directory"
    return ClipIndex(
        root=root,
        layout=layout,
        classes=(),
        official=False,
        defined=layout == "ntu",
        notes=(),
        lost=(),
        path=path,
        name=name,
        label=np.full(count, -1, dtype=np.int64),
        setup=unknown,
        camera=unknown,
        subject=unknown,
        replication=unknown,
        group=empty,
        split=empty,
        size=size,
        modified=np.full(count, -1, dtype=np.int64),
        frames=np.full(count, -1, dtype=np.int64),
        fps=np.full(count, np.nan),
        duration=np.full(count, np.nan),
        width=np.full(count, -1, dtype=np.int32),
        height=np.full(count, -1, dtype=np.int32),
        rotation=unknown.copy(),
        variable=np.zeros(count, dtype=np.bool_),
        identity=empty.copy(),
        checked=np.zeros(count, dtype=np.int8),
        misfit=misfit,
        damage=damage,
    )


def _with_escapes(index: ClipIndex) -> ClipIndex:
    """Escape the bytes of names that are not UTF-8. Such clips are left out; the escapes let messages name them."""
    for column in (index.path, index.name, index.misfit, index.split, index.group):
        odd = [row for row, text in enumerate(column.tolist()) if not text.isascii() and not encodable(text)]
        column[odd] = [shown(column[row]) for row in odd]
    return index


def drop_empty(index: ClipIndex) -> None:
    """Remove the classes without a usable clip, and list them in ``lost``. Only for data sets without a list of classes."""
    kept = np.bincount(index.label[index.usable], minlength=len(index.classes)) > 0
    if kept.all():
        return
    gone = [name for name, keep in zip(index.classes, kept, strict=True) if not keep]
    position = np.where(kept, np.cumsum(kept) - 1, -1)
    index.label = np.where(index.label >= 0, position[index.label], -1)
    index.classes = tuple(name for name, keep in zip(index.classes, kept, strict=True) if keep)
    index.lost = (*index.lost, f"{NO_CLIP}: {some(gone)}")
