"""Reads NTU's ``.skeleton`` files, and chooses the two bodies of a recording.

The lines of a file are: the number of frames; for each frame the number of bodies; for each body a line of 10 values that begins with the
body's id, the number of joints (25), and for each joint a line of 12 values: x y z in metres, two depth pixels, two colour pixels, the
orientation, and the tracking state. Ids are read as text: two ids of one real file, 72057594037944738 and 72057594037944734, are the same
64-bit float. Colour pixels may be NaN.

The choice of bodies is the one of HCN and SGN, which CTR-GCN and most others use.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from numpy.typing import NDArray

from vtlvlm.errors import DataError
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.system.text import shown

ENDING = ".skeleton"
MOST_BYTES = 2**27
"""Bytes of a file, at most: 27 minutes of one body"""
MOST_LINES = 4_000_000
SHORTEST = 12
"""Frames of a body, at least, if there are several bodies"""
WIDE = 0.8
"""A frame in which a body's width is more than this share of its height is suspect"""
MOST_WIDE = 0.69754
"""A body with at least this share of suspect frames is left out as furniture, if there are several bodies"""

_COLUMNS = ("x", "y", "z", "depth_x", "depth_y", "colour_x", "colour_y", "w", "i", "j", "k", "state")
_USED = ("x", "y", "z", "colour_x", "colour_y", "state")
_PLACES = [_COLUMNS.index(name) for name in _USED]
_JOINTS = NTU25.num_joints
_LINES = 2 + _JOINTS  # of a body


class Records(NamedTuple):
    """All bodies of a file, frame by frame: R records."""

    frame: NDArray[np.int64]
    """(R,) number of the frame, from 0, rising"""
    body: NDArray[np.int64]
    """(R,) position in ``ids``"""
    ids: tuple[str, ...]
    """Ids of the bodies, in the order of their first frames"""
    joints: NDArray[np.float32]
    """(R, V, 3) metres in the camera's frame: right, up, ahead"""
    pixels: NDArray[np.float32]
    """(R, V, 2) pixels of the video, from its upper left corner; NaN if unknown"""
    tracked: NDArray[np.uint8]
    """(R, V) 0 not tracked, 1 inferred, 2 tracked"""


class Skeletons(NamedTuple):
    """The chosen bodies of a recording: M is 1 or 2. Frames without any body are dropped."""

    joints: NDArray[np.float32]
    """(M, T, V, 3) metres in the camera's frame; zeros where a body is absent"""
    pixels: NDArray[np.float32]
    """(M, T, V, 2) pixels of the video; NaN where unknown or absent"""
    tracked: NDArray[np.uint8]
    """(M, T, V) 0 not tracked or absent, 1 inferred, 2 tracked"""

    @property
    def values(self) -> NDArray[np.float32]:
        """(M, T, V, 6) x, y, z, the two pixels and the tracking state."""
        return np.concatenate([self.joints, self.pixels, self.tracked[..., None].astype(np.float32)], axis=-1)


