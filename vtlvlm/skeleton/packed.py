"""Many recordings together: a folder of shards, which ``vtlvlm prepare`` makes from ``.skeleton`` files, or one ``.npz`` file.

A shard is a safetensors file with one tensor (body-frames, V, 6): x, y, z in metres, two pixels of the video, and the tracking state. A
recording's body-frames follow each other, all frames of its first body before those of its second. The metadata name each recording, its
source file's size and time, and a digest of the tensor. ``meta.json`` is written last; it lists the recordings and what was left out.

An ``.npz`` file holds ``joints`` (body-frames, V, 3) and ``frames`` (n,), for several bodies also ``bodies`` (n,), and either ``name`` (n,)
or ``label``, ``subject``, ``view`` and ``repetition``, each (n,). Labels and repetitions count from 0; NTU-like names count from 1.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.cache_format import digest
from vtlvlm.data.ntu import ClipName
from vtlvlm.data.shards import TensorFile, open_tensor, save_tensors
from vtlvlm.errors import DataError
from vtlvlm.skeleton.layouts import LAYOUTS, Layout
from vtlvlm.skeleton.reading import ENDING, Skeletons
from vtlvlm.system.text import shown

META, VERSION = "meta.json", 1
NW_UCLA_ACTIONS = (
    *("pick up with one hand", "pick up with two hands", "drop trash", "walk around", "sit down"),
    *("stand up", "donning", "doffing", "throw", "carry"),
)
"""Northwestern-UCLA Multiview Action 3D (Wang et al., CVPR 2014), in the order of its labels."""
MOST_RECORDINGS = 5_000_000
_SHARD = re.compile(r"skeletons-\d{6}\.safetensors", re.ASCII)
_TENSOR = "skeletons"
_NW_UCLA = re.compile(r"a\d{2}_s\d{2}_e\d{2}_v\d{2}", re.ASCII)
_LARGEST_META = 1 << 30
_UNPACKED = 100  # times its size, at most, that a file of recordings may unpack to


@dataclass(frozen=True)
class Recordings:
    """n recordings with joints of one layout.

    Attributes:
        source: The file or folder, for messages.
        layout: The joints.
        paths: (n,) path of each recording's ``.skeleton`` file, relative to its folder, with forward slashes. An ``.npz`` file has none;
            its names stand for them.
        frames: (n,) T of each recording.
        bodies: (n,) M of each recording, 1 or 2.
        parts: Arrays (body-frames, V, 3 or 6) that hold the recordings.
        part: (n,) position in ``parts``.
        start: (n,) first body-frame within the part.
        classes: Action number → name, if the recordings are of a known set.
        left_out: Path → why a recording could not be read.
    """

    source: Path
    layout: Layout
    paths: tuple[str, ...]
    frames: NDArray[np.int64]
    bodies: NDArray[np.int64]
    parts: tuple[NDArray[np.float32], ...]
    part: NDArray[np.int64]
    start: NDArray[np.int64]
    classes: Mapping[int, str] | None
    left_out: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.paths)

    def values(self, row: int) -> NDArray[np.float32]:
        """(M, T, V, 3 or 6) of one recording: x, y, z in metres, and, if known, two pixels and the tracking state. Not to be changed."""
        bodies, frames, begin = int(self.bodies[row]), int(self.frames[row]), int(self.start[row])
        part = self.parts[int(self.part[row])]
        return part[begin : begin + bodies * frames].reshape(bodies, frames, *part.shape[1:])

    def skeletons(self, row: int) -> Skeletons:
        """One recording, as its file was read. Without pixels in the file, these are NaN and every joint counts as tracked."""
        values = self.values(row)
        if values.shape[-1] == 3:
            return Skeletons(values, np.full((*values.shape[:-1], 2), np.nan, np.float32), np.full(values.shape[:-1], 2, np.uint8))
        return Skeletons(values[..., :3], values[..., 3:5], values[..., 5].astype(np.uint8))


def open_recordings(path: str | Path) -> Recordings:
    """Open a folder of shards, whose tensors stay on the disk until they are used, or read an ``.npz`` file.

    Raises:
        DataError: There is no such file or folder, it is damaged or incomplete, or its joints are of no layout.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder of recordings; `vtlvlm prepare` makes one from {ENDING} files")
    return _open_npz(path)


def layout_of(joints: int, source: Path) -> Layout:
    """The layout with this number of joints.

    Raises:
        DataError: None has.
    """
    for layout in LAYOUTS.values():
        if layout.num_joints == joints:
            return layout
    known = ", ".join(f"{layout.num_joints} ({layout.name})" for layout in LAYOUTS.values())
    raise DataError(f"{source}: {joints} joints are of no known layout; known are {known}")


