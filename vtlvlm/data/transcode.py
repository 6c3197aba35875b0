"""Copies a data set to small videos that decode ten times faster: H.264, short side 256, a keyframe every 8 frames.

No other frame refers to the frames between keyframes, so that a reader decodes only the frames that it wants. Decoding a 1080p file of NTU
RGB+D takes about a second of processor time, decoding its copy a tenth of a second. Copies of 114,480 clips take some 29 GB. A copy keeps
every frame and its time, is upright with square pixels, and has colour tags.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.container import VideoError, container_of, opened, packets_of
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.shards import LOCK, FolderLock
from vtlvlm.data.timestamps import frame_times
from vtlvlm.data.video import all_frames, linked, scaling, turns, verify
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.cpu import usable_cores
from vtlvlm.system.disk import require_space
from vtlvlm.system.files import replacing, tidied
from vtlvlm.system.places import below, real, require_apart, same, within

SIDE = 256
GOP = 8
CRF = 20
_BYTES_A_PIXEL = 0.035  # for each frame of camera video at this quality; noisy or lively video takes up to twice as much
TABLE = "clips.csv"
"""Table of the copies, if the data set has a CSV"""
ELSEWHERE = "elsewhere"
"""Folder for copies of videos outside the root"""
_OWN = {TABLE, "classes.txt", ".vtlvlm"}  # other files in the folder of copies
_BT709, _LIMITED = 1, 1  # AVCOL_SPC_BT709 (likewise AVCOL_PRI and AVCOL_TRC), AVCOL_RANGE_MPEG
_CLOCK = 90_000  # ticks per second in the copies
_TAG = "vtlvlm 1 copy of"


def copy_names(index: ClipIndex, rows: NDArray[np.int64]) -> list[str]:
    """The names of the copies in their folder: the source's tree, or ``elsewhere/`` and the whole path for a video outside the root.

    No two names differ in capitals only, so that every file system can hold them.

    Raises:
        DataError: Two videos of a set without CSV differ only in their ending.
    """
    tops = [f"{top}/".replace("//", "/") for top in (index.root, real(index.root))]
    taken: dict[str, str] = {}
    names = []
    for path in index.path[rows].tolist():
        name = os.path.splitext(_inner(path, tops))[0]  # noqa: PTH122 - a hundred thousand times
        if index.layout != "csv" and (other := taken.get(_folded(name))) and os.path.splitext(other)[0] == name:  # noqa: PTH122
            raise DataError(f"{index.root}: {other} and {path} differ only in their ending; rename one of them")
        free, count = name, 1
        while _folded(free) in taken:
            count += 1
            free = f"{name}~{count}"
        taken[_folded(free)] = path
        names.append(f"{free}.mp4")
    return names


def _inner(path: str, tops: list[str]) -> str:
    """A path of an index relative to the root, or below ``elsewhere`` if it leads out of the root."""
    place = os.path.normpath(os.path.join(tops[0], path))  # noqa: PTH118 - a hundred thousand times
    for top in tops:
        inner = place.removeprefix(top)
        if inner != place and inner.partition("/")[0].casefold() not in _OWN:
            return inner
    return f"{ELSEWHERE}/{place.lstrip('/')}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def transcode(
    index: ClipIndex,
    folder: Path,
    *,
    classes: Path | None = None,
    table: Path | None = None,
    side: int = SIDE,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Copy all usable clips with threads (FFmpeg runs outside Python's lock). Keeps finished copies.

    Writes nothing outside the folder, whatever paths the index and links in the folder have. Opens no source for writing. Replaces only
    files that are copies themselves.

    Args:
        index: The clips, already opened (no index from ``fast``).
        folder: Folder of the copies, and the root for all later commands. It gets the same tree, with names that end in .mp4, and the data
            set's ``classes.txt`` or a ``clips.csv``.
        classes: The classes file of the index; None for the one in the data set's folder.
        table: The CSV of the index.
        side: Pixels of the shorter side; smaller videos keep their size.
        workers: Clips at once; None for one per core.
        progress: Show a progress bar.

    Returns:
        Source path → reason, for the clips that are damaged.

    Raises:
        UsageError: The folder is, holds or lies in a source, or another file or link has the name of a copy.
        DataError: The disk has no room, another process writes there, or two names collide.
    """
    from tqdm import tqdm

    rows = index.usable
    require_place(folder, index.root, [classes, table])
    _require_apart(index, rows, folder)
    names = copy_names(index, rows)
    targets = [below(folder, name) for name in names]
    texts = _accompanying(index, rows, names, classes or index.root / "classes.txt")
    before = [_copy_of(target) for target in targets]
    _require_own(folder, texts)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, 0)
    try:
        tidied(folder)
        todo = [(row, to) for row, to, tag in zip(rows.tolist(), targets, before, strict=True) if not tag or tag != index.identity[row]]
        print(require_space(folder, sum(_estimate(index, row, side) for row, _ in todo), f"{len(todo):,} of {len(rows):,} copies"))
        for name, content in texts.items():
            with replacing(folder / name, follow=False) as temporary:
                temporary.write_bytes(content)
        failed: dict[str, str] = {}

        def work(item: tuple[int, Path]) -> tuple[str, str]:
            row, target = item
            try:
                copy(index.file(row), target, side=side, identity=str(index.identity[row]))
            except VideoError as error:
                return str(index.path[row]), str(error).removeprefix(f"{index.file(row)}: ")
            return "", ""

        with ThreadPoolExecutor(workers or usable_cores()) as pool:
            bar = tqdm(total=len(rows), initial=len(rows) - len(todo), desc="copying", unit="clip", disable=not progress)
            try:
                for path, reason in pool.map(work, todo):
                    bar.update()
                    if reason:
                        failed[path] = reason
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                bar.close()
        return failed
    finally:
        lock.release()