def read_skeleton(path: str | Path) -> Skeletons:
    """Read a ``.skeleton`` file and choose its bodies.

    Raises:
        DataError: The file cannot be read, is cut short, holds no body, has another number of joints, or a coordinate is not finite. The
            message names the file and the line.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise DataError(f"{path}: has {size:,} bytes, a {ENDING} file at most {MOST_BYTES:,}; cut the recording into parts")
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return choose_bodies(parse(raw, path))


def parse(raw: bytes, path: Path) -> Records:
    """Parse the content of a ``.skeleton`` file.

    Memory and time follow the size of the content, whatever numbers it claims.

    Args:
        raw: The content.
        path: The file, for messages.

    Raises:
        DataError: As for :func:`read_skeleton`.
    """
    if raw and not raw.endswith(b"\n"):
        raw += b"\n"
    feeds = np.frombuffer(raw, dtype=np.uint8) == ord("\n")
    if np.count_nonzero(feeds) > MOST_LINES:
        raise DataError(f"{path}: has over {MOST_LINES:,} lines; not a {ENDING} file of one recording")
    ends = np.flatnonzero(feeds).tolist()
    frames, starts = _body_lines(raw, ends, path)
    if not starts:
        raise DataError(f"{path}: holds no body in any frame; leave the recording out")
    rows = np.asarray(starts, dtype=np.int64)
    block = b"".join([raw[ends[row + 1] + 1 : ends[row + _LINES - 1] + 1] for row in starts])

    def line(number: int) -> int:
        """Line in the file, from 1, of a line of the block."""
        return int(rows[number // _JOINTS]) + 3 + number % _JOINTS

    values = _joint_values(block, path, line).reshape(len(starts), _JOINTS, len(_USED))
    if not (finite := np.isfinite(values[..., :3]).all(-1)).all():
        number = int(np.flatnonzero(~finite.reshape(-1))[0])
        raise DataError(f"{path}: line {line(number)}: x, y, z are not all finite numbers; leave the recording out, or mend it")
    state, pixels = values[..., 5], values[..., 3:5]
    if not (known := ((state == 0) | (state == 1) | (state == 2)).reshape(-1)).all():
        raise DataError(
            f"{path}: line {line(int(np.flatnonzero(~known)[0]))}: the tracking state is not 0, 1 or 2; mend it, or leave it out"
        )
    names = [raw[ends[row - 1] + 1 : ends[row]].split(None, 1)[:1] for row in starts]
    positions: dict[bytes, int] = {}
    body = [positions.setdefault(name[0] if name else b"", len(positions)) for name in names]
    records = Records(
        np.asarray(frames, dtype=np.int64),
        np.asarray(body, dtype=np.int64),
        tuple(name.decode("ascii", "backslashreplace") for name in positions),
        values[..., :3],
        np.where(np.isfinite(pixels), pixels, np.float32(np.nan)),
        state.astype(np.uint8),
    )
    _require_once(records, rows, path)
    return records


def _body_lines(raw: bytes, ends: list[int], path: Path) -> tuple[list[int], list[int]]:
    """The frame and the first line (from 0) of each body, given the end of each line: its line feed."""
    frames, starts, at = [], [], 1
    count = _count(raw[: ends[0]] if ends else b"", path, 1, "frames")
    for frame in range(count):
        if at >= len(ends):
            _cut(path, frame, count)
        bodies = _count(raw[ends[at - 1] + 1 : ends[at]], path, at + 1, "bodies")
        at += 1
        for _ in range(bodies):
            if at + 1 >= len(ends):
                _cut(path, frame, count)
            if (given := raw[ends[at] + 1 : ends[at + 1]].strip()) != b"%d" % _JOINTS:
                raise DataError(f"{path}: line {at + 2}: {shown(given[:20].decode('latin-1'))} joints, expected {_JOINTS} ({NTU25.name})")
            if at + _LINES > len(ends):
                _cut(path, frame, count)
            frames.append(frame)
            starts.append(at)
            at += _LINES
    if raw[ends[at - 1] :].strip():
        raise DataError(f"{path}: line {at + 1}: goes on after its {count} frames; the number of frames in line 1 is wrong")
    return frames, starts


def _count(line: bytes, path: Path, number: int, what: str) -> int:
    line = line.strip()
    if not line.isdigit() or len(line) > 9:
        raise DataError(
            f"{path}: line {number}: {shown(line[:20].decode('latin-1'))!r} is no number of {what}; not a {ENDING} file, or damaged"
        )
    return int(line)


def _cut(path: Path, frame: int, count: int) -> NoReturn:
    raise DataError(f"{path}: ends in frame {frame + 1} of {count}: the file is cut short; copy or download it again")


def _joint_values(block: bytes, path: Path, line: Callable[[int], int]) -> NDArray[np.float32]:
    """Joint lines → (lines, 6) the columns of ``_USED``."""
    try:
        table = pc.read_csv(
            pa.BufferReader(block),
            read_options=pc.ReadOptions(column_names=_COLUMNS, use_threads=False, block_size=len(block) + 1),
            parse_options=pc.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            # Digits of a file are read faster as float64 than as float32.
            convert_options=pc.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.float64()), include_columns=_USED),
        )
        return np.stack([table.column(name).to_numpy() for name in _USED], axis=-1, dtype=np.float32, casting="same_kind")
    except pa.ArrowInvalid:
        return _line_by_line(block, path, line)


def _line_by_line(block: bytes, path: Path, line: Callable[[int], int]) -> NDArray[np.float32]:
    """As :func:`_joint_values`, for lines with other white space, and to find the line that is wrong."""
    found = []
    for number, text in enumerate(block.split(b"\n")[:-1]):
        words = text.split(None, len(_COLUMNS))  # no more, however long the line is
        try:
            if len(words) != len(_COLUMNS):
                raise ValueError(f"{len(words)} values")
            found.append([float(words[place]) for place in _PLACES])
        except ValueError as error:
            count = f"{len(words)} values" if len(words) < len(_COLUMNS) else "more values"
            what = "a value is no number" if len(words) == len(_COLUMNS) else count
            raise DataError(f"{path}: line {line(number)}: {what}, expected {len(_COLUMNS)} numbers of a joint") from error
    return np.asarray(found, dtype=np.float32)


def _require_once(records: Records, rows: NDArray[np.int64], path: Path) -> None:
    keys = records.frame * len(records.ids) + records.body
    _, first = np.unique(keys, return_index=True)
    if len(first) < len(keys):
        again = int(np.setdiff1d(np.arange(len(keys)), first)[0])
        name = shown(records.ids[int(records.body[again])], 40)
        raise DataError(f"{path}: line {int(rows[again]) + 1}: the body {name} a second time in one frame")


def choose_bodies(records: Records) -> Skeletons:
    """The usual choice of at most two bodies.

    Frames without bodies are dropped, and time is counted over the others. A body's frames are taken to follow each other from its first.
    Among several bodies, those of under 12 frames are left out, then those that are wide in over two thirds of their frames; the last body
    stays. The bodies come in the order of their motion, which is the variance of their joints, summed over x, y and z; suspect frames may
    only lower it. The first body is the first actor. Each further one continues an actor at whose time it does not move, the first actor if
    possible; a body that fits neither is left out. As in the official code, two bodies may share one frame, which the later one gets, and
    the second actor's time begins at the first frame.
    """
    kept, time = np.unique(records.frame, return_inverse=True)
    order = np.argsort(records.body, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(records.body, minlength=len(records.ids)))[:-1])
    bodies = [own for own in rows if len(own) >= SHORTEST] or rows
    motions, chosen, left = [], [], len(bodies)
    for own in bodies:
        joints = records.joints[own].astype(np.float64)
        motion = _motion(joints)
        width, height = (np.ptp(joints[..., axis], axis=1) for axis in (0, 1))
        good = width <= WIDE * height
        if left > 1 and not good.all():
            if (~good).mean() >= MOST_WIDE:
                left -= 1
                continue
            motion = min(motion, _motion(joints[good]))
        chosen.append(own)
        motions.append(motion)
    actors: list[list[NDArray[np.int64]]] = [[], []]
    spans = [(0, -1), (0, 0)]
    for place in np.argsort(-np.asarray(motions), kind="stable"):
        own = chosen[place]
        begin = int(time[own[0]])
        end = begin + len(own) - 1
        for actor, (first, last) in enumerate(spans):
            if not actors[0] or min(last, end) - max(first, begin) <= 0:
                spans[actor] = (min(first, begin), max(last, end)) if actors[0] else (begin, end)
                actors[actor].append(own)
                break
    return _placed(records, time, len(kept), [parts for parts in actors if parts])


def _motion(joints: NDArray[np.float64]) -> float:
    """(frames, V, 3) → the variance of all joints, summed over x, y and z."""
    return float(joints.reshape(-1, 3).var(axis=0).sum())


def _placed(records: Records, time: NDArray[np.int64], frames: int, actors: list[list[NDArray[np.int64]]]) -> Skeletons:
    """The bodies of each actor in its frames; frames without any are dropped."""
    joints = np.zeros((len(actors), frames, _JOINTS, 3), dtype=np.float32)
    pixels = np.full((len(actors), frames, _JOINTS, 2), np.nan, dtype=np.float32)
    tracked = np.zeros((len(actors), frames, _JOINTS), dtype=np.uint8)
    there = np.zeros(frames, dtype=np.bool_)
    for actor, parts in enumerate(actors):
        for own in parts:
            at = int(time[own[0]]) + np.arange(len(own))
            joints[actor, at], pixels[actor, at], tracked[actor, at] = records.joints[own], records.pixels[own], records.tracked[own]
            there[at] = True
    return Skeletons(joints[:, there], pixels[:, there], tracked[:, there])
