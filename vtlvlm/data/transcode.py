"""A small copy of a set of videos that decodes ten times faster: H.264, short side 256, a keyframe every 8 frames, and between them only
frames that no other refers to, so that those not wanted need not be decoded.

NTU RGB+D's 1080p files take about a second of processor time each to decode, the copies a tenth of it; 114,480 clips take some 29 GB. The
copies keep every frame and its time, stand upright with square pixels, and say in their colour tags what they are.
"""

from __future__ import annotations

import csv
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.cores import usable_cores
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.shards import FolderLock
from vtlvlm.data.space import require_space
from vtlvlm.data.video import VideoError, all_frames, linked, opened, scaling, seconds, turns, verify
from vtlvlm.errors import DataError

SIDE = 256
GOP = 8
CRF = 20
_BYTES_A_PIXEL = 0.035  # of a frame of camera video at this quality; noisy or lively video takes up to twice that
TABLE = "clips.csv"
"""The copies' own table, where the set is described by one"""
_BT709, _LIMITED = 1, 1  # AVCOL_SPC_BT709 and its fellows, AVCOL_RANGE_MPEG
_CLOCK = 90_000  # ticks a second of the copies
_TAG = "vtlvlm 1 copy of"


def copy_names(index: ClipIndex, rows: NDArray[np.int64]) -> list[str]:
    """Where the copies of rows go, relative to the folder of copies.

    Raises:
        DataError: Two videos differ only in their ending.
    """
    names = [str(Path(path).with_suffix(".mp4").as_posix()) for path in index.path[rows]]
    seen: dict[str, str] = {}
    for name, path in zip(names, index.path[rows], strict=True):
        if name in seen:
            raise DataError(f"{index.root}: {seen[name]} and {path} differ only in their ending; rename one of them")
        seen[name] = path
    return names


def transcode(
    index: ClipIndex,
    folder: Path,
    *,
    classes: Path | None = None,
    side: int = SIDE,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Copy all usable clips with threads (FFmpeg works outside Python's lock); those that are there already are left as they are.

    Args:
        index: The clips, looked into (not from ``fast``).
        folder: Of the copies: the same tree, ending in .mp4, with the set's ``classes.txt`` or a ``clips.csv``; then the root for all else.
        classes: The classes file that the clips were found with; None for that of the set's folder.
        side: Pixels of the shorter side; smaller videos keep their size.
        workers: Clips at once; None for one a core.
        progress: Show a progress bar.

    Returns:
        Source path → reason, of the clips that turned out to be damaged.

    Raises:
        DataError: No room, another process writes there, or names that would collide.
    """
    from tqdm import tqdm

    if folder.absolute() == index.root:
        raise DataError(f"{folder}: the videos are there themselves; name another folder for the copies")
    rows = index.good
    names = copy_names(index, rows)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, 0)
    try:
        for left in folder.rglob(".*.mp4.part"):  # of a job that was killed
            left.unlink()
        ready = [is_copy_of(folder / name, str(index.identity[row])) for row, name in zip(rows, names, strict=True)]
        todo = [(int(row), name) for row, name, there in zip(rows, names, ready, strict=True) if not there]
        print(require_space(folder, sum(_estimate(index, row, side) for row, _ in todo), f"{len(todo):,} of {len(rows):,} copies"))
        _accompany(index, folder, rows, names, classes or index.root / "classes.txt")
        failed: dict[str, str] = {}

        def work(item: tuple[int, str]) -> tuple[str, str]:
            row, name = item
            try:
                copy(index.file(row), folder / name, side=side, identity=str(index.identity[row]))
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
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with av.open(os.fspath(part), "w", format="mp4") as container:
            container.metadata["comment"] = f"{_TAG} {identity}"
            count = _encode(source, container, side)
        kept = verify(part)
        if kept != count:
            raise VideoError(f"{source}: has {count} frames, its copy {kept}; this is a defect of the encoder, please report it")
        part.replace(target)
        return kept
    except OSError as error:  # av's errors of writing are OSErrors too; those of reading have become VideoErrors
        raise DataError(f"{target}: cannot be written ({error.strerror}); copies already made stay, the same command goes on") from error
    finally:
        part.unlink(missing_ok=True)


def is_copy_of(file: Path, identity: str) -> bool:
    """Whether a file is the finished copy of a source with this identity."""
    if not file.is_file() or not identity:
        return False
    try:
        with av.open(os.fspath(file)) as container:
            return bool(container.metadata.get("comment") == f"{_TAG} {identity}")
    except av.FFmpegError:
        return False


def _encode(source: Path, container: av.container.OutputContainer, side: int) -> int:
    """Encode all frames. The packets are few and small: they wait until the times of all frames are known."""
    packets: list[av.Packet] = []
    stamps: list[int | None] = []
    output, graph, graph_of, size = None, None, None, (0, 0)
    with opened(source) as (input_container, stream):
        rate = stream.average_rate or Fraction(25)
        for frame in all_frames(source, input_container.demux(stream)):
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
        times = seconds(stamps, stream)
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


def _accompany(index: ClipIndex, folder: Path, rows: NDArray[np.int64], names: list[str], classes: Path) -> None:
    """What says which class each clip is, beside the copies."""
    if index.layout == "csv":
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split", "group"])
            writer.writerows(
                (name, index.classes[index.label[row]], index.split[row], index.group[row]) for row, name in zip(rows, names, strict=True)
            )
    elif index.layout == "ntu" and not index.official:
        shutil.copyfile(classes, folder / "classes.txt")