def require_place(folder: Path, root: Path, tables: Sequence[Path | None] = ()) -> None:
    """Refuse a folder of copies that is, holds or lies in the data set's folder or tables.

    Raises:
        DataError: The folder is the data set's own.
        UsageError: The folder lies in the data set's folder, or holds it or a table.
    """
    if same(folder, root):
        raise DataError(f"{folder}: holds the videos themselves; name another folder for the copies")
    require_apart(folder, [root, *tables], "the folder of copies")


def _require_apart(index: ClipIndex, rows: NDArray[np.int64], folder: Path) -> None:
    """Refuse a folder of copies that holds a source video."""
    sources = {place.parent: place for place in map(real, map(index.file, rows.tolist()))}
    for parent, source in sources.items():
        if within(parent, folder):
            raise UsageError(f"{folder}: holds the source video {source}; name another folder for the copies")


def _require_own(folder: Path, texts: dict[str, bytes]) -> None:
    """Refuse to replace a table or list of classes that no earlier copying wrote."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: not a folder; name another for the copies")
    for name, content in texts.items():
        file = folder / name
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise UsageError(
                f"{file}: a link or folder has the name of the copies' {name}; move it away, or name another folder for the copies"
            )
        if file.exists() and not (folder / LOCK).exists() and file.read_bytes() != content:
            raise UsageError(f"{file}: exists and belongs to no set of copies; move it away, or name another folder for the copies")


def _copy_of(target: Path) -> str:
    """The identity of a finished copy's source; "" if there is no copy yet.

    Raises:
        UsageError: Another file has that name.
    """
    if not os.path.lexists(target):
        return ""
    whole = target.is_file() and not target.is_symlink()
    tag = _tag(target) if whole else None
    if tag is None and not (whole and target.stat().st_size == 0):
        raise UsageError(f"{target}: exists and is not a copy that this command made; move it away, or name another folder")
    return tag or ""


def copy(source: Path, target: Path, *, side: int = SIDE, identity: str = "") -> int:
    """Write one copy, whole or not at all, and count its frames by decoding it.

    Args:
        source: A video.
        target: An .mp4 file.
        side: Pixels of the shorter side, at most.
        identity: Identity of the source, stored in the copy.

    Returns:
        Number of frames.

    Raises:
        VideoError: The source is damaged, or the copy lacks frames.
        DataError: The copy cannot be written.
    """
    try:
        with replacing(target, follow=False, tidy=False) as part:
            with av.open(f"file:{part.absolute()}", "w", format="mp4") as container:
                container.metadata["comment"] = f"{_TAG} {identity}"
                count = _encode(source, container, side)
            kept = verify(part)
            if kept != count:
                raise VideoError(f"{source}: has {count} frames, but its copy has {kept}; the encoder has a defect, please report it")
        return kept
    except OSError as error:  # av's write errors are OSErrors too; its read errors have become VideoErrors
        raise DataError(f"{target}: cannot be written ({error.strerror}); finished copies stay, the same command continues") from error


def is_copy_of(file: Path, identity: str) -> bool:
    """Whether a file is a finished copy of the source with this identity."""
    return bool(identity) and _tag(file) == identity


def _tag(file: Path) -> str | None:
    """The source's identity that a copy stores; None if the file is not a copy."""
    try:
        if not file.is_file():
            return None
        with file.open("rb") as start:
            if start.read(8)[4:] != b"ftyp":
                return None
        with container_of(file) as container:
            comment = str(container.metadata.get("comment", ""))
    except (OSError, av.FFmpegError):
        return None
    return comment.removeprefix(_TAG).strip() if comment.startswith(_TAG) else None


