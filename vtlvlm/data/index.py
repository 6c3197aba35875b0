"""The clip index: one row for each video of a data set, stored as a parquet file.

Rows with a ``problem`` belong to no split. They stay in the index, and reports count and name them.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vtlvlm.data.listing import MOST_CLIPS, OWN_FOLDER
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.files import replacing
from vtlvlm.system.text import shown

Layout = Literal["ntu", "folders", "csv"]
_VERSION = "3"


@dataclass
class ClipIndex:
    """All clips of a data set. Every array is (n,); the row number is the clip's number in batches.

    Attributes:
        root: Folder that paths are relative to.
        layout: NTU names, a folder per class, or a CSV.
        classes: Class names in label order.
        official: Whether the classes are NTU RGB+D's own. The 60-action protocols then keep actions 1 to 60 only.
        defined: Whether a list names the classes. Classes without clips then stay.
        notes: Lines about other files and folders that were passed over.
        lost: Lines about unreadable files and folders, and about classes without clips.
        path: File relative to ``root``, with forward slashes.
        name: Unique key: ``S001C001P001R001A001`` for NTU names, else the path.
        label: Position in ``classes``, -1 if unknown.
        setup: From the NTU name, else -1; likewise ``camera``, ``subject`` and ``replication``.
        group: Clips of one group stay on one side of the ``group`` protocol. The person for NTU names, else the CSV's column; "" for none.
        split: ``train``, ``val`` or ``test`` from the CSV or from folders of these names; "" for none.
        size: Bytes, -1 if missing.
        modified: Time of the last change, in nanoseconds since 1970; -1 if missing.
        frames: Frames counted by reading packets; -1 if not yet counted.
        fps: Declared frames per second; NaN if not yet read.
        duration: Seconds; NaN if not yet read.
        width: Pixels as stored, -1 if not yet read; likewise ``height``.
        rotation: Degrees clockwise that turn the stored picture upright; -1 if not yet read. Decoding applies it.
        variable: Whether frames are unevenly spaced in time.
        identity: Size and a hash of the first and last 64 KiB; "" if not yet read.
        checked: 0 name only, 1 packets read, 2 every frame decoded.
        misfit: Why the name or label excludes the clip, "" if neither does.
        damage: Why the file excludes the clip, "" if it does not.
    """

    root: Path
    layout: Layout
    classes: tuple[str, ...]
    official: bool
    defined: bool
    notes: tuple[str, ...]
    lost: tuple[str, ...]
    path: NDArray[np.object_]
    name: NDArray[np.object_]
    label: NDArray[np.int64]
    setup: NDArray[np.int16]
    camera: NDArray[np.int16]
    subject: NDArray[np.int16]
    replication: NDArray[np.int16]
    group: NDArray[np.object_]
    split: NDArray[np.object_]
    size: NDArray[np.int64]
    modified: NDArray[np.int64]
    frames: NDArray[np.int64]
    fps: NDArray[np.float64]
    duration: NDArray[np.float64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    rotation: NDArray[np.int16]
    variable: NDArray[np.bool_]
    identity: NDArray[np.object_]
    checked: NDArray[np.int8]
    misfit: NDArray[np.object_]
    damage: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.path)

    @classmethod
    def scan(
        cls,
        root: str | Path,
        classes: str | Path | None = None,
        csv: str | Path | None = None,
        *,
        fast: bool = False,
        verify: bool = False,
        again: bool = False,
        workers: int | None = None,
        progress: bool = True,
        store: str | Path | None = None,
    ) -> Self:
        """Find all clips under ``root``, open the new and changed ones, and store the index.

        Args:
            root: Folder with NTU names in any tree, or a folder per class, or the base of the CSV's paths.
            classes: A classes.txt for NTU names; None takes ``root/classes.txt`` if it exists, else the official names.
            csv: Table ``path,label[,split,group]``, relative to ``root`` unless it exists as given.
            fast: Read names only, decode nothing. For files changed since an earlier scan, compare the identity.
            verify: Decode every frame of every clip that no earlier scan decoded. An equal identity counts as the same clip.
            again: Open damaged clips once more.
            workers: Threads that open videos; None for one per core.
            progress: Show a progress bar after one second.
            store: Index file; None for ``default_store(root)``.

        Raises:
            DataError: No clip is usable.
        """
        from vtlvlm.data.scan import scan

        return cls(**scan(Path(root), classes, csv, fast=fast, verify=verify, again=again, workers=workers, progress=progress, store=store))

    @property
    def problem(self) -> NDArray[np.object_]:
        """(n,) why each clip is left out, "" if it is usable."""
        return np.where(self.misfit != "", self.misfit, self.damage)

    @property
    def usable(self) -> NDArray[np.int64]:
        """Rows of the usable clips."""
        return np.flatnonzero(self.problem == "")

    def file(self, row: int) -> Path:
        """The video file of a row."""
        return self.root / str(self.path[row])

    def warn_excluded(self) -> None:
        """Warn once, with names, if clips are left out."""
        if message := self.excluded():
            warnings.warn(message, stacklevel=2)

    def excluded(self, most: int = 5) -> str:
        """One line about the clips that are left out; "" if none are."""
        problem = self.problem
        rows = np.flatnonzero(problem != "")
        if not len(rows):
            return f"{self.root}: {'; '.join(self.lost)}" if self.lost else ""
        listed = "; ".join(f"{shown(self.path[row])} ({shown(_reason(problem[row]))})" for row in rows[:most])
        more = "".join((f"; and {len(rows) - most} more" if len(rows) > most else "", *(f"; {line}" for line in self.lost)))
        return f"{self.root}: {len(rows)} of {len(self)} clips are left out: {listed}{more}. `vtlvlm prepare {self.root}` lists them all"

    def write(self, path: str | Path) -> None:
        """Write a parquet file, whole or not at all. If the index inside the data set is a link, replaces the link and keeps its target.

        Raises:
            OSError: The file cannot be written.
        """
        path = Path(path)
        facts = {"version": _VERSION, "root": str(self.root), **{name: getattr(self, name) for name in _FACTS}}
        table = pa.table({name: pa.array(getattr(self, name)) for name in COLUMNS}).replace_schema_metadata({"vtlvlm": json.dumps(facts)})
        with replacing(path, follow=path.parent.name != OWN_FOLDER) as temporary, temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file that ``write`` wrote. Checks everything: the file may be a stranger's or damaged.

        Raises:
            DataError: The file is not an index of this version, is damaged, or is larger than any data set.
        """
        try:
            with Path(path).open("rb") as file:
                facts, columns = _read(file)
        except (OSError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, pa.ArrowException) as error:
            raise DataError(f"{path}: not an index of this version of vtlvlm; delete it and run `vtlvlm prepare`") from error
        return cls(root=Path(facts["root"]), **{name: facts[name] for name in _FACTS}, **columns)