# -- one file ------------------------------------------------------------------------------------------------------------------------


def _open_npz(path: Path) -> Recordings:
    held = _arrays(path)
    joints, frames = _taken(held, "joints", path), _taken(held, "frames", path)
    if joints.ndim != 3 or joints.shape[2] != 3 or joints.dtype.kind != "f" or frames.ndim != 1 or not len(frames):
        raise DataError(f"{path}: expected joints (body-frames, V, 3) as floats, and frames (n,)")
    count, layout = len(frames), layout_of(joints.shape[1], path)
    frames = _whole(frames, "frames", count, path, least=1, most=len(joints))
    bodies = np.ones(count, dtype=np.int64)
    if "bodies" in held:
        bodies = _whole(held["bodies"], "bodies", count, path, least=1, most=2)
    ends = np.cumsum(frames * bodies)
    if ends[-1] != len(joints):
        raise DataError(f"{path}: joints has {len(joints):,} body-frames, frames (and bodies) claim {ends[-1]:,}; the file is damaged")
    names = _names(held, count, path)
    if not (finite := np.isfinite(joints).all((1, 2))).all():
        row = int(np.searchsorted(ends, int(np.flatnonzero(~finite)[0]), side="right"))
        raise DataError(f"{path}: {shown(names[row], 60)} has coordinates that are not finite; take the recording out of the file")
    given = [str(name) for name in held["name"]] if "name" in held and held["name"].shape == (count,) else [""]
    nw_ucla = layout.name == "kinect20" and all(map(_NW_UCLA.fullmatch, given))
    return Recordings(
        source=path,
        layout=layout,
        paths=tuple(names),
        frames=frames,
        bodies=bodies,
        parts=(joints.astype(np.float32, copy=False),),
        part=np.zeros(count, dtype=np.int64),
        start=ends - frames * bodies,
        classes=dict(enumerate(NW_UCLA_ACTIONS, 1)) if nw_ucla else None,
        left_out={},
    )


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file. Their sizes are compared with the file's before memory is taken for them."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
            if claimed > _UNPACKED * size:
                raise ValueError("unpacks to more than numbers do")
            for member in archive.infolist():
                with archive.open(member) as stream:
                    if np.lib.format.read_magic(stream) != (1, 0):
                        raise ValueError("another format")
                    shape, _, kind = np.lib.format.read_array_header_1_0(stream)
                    if kind.hasobject or math.prod(shape) * kind.itemsize + stream.tell() != member.file_size:
                        raise ValueError("an array of another size")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an .npz file of recordings, or damaged; copy it again") from error


def _taken(held: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in held:
        raise DataError(f"{path}: lacks the array {name}; it has {shown(', '.join(sorted(held)), 100) or 'none'}")
    return held[name]


def _whole(column: NDArray[Any], name: str, count: int, path: Path, *, least: int, most: int) -> NDArray[np.int64]:
    """A column of whole numbers within bounds."""
    if column.shape != (count,) or column.dtype.kind not in "iu" or column.min() < least or column.max() > most:
        raise DataError(f"{path}: {name} must be {count:,} whole numbers from {least} to {most:,}")
    return column.astype(np.int64)


def _names(held: dict[str, NDArray[Any]], count: int, path: Path) -> list[str]:
    """Distinct names: NTU-like ones from the four columns, else the file's own."""
    columns = ("view", "subject", "repetition", "label")
    if all(name in held for name in columns):
        view, subject = (_whole(held[name], name, count, path, least=1, most=999).tolist() for name in columns[:2])
        repetition, label = (_whole(held[name], name, count, path, least=0, most=998).tolist() for name in columns[2:])
        numbers = zip(view, subject, repetition, label, strict=True)
        names = [str(ClipName(1, camera, person, take + 1, action + 1)) for camera, person, take, action in numbers]
    else:
        given = _taken(held, "name", path)
        if given.shape != (count,) or given.dtype.kind != "U":
            raise DataError(f"{path}: name must be {count:,} texts")
        names = [str(name) for name in given]
    _require_distinct(names, path)
    return names


def _require_distinct(names: Sequence[str], source: Path) -> None:
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"{source}: holds {shown(twice, 100)} twice; names must differ")


# -- a folder of shards -------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A recording in a shard."""

    path: str
    size: int
    """Bytes of its source"""
    modified: int
    """Nanoseconds since 1970"""
    frames: int
    bodies: int


