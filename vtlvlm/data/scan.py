"""Finding clips: which layout a folder has, what its names say, and what is in its files."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from vtlvlm.cores import usable_cores
from vtlvlm.data.index import ClipIndex, Layout, default_store, require_store, stores, strings
from vtlvlm.data.ntu import ACTIONS, EXAMPLE, VIDEO_SUFFIXES, parse_names, read_classes
from vtlvlm.errors import DataError, UsageError

_SAVE_EVERY = 60.0  # seconds between savings of a long scan, so that a killed one continues
_LEARNT = ("frames", "fps", "duration", "width", "height", "rotation", "variable", "identity", "damage")  # what inspect returns
_EDGE = 64 * 1024  # bytes at both ends of a file that enter its identity


def scan(
    root: Path,
    classes: str | Path | None,
    csv: str | Path | None,
    *,
    fast: bool,
    verify: bool,
    workers: int | None,
    progress: bool,
    store: str | Path | None,
) -> dict[str, Any]:
    """The fields of a ``ClipIndex``; see ``ClipIndex.scan``."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the one that holds the videos")
    if classes is not None and csv is not None:
        raise UsageError("give either a classes file (NTU names) or a CSV table, not both")
    if fast and verify:
        raise UsageError("fast looks at names only and verify decodes every frame: choose one")
    root = root.absolute()
    index = _listed_in_csv(root, Path(csv)) if csv is not None else _found(root, classes)
    place = Path(store) if store is not None else default_store(root)
    require_store(place, root)
    changed = _reuse(index, root, place)
    wanted = 0 if fast else 2 if verify else 1
    pending = np.flatnonzero((index.checked < wanted) & (index.misfit == "") & ((index.damage == "") | (index.checked == 0)))
    _inspect_all(index, pending, verify=verify, workers=workers, progress=progress, place=place)
    if changed or len(pending):
        _save(index, place)
    if not len(index.good):
        raise DataError(f"{root}: none of its {len(index)} clips can be used, the first being {index.path[0]} ({index.problem[0]})")
    return vars(index)


def _video_files(root: Path) -> tuple[list[str], list[int]]:
    """All files with a video's ending below a folder, in order: relative paths and sizes (-1: cannot be seen)."""
    found: list[tuple[str, int]] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if base == "." else base + "/"
        found += [(prefix + name, _size(folder, name)) for name in names if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]  # noqa: PTH122
    found.sort()
    return [path for path, _ in found], [size for _, size in found]


def _size(folder: str | Path, name: str) -> int:
    try:
        return os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118 - a hundred thousand times
    except OSError:
        return -1


def _found(root: Path, classes: str | Path | None) -> ClipIndex:
    """Clips found in the tree: NTU names if there are any, else a folder for each class."""
    paths, sizes = _video_files(root)
    if not paths:
        raise DataError(f"{root}: no video files ({' '.join(sorted(VIDEO_SUFFIXES))}) in it")
    files = [path.rpartition("/")[2] for path in paths]
    columns = parse_names(files)
    given = Path(classes) if classes is not None else root / "classes.txt"
    if classes is not None or given.is_file() or columns.valid.any() or any("_rgb." in file for file in files):
        names = read_classes(given) if classes is not None or given.is_file() else None
        return _ntu(root, paths, sizes, files, names, str(given))
    labels = [path.partition("/")[0] if "/" in path else "" for path in paths]
    misfit = ["" if label else "in no class folder: put each clip into a folder named after its class" for label in labels]
    return _index(root, "folders", paths, sizes, labels=labels, misfit=misfit)


def _ntu(root: Path, paths: list[str], sizes: list[int], files: list[str], names: dict[int, str] | None, origin: str) -> ClipIndex:
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
    index = _index(root, "ntu", paths, sizes, labels=None, misfit=misfit.tolist(), names=[f[:20] for f in files], valid=columns.valid)
    index.classes, index.official, index.label = tuple(known.values()), names is None, np.where(index.misfit == "", label, -1)
    index.setup, index.camera, index.subject, index.replication = columns[1:5]
    index.group = strings([f"P{subject:03}" if subject >= 0 else "" for subject in columns.subject.tolist()])
    return index


def table_file(root: Path, csv: Path) -> Path:
    """Where a CSV table lies: as given, or else in the root.

    Raises:
        DataError: Neither here nor there.
    """
    file = csv if csv.is_file() else root / csv
    if not file.is_file():
        raise DataError(f"{csv}: no such CSV table, neither here nor in {root}")
    return file


def _listed_in_csv(root: Path, csv: Path) -> ClipIndex:
    file = table_file(root, csv)
    try:
        header = pa.csv.open_csv(file).schema.names
        kinds = dict.fromkeys(header, pa.string())
        options = pa.csv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
        table = pa.csv.read_csv(file, convert_options=options)
    except pa.ArrowException as error:
        raise DataError(f"{file}: not a CSV table ({str(error).splitlines()[0]})") from error
    if missing := {"path", "label"} - set(header):
        raise DataError(f"{file}: no column {' and '.join(sorted(missing))}; the first line must name path,label[,split,group]")
    if not len(table):
        raise DataError(f"{file}: no rows in it")
    paths, labels = table["path"].to_pylist(), table["label"].to_pylist()
    splits = table["split"].to_pylist() if "split" in header else [""] * len(paths)
    groups = table["group"].to_pylist() if "group" in header else [""] * len(paths)
    sizes = [_size(root, path) for path in paths]
    misfit = [
        "no label"
        if not label
        else f"split {split!r} is not train, val or test"
        if split not in ("train", "val", "test", "")
        else "no such file"
        if size < 0
        else ""
        for label, split, size in zip(labels, splits, sizes, strict=True)
    ]
    index = _index(root, "csv", paths, sizes, labels=labels, misfit=misfit)
    index.split, index.group = strings(splits), strings(groups)
    return index