_FACTS = ("layout", "classes", "official", "defined", "notes", "lost")
COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(ClipIndex))[1 + len(_FACTS) :]
"""The columns of the index file, in order."""


_KINDS = {field.name: np.dtype(str(field.type).partition("np.")[2].rstrip("]").rstrip("_") or "O") for field in fields(ClipIndex)[7:]}
_MOST_BYTES = 2**31  # of an unpacked index; the 114,480 clips of NTU RGB+D 120 take some 20 million


def _read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read and check the facts and columns of an index file. Checks their unpacked size before it unpacks them."""
    opened = pq.ParquetFile(file, read_dictionary=[name for name, kind in _KINDS.items() if kind.hasobject])
    meta, groups = opened.metadata, range(opened.metadata.num_row_groups)
    if meta.num_rows > MOST_CLIPS or sum(meta.row_group(group).total_byte_size for group in groups) > _MOST_BYTES:
        raise ValueError(f"{meta.num_rows:,} rows")
    facts = json.loads((opened.schema_arrow.metadata or {})[b"vtlvlm"])
    if facts["version"] != _VERSION:
        raise KeyError("version")
    texts = [facts["root"], *facts["classes"], *facts["notes"], *facts["lost"]]
    if facts["layout"] not in get_args(Layout) or not all(isinstance(text, str) for text in texts):
        raise TypeError("facts")
    for name in ("classes", "notes", "lost"):
        facts[name] = tuple(facts[name])
    if not all(isinstance(facts[name], bool) for name in ("official", "defined")):
        raise TypeError("facts")
    table = opened.read(columns=list(COLUMNS))
    columns = {name: _column(table.column(name), kind) for name, kind in _KINDS.items()}
    label = columns["label"]
    if len(label) and not (label.min() >= -1 and label.max() < len(facts["classes"])):
        raise ValueError("labels")
    if facts["layout"] != "csv" and _leads_out(columns["path"].tolist()):
        raise ValueError("a path that leads out of the set")
    return facts, columns


def _leads_out(paths: list[str]) -> bool:
    together = "\n".join(("", *paths, ""))  # one search over all: there may be a hundred thousand
    if "\n/" not in together and "../" not in together and "..\n" not in together:
        return False
    return any(path.startswith("/") or ".." in path.split("/") for path in paths)


def _column(column: pa.ChunkedArray, kind: np.dtype[Any]) -> NDArray[Any]:
    """One column; its type must be ``kind``, and no value may be missing."""
    if column.null_count:
        raise TypeError("gaps")
    if not kind.hasobject:
        values = column.to_numpy()
        if values.dtype != kind:
            raise TypeError(f"{values.dtype} instead of {kind}")
        return np.array(values)
    parts = [strings([])]
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type) or not pa.types.is_string(chunk.type.value_type):
            raise TypeError("texts")
        texts = strings(chunk.dictionary.to_pylist())
        if max(map(len, texts), default=0) > _LONGEST:
            raise ValueError("a text too long for a path")
        parts.append(texts[chunk.indices.to_numpy()])
    return np.concatenate(parts)


_LONGEST = 100_000  # letters of one text; paths have some thousand at most


def _reason(problem: str) -> str:
    return problem if len(problem) <= 120 else problem[:117] + "..."


def report_file(store: Path) -> Path:
    """The report file beside an index file."""
    return store.with_suffix(".txt")


def require_store(store: Path, root: Path) -> None:
    """Refuse to overwrite anything but an index and the report beside it.

    Raises:
        UsageError: Another file or folder has the name of the index or of its report.
    """
    if store.is_dir():
        raise UsageError(f"{store}: is a folder; name a file for the index")
    page = report_file(store)
    if page == store:
        raise UsageError(f"{store}: the index and its report would be the same file; choose a name that ends in .parquet")
    if store in stores(root):
        return
    if os.path.lexists(store) and not _replaceable(store):
        raise UsageError(f"{store}: exists and is not an index of vtlvlm; name another file for the index")
    if os.path.lexists(page) and not (page.is_file() and _REPORT.search(_start(page))):
        raise UsageError(f"{page}: exists and is not the report of an index, which would overwrite it; name another file for the index")


_REPORT = re.compile(rb"\A[^\n]*: [\d,]+ clips \([^\n]*\), [\d,]+ usable, [\d,]+ classes")


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(1 << 16)


def _replaceable(store: Path) -> bool:
    """Whether a file is an index of any version, or was one before it was damaged."""
    if not store.is_file() or not store.stat().st_size:
        return store.is_file()
    if not _start(store).startswith(b"PAR1"):
        return False
    try:
        with store.open("rb") as file:
            return b"vtlvlm" in (pq.read_schema(file).metadata or {})
    except (OSError, ValueError, pa.ArrowException):
        return True


def default_store(root: Path) -> Path:
    """``root/.vtlvlm/index.parquet`` if it is writable and no link, else a file in the user's cache folder."""
    inside, outside = stores(root)
    folder = inside.parent if inside.parent.is_dir() else root
    if any(place.is_symlink() for place in (inside.parent, inside, report_file(inside))):
        return outside
    writable = os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222  # root may write anywhere; respect the bits nevertheless
    return inside if writable else outside


def stores(root: Path) -> tuple[Path, Path]:
    """The two possible index files of ``root``: inside it, and in the user's cache folder."""
    key = blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / OWN_FOLDER / "index.parquet", caches / "vtlvlm" / f"index-{key}.parquet"


def strings(values: Sequence[str]) -> NDArray[np.object_]:
    """A column of strings."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