class Shard(NamedTuple):
    """A shard, whose tensor is not yet read."""

    file: TensorFile
    layout: str
    digest: str
    entries: tuple[Entry, ...]

    def sound(self) -> bool:
        """Whether the tensor is the one that was written. Reads it."""
        return digest(self.file.map()) == self.digest


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, in the order in which they were written."""
    return sorted(file for file in folder.glob("*.safetensors") if _SHARD.fullmatch(file.name))


def write_shard(file: Path, layout: Layout, entries: Sequence[Entry], recordings: Sequence[Skeletons]) -> None:
    """Write a shard, whole or not at all.

    Raises:
        DataError: It cannot be written.
    """
    flat = [one.values.reshape(-1, layout.num_joints, 6) for one in recordings]
    tensor = np.ascontiguousarray(np.concatenate(flat))
    columns = {name: json.dumps(values) for name, values in zip(Entry._fields, zip(*entries, strict=True), strict=True)}
    made = {"layout": layout.name, "digest": digest(tensor)}
    save_tensors(file, {_TENSOR: tensor}, {**columns, **made})


def open_shard(file: Path) -> Shard:
    """Read a shard's header, and check that it fits its tensor.

    Raises:
        DataError: The shard is damaged.
    """
    tensor = open_tensor(file, _TENSOR)
    try:
        columns = [json.loads(tensor.metadata[name]) for name in Entry._fields]
        layout, written = tensor.metadata["layout"], tensor.metadata["digest"]
        if not all(isinstance(path, str) for path in columns[0]) or not all({*map(type, column)} == {int} for column in columns[1:]):
            raise ValueError("a value of another type")
        entries = tuple(Entry(*row) for row in zip(*columns, strict=True))
        if not all(0 < entry.frames <= tensor.shape[0] and entry.bodies in (1, 2) for entry in entries):
            raise ValueError("a recording of no size")
        if tensor.dtype != "<f4" or tensor.shape != (sum(entry.frames * entry.bodies for entry in entries), LAYOUTS[layout].num_joints, 6):
            raise ValueError("a tensor of another shape")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: damaged; delete it, and run `vtlvlm prepare` again") from error
    return Shard(tensor, layout, written, entries)


def _open_folder(folder: Path) -> Recordings:
    meta = read_meta(folder)
    wanted: dict[str, int] = {path: row for row, path in enumerate(meta["recordings"])}
    count = len(wanted)
    frames, bodies, part, start = (np.full(count, -1, dtype=np.int64) for _ in range(4))
    parts: list[NDArray[np.float32]] = []
    for file in shard_files(folder):
        shard = open_shard(file)
        if shard.layout != meta["layout"]:
            raise DataError(
                f"{file}: holds joints of {shard.layout}, the other shards of {meta['layout']}; delete it, and run `vtlvlm prepare`"
            )
        at = 0
        for entry in shard.entries:  # a later entry of the same path replaces an earlier one
            if (row := wanted.get(entry.path)) is not None:
                frames[row], bodies[row], part[row], start[row] = entry.frames, entry.bodies, len(parts), at
            at += entry.frames * entry.bodies
        parts.append(shard.file.map())
    if (part < 0).any():
        lost = meta["recordings"][int(np.flatnonzero(part < 0)[0])]
        raise DataError(f"{folder}: lacks {shown(lost, 100)}, a shard is missing; run `vtlvlm prepare` again")
    layout = LAYOUTS[meta["layout"]]
    return Recordings(folder, layout, tuple(wanted), frames, bodies, tuple(parts), part, start, None, meta["left_out"])


def read_meta(folder: Path) -> dict[str, Any]:
    """The list of recordings of a folder of shards, and what was left out.

    Raises:
        DataError: There is none, or it is damaged.
    """
    file = folder / META
    if not file.is_file():
        begun = "its making was interrupted; run `vtlvlm prepare` again" if shard_files(folder) else "`vtlvlm prepare` makes one"
        raise DataError(f"{folder}: no finished folder of recordings: {begun}")
    try:
        if file.stat().st_size > _LARGEST_META:
            raise ValueError("larger than any list")
        meta = dict(json.loads(file.read_text(encoding="utf-8")))
        recordings, left_out = meta["recordings"], meta["left_out"]
        if (meta["kind"], meta["version"]) != (_TENSOR, VERSION) or meta["layout"] not in LAYOUTS:
            raise ValueError("another kind or version")
        if not isinstance(recordings, list) or not isinstance(left_out, dict) or not 0 < len(recordings) <= MOST_RECORDINGS:
            raise ValueError("no recordings")
        if not all(isinstance(text, str) for text in [*recordings, *left_out.values()]) or len(set(recordings)) < len(recordings):
            raise ValueError("a recording without a name of its own")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: not the list of a folder of recordings; run `vtlvlm prepare` again, or name another folder") from error
    return meta