def _encode(source: Path, container: av.container.OutputContainer, side: int) -> int:
    """Encode all frames, and return their number. Holds the packets (few and small) until the times of all frames are known."""
    packets: list[av.Packet] = []
    stamps: list[int | None] = []
    output, graph, graph_of, size = None, None, None, (0, 0)
    with opened(source) as (input_container, stream):
        rate = stream.average_rate or Fraction(25)
        for frame in all_frames(source, packets_of(source, input_container, stream)):
            if graph is None or graph_of != (frame.width, frame.height, frame.format.name):
                graph_of = (frame.width, frame.height, frame.format.name)
                size = size if output is not None else small_size(frame, float(stream.sample_aspect_ratio or 1), side)
                scale = f"{size[0]}:{size[1]}:{scaling(frame)}:out_color_matrix=bt709:out_range=tv"
                graph = linked(frame, stream, ("scale", scale), ("format", "yuv420p"), *turns(frame), ("setsar", "1"))
            graph.push(frame)
            picture = graph.pull()
            if output is None:
                output = _stream(container, picture, rate)
            picture.pts, picture.time_base = len(stamps), 1 / rate
            picture.pict_type = 0  # the encoder chooses
            stamps.append(frame.pts)
            packets += output.encode(picture)
        times = frame_times(stamps, stream)
    if output is None:
        raise VideoError(f"{source}: has no frame that decodes")
    packets += output.encode(None)
    ticks = np.maximum.accumulate(np.round(times * _CLOCK).astype(np.int64) - np.arange(len(times))) + np.arange(len(times))  # rising
    step = round(_CLOCK / rate)
    for packet in packets:
        shown, due = (round(stamp * packet.time_base * rate) for stamp in (packet.pts, packet.dts))
        packet.time_base = Fraction(1, _CLOCK)
        packet.pts, packet.dts = int(ticks[shown]), int(ticks[due]) if due >= 0 else int(ticks[0]) + due * step
        packet.duration = int(ticks[shown + 1] - ticks[shown]) if shown + 1 < len(ticks) else step
        container.mux(packet)
    return len(times)


def small_size(frame: av.VideoFrame, aspect: float, side: int) -> tuple[int, int]:
    """Even width and height with square pixels, for a short side of at most ``side``. ``aspect`` is that of a pixel."""
    width, height = frame.width * (aspect or 1.0), float(frame.height)
    factor = min(1.0, side / min(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def _stream(container: av.container.OutputContainer, picture: av.VideoFrame, rate: Fraction) -> av.VideoStream:
    keys = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes={GOP - 1}:b-adapt=0:b-pyramid=none"
    options = {"crf": str(CRF), "tune": "fastdecode", "preset": "veryfast", "x264-params": keys}
    stream: av.VideoStream = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    stream.codec_context.time_base, stream.time_base = 1 / rate, Fraction(1, _CLOCK)
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED
    return stream


def _estimate(index: ClipIndex, row: int, side: int) -> float:
    """Bytes of one copy, roughly."""
    width, height = float(index.width[row]), float(index.height[row])
    factor = min(1.0, side / max(1.0, min(width, height)))
    return float(width * height * factor**2 * index.frames[row] * _BYTES_A_PIXEL)


def _accompanying(index: ClipIndex, rows: NDArray[np.int64], names: list[str], classes: Path) -> dict[str, bytes]:
    """The files beside the copies that give each clip's class: file name → content."""
    if index.layout == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["path", "label", "split", "group"])
        writer.writerows(
            (name, index.classes[index.label[row]], index.split[row], index.group[row]) for row, name in zip(rows, names, strict=True)
        )
        return {TABLE: text.getvalue().encode()}
    return {"classes.txt": classes.read_bytes()} if index.layout == "ntu" and not index.official else {}
