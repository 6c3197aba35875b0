"""A small copy of a set of videos that decodes ten times faster: H.264, short side 256, a keyframe every 8 frames, and between them only
frames that no other refers to, so that those not wanted need not be decoded.

NTU RGB+D's 1080p files take about a second of processor time each to decode, the copies a tenth of it; 114,480 clips take some 29 GB. The
copies keep every frame and its time, stand upright with square pixels, and say in their colour tags what they are.
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
_BYTES_A_PIXEL = 0.035  # of a frame of camera video at this quality; noisy or lively video takes up to twice that
TABLE = "clips.csv"
"""The copies' own table, where the set is described by one"""
ELSEWHERE = "elsewhere"
"""Folder of the copies of videos that a table names outside the root"""
_OWN = {TABLE, "classes.txt", ".vtlvlm"}  # what the folder of copies holds beside copies
_BT709, _LIMITED = 1, 1  # AVCOL_SPC_BT709 and its fellows, AVCOL_RANGE_MPEG
_CLOCK = 90_000  # ticks a second of the copies
_TAG = "vtlvlm 1 copy of"


def copy_names(index: ClipIndex, rows: NDArray[np.int64]) -> list[str]:
    """Where the copies of rows go, relative to the folder of copies: the same tree, and ``elsewhere/`` with the whole path for what a CSV
    names outside the root. No two names differ in capitals only, so that any disk can hold them all.

    Raises:
        DataError: Two videos in class folders, or of NTU names, differ only in their ending.
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
    """A path of an index as one below the root; below ``elsewhere`` if it leads out of the root."""
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
    """Copy all usable clips with threads (FFmpeg works outside Python's lock); those that are there already are left as they are.

    Nothing is written outside the folder, whatever the paths of the index and the links in the folder say; no source is opened for writing;
    and no file is replaced that is not such a copy itself.

    Args:
        index: The clips, looked into (not from ``fast``).
        folder: Of the copies: the same tree, ending in .mp4, with the set's ``classes.txt`` or a ``clips.csv``; then the root for all else.
        classes: The classes file that the clips were found with; None for that of the set's folder.
        table: The CSV that the clips were found with.
        side: Pixels of the shorter side; smaller videos keep their size.
        workers: Clips at once; None for one a core.
        progress: Show a progress bar.

    Returns:
        Source path → reason, of the clips that turned out to be damaged.

    Raises:
        UsageError: The folder is, holds or lies in what is copied, or has files or links of others where copies would go.
        DataError: No room, another process writes there, or names that would collide.
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
        for left in folder.rglob(".*.mp4.part"):  # of a job of version 0.1 that was killed
            left.unlink()
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
    """Refuse a folder of copies that is, holds or lies in the set's folder or its tables.

    Raises:
        DataError: It is the set's folder.
        UsageError: It lies in it, or holds one of them.
    """
    if same(folder, root):
        raise DataError(f"{folder}: the videos are there themselves; name another folder for the copies")
    require_apart(folder, [root, *tables], "the folder of copies")


def _require_apart(index: ClipIndex, rows: NDArray[np.int64], folder: Path) -> None:
    """Refuse a folder of copies that holds one of the videos."""
    sources = {place.parent: place for place in map(real, map(index.file, rows.tolist()))}
    for parent, source in sources.items():
        if within(parent, folder):
            raise UsageError(f"{folder}: {source}, which is to be copied, lies inside it; name another folder for the copies")


def _require_own(folder: Path, texts: dict[str, bytes]) -> None:
    """Refuse to replace a table or list of classes that no earlier job of copying wrote."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: not a folder; name another for the copies")
    for name, content in texts.items():
        file = folder / name
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise UsageError(
                f"{file}: a link or folder with the name of the copies' own {name}; move it away, or name another folder for the copies"
            )
        if file.exists() and not (folder / LOCK).exists() and file.read_bytes() != content:
            raise UsageError(f"{file}: there already, and not of a set of copies; move it away, or name another folder for the copies")


def _copy_of(target: Path) -> str:
    """The identity of the source that a finished copy was made from; "" if there is nothing yet.

    Raises:
        UsageError: Something else is there, which will not be replaced.
    """
    if not os.path.lexists(target):
        return ""
    whole = target.is_file() and not target.is_symlink()
    tag = _tag(target) if whole else None
    if tag is None and not (whole and target.stat().st_size == 0):
        raise UsageError(f"{target}: there already, and not a copy that this command made; move it away, or name another folder")
    return tag or ""


def copy(source: Path, target: Path, *, side: int = SIDE, identity: str = "") -> int:
    """Write one copy, whole or not at all, and count its frames by decoding it.

    Args:
        source: A video.
        target: An .mp4 file.
        side: Pixels of the shorter side, at most.
        identity: Of the source, kept in the copy.

    Returns:
        Frames.

    Raises:
        VideoError: The source is damaged, or the copy does not hold every frame of it.
        DataError: The copy cannot be written.
    """
    try:
        with replacing(target, follow=False, tidy=False) as part:
            with av.open(f"file:{part.absolute()}", "w", format="mp4") as container:
                container.metadata["comment"] = f"{_TAG} {identity}"
                count = _encode(source, container, side)
            kept = verify(part)
            if kept != count:
                raise VideoError(f"{source}: has {count} frames, its copy {kept}; this is a defect of the encoder, please report it")
        return kept
    except OSError as error:  # av's errors of writing are OSErrors too; those of reading have become VideoErrors
        raise DataError(f"{target}: cannot be written ({error.strerror}); copies already made stay, the same command goes on") from error


def is_copy_of(file: Path, identity: str) -> bool:
    """Whether a file is the finished copy of a source with this identity."""
    return bool(identity) and _tag(file) == identity


def _tag(file: Path) -> str | None:
    """The identity of the source that a copy says it was made from; None if the file is not a copy."""
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
    """Encode all frames. The packets are few and small: they wait until the times of all frames are known."""
    packets: list[av.Packet] = []
    stamps: list[int | None] = []
    output, graph, graph_of, size = None, None, None, (0, 0)
    with opened(source) as (input_container, stream):
        rate = stream.average_rate or Fraction(25)
        for frame in all_frames(source, packets_of(source, input_container, stream)):
            if graph is None or graph_of != (frame.width, frame.height, frame.format.name):
                graph_of = (frame.width, frame.height, frame.format.name)
                size = size if output is not None else _small(frame, float(stream.sample_aspect_ratio or 1), side)
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
        raise VideoError(f"{source}: no frame in it can be decoded")
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


def _small(frame: av.VideoFrame, aspect: float, side: int) -> tuple[int, int]:
    """Even width and height with square pixels."""
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
    """The files beside the copies that say which class each clip is: file name → content."""
    if index.layout == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["path", "label", "split", "group"])
        writer.writerows(
            (name, index.classes[index.label[row]], index.split[row], index.group[row]) for row, name in zip(rows, names, strict=True)
        )
        return {TABLE: text.getvalue().encode()}
    return {"classes.txt": classes.read_bytes()} if index.layout == "ntu" and not index.official else {}