def _index(
    root: Path,
    layout: Layout,
    paths: list[str],
    sizes: list[int],
    *,
    labels: list[str] | None,
    misfit: list[str],
    names: list[str] | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> ClipIndex:
    """An index of files that nobody has looked into. Clips of the same name are kept once."""
    count = len(paths)
    path, problem = strings(paths), strings(misfit)
    name = path if names is None or valid is None else np.where(valid, strings(names), path)
    _, first, inverse = np.unique(name.astype(str), return_index=True, return_inverse=True)
    for row in np.flatnonzero((first[inverse] != np.arange(count)) & (problem == "")):
        problem[row] = f"the same clip as {path[first[inverse[row]]]}"
    classes: tuple[str, ...] = ()
    label = np.full(count, -1, dtype=np.int64)
    if labels is not None:
        usable = np.array([bool(text) for text in labels])
        distinct, position = np.unique(np.array(labels, dtype=str)[usable], return_inverse=True)
        classes, label[usable] = tuple(distinct.tolist()), position
        label[problem != ""] = -1
    unknown = np.full(count, -1, dtype=np.int16)
    empty = strings([""] * count)
    return ClipIndex(
        root=root,
        layout=layout,
        classes=classes,
        official=False,
        path=path,
        name=name,
        label=label,
        setup=unknown,
        camera=unknown,
        subject=unknown,
        replication=unknown,
        group=empty,
        split=empty,
        size=np.asarray(sizes, dtype=np.int64),
        frames=np.full(count, -1, dtype=np.int64),
        fps=np.full(count, np.nan),
        duration=np.full(count, np.nan),
        width=np.full(count, -1, dtype=np.int32),
        height=np.full(count, -1, dtype=np.int32),
        rotation=unknown.copy(),
        variable=np.zeros(count, dtype=np.bool_),
        identity=empty.copy(),
        checked=np.zeros(count, dtype=np.int8),
        misfit=problem,
        damage=empty.copy(),
    )


def _reuse(index: ClipIndex, root: Path, place: Path) -> bool:
    """Take over what an earlier scan learnt of files that still have the same path and size. Returns whether the
    index at ``place`` says something else."""
    files = [file for file in {place, *stores(root)} if file.is_file()]
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            old = ClipIndex.read(file)
        except DataError:
            continue
        if old.root != root and file != stores(root)[0]:  # an index inside the folder moves with it
            if file == place:
                raise DataError(f"{place}: the index of {old.root}, not of {root}; name another file")
            continue
        rows = {key: row for row, key in enumerate(zip(old.path.tolist(), old.size.tolist(), strict=True))}
        match = np.array([rows.get(key, -1) for key in zip(index.path.tolist(), index.size.tolist(), strict=True)], dtype=np.int64)
        here = np.flatnonzero(match >= 0)
        for column in (*_LEARNT, "checked"):
            getattr(index, column)[here] = getattr(old, column)[match[here]]
        same = (
            file == place
            and len(old) == len(index) == len(here)
            and (old.label == index.label).all()
            and (old.misfit == index.misfit).all()
        )
        return not (same and all((getattr(old, c) == getattr(index, c)).all() for c in ("label", "misfit", "split", "group")))
    return True


def _inspect_all(index: ClipIndex, rows: NDArray[np.int64], *, verify: bool, workers: int | None, progress: bool, place: Path) -> None:
    """Look into files with threads (FFmpeg works outside Python's lock); results go into the index as they come."""
    if not len(rows):
        return
    from tqdm import tqdm

    def results() -> Iterator[tuple[int, tuple[Any, ...]]]:
        with ThreadPoolExecutor(workers or usable_cores()) as pool:
            try:
                yield from zip(rows.tolist(), pool.map(lambda row: inspect(index.file(row), verify), rows.tolist()), strict=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    saved = time.monotonic()
    title = "decoding all clips" if verify else "looking into clips"
    try:
        for row, found in tqdm(results(), total=len(rows), desc=title, unit="clip", delay=1, disable=not progress, leave=False):
            for column, value in zip(_LEARNT, found, strict=True):
                getattr(index, column)[row] = value
            readable = not index.damage[row] or os.access(index.file(row), os.R_OK)  # what cannot be read is tried again next time
            index.checked[row] = (2 if verify else 1) if readable else 0
            if time.monotonic() - saved > _SAVE_EVERY:
                _save(index, place)
                saved = time.monotonic()
    except BaseException:
        _save(index, place)
        raise


def inspect(path: Path, verify: bool = False) -> tuple[Any, ...]:
    """What an index learns from one file, in the order of ``_LEARNT``; the last is the damage, "" if it is sound."""
    from vtlvlm.data import video

    try:
        info = video.probe(path)
        frames = video.verify(path) if verify else info.frames
        return frames, info.fps, info.duration, info.width, info.height, info.rotation, info.variable, identity(path), ""
    except (DataError, OSError) as error:
        return -1, np.nan, np.nan, -1, -1, -1, False, "", str(error).removeprefix(f"{path}: ")


def identity(path: Path) -> str:
    """What tells one content from another without reading all of it: size and blake2b of the first and last 64 KiB."""
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
        warnings.warn(f"{place}: the index cannot be kept ({error.strerror}); the next start looks into all clips again", stacklevel=2)
