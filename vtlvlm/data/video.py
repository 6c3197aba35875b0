"""Video files: what is in one (``probe``), chosen frames of it (``decode``), and whether all of it decodes (``verify``).

One container a call, one thread, always closed. A file that is damaged in any way that shows is refused with its reason; no frame is
ever made up. Container headers are not believed: lengths come from counting packets, truncation from the container's own sizes.

Colours: tagged matrix and range are honoured. Untagged video is BT.709 from 720 lines upwards and BT.601 below, as players have it, in
limited range. The display rotation and the sample aspect ratio stored in the file are applied.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import DataError

if TYPE_CHECKING:  # probing does not need torch, and `vtlvlm prepare` starts without it
    from torch import Tensor

Crop = Literal["center", "pad"]

_MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # AVColorSpace → name in the scale filter
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_PLAYLISTS = {"hls", "concat", "dash", "imf"}  # text files that make FFmpeg open other files
_HELD = 512 * 2**20  # bytes of a file whose packets may be held in memory
_TURNS: dict[int, list[tuple[str, str | None]]] = {
    1: [("transpose", "clock")],
    2: [("hflip", None), ("vflip", None)],
    3: [("transpose", "cclock")],
}


class VideoError(DataError):
    """A video that cannot be used: ``{path}: {reason}``."""


class VideoInfo(NamedTuple):
    """What a video file holds."""

    frames: int
    """Frames that its packets carry."""
    fps: float
    """Average frames per second as declared."""
    duration: float
    """Seconds."""
    width: int
    """Pixels as stored, before rotation."""
    height: int
    rotation: int
    """Degrees clockwise by which the stored picture is turned for display: 0, 90, 180 or 270."""
    variable: bool
    """Whether frames are unevenly spaced in time: the longest interval is over 1.5 times the median."""


class Clip(NamedTuple):
    """Chosen frames of one video."""

    frames: Tensor
    """(T, 3, size, size) uint8 RGB"""
    times: Tensor
    """(T,) float32 seconds from the start of the clip, non-decreasing"""


def probe(path: str | Path) -> VideoInfo:
    """Count frames by reading packets, decoding only the first frame (about 1 % of a decode).

    Raises:
        VideoError: Not a regular readable file, no video in it, truncated, or its first frame does not decode.
    """
    with opened(path) as (container, stream):
        frames, first, stamps = 0, None, []
        for packet in container.demux(stream):
            _refuse_corrupt(path, packet, "packet", frames)
            if packet.size > 1:  # MPEG-4 in AVI puts packets of one byte where a frame moved to another packet
                frames += 1
                stamps.append(packet.pts)
            if first is None:
                first = next(iter(packet.decode()), None)
        if first is None:
            raise VideoError(f"{path}: no frame in it can be decoded")
        fps = frame_rate(stream)
        duration, variable = frames / fps, False
        if not _made_up(stream) and all(stamp is not None for stamp in stamps):
            steps = np.diff(np.sort(np.asarray(stamps, dtype=np.int64)))
            duration = float(steps.sum() * stream.time_base) + 1 / fps
            variable = bool(len(steps) > 1 and steps.max() > 1.5 * np.median(steps))
        return VideoInfo(frames, fps, duration, first.width, first.height, -round(first.rotation / 90) % 4 * 90, variable)


def verify(path: str | Path) -> int:
    """Decode every frame and return how many there are.

    Raises:
        VideoError: As ``probe``, or a frame does not decode or is flagged corrupt.
    """
    count = 0
    with opened(path) as (container, stream):
        for _ in all_frames(path, container.demux(stream)):
            count += 1
    if not count:
        raise VideoError(f"{path}: no frame in it can be decoded")
    return count


def decode(
    path: str | Path,
    indices: Sequence[int] | NDArray[np.integer],
    *,
    size: int,
    crop: Crop = "center",
    flip: bool = False,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Clip:
    """Decode chosen frames as ``size`` x ``size`` RGB pictures, the right way up.

    Only wanted frames go through the filter graph (crop → scale by area → RGB → turn), and decoding stops after the last of them. Of
    H.264 in MP4, MOV or MKV, frames that are neither wanted nor referred to by others are not decoded, nor checked for damage.

    Args:
        path: A video file.
        indices: (T,) frame numbers in display order; any order, repeats allowed.
        size: Output side in pixels.
        crop: ``center`` cuts the largest centred square (action in the middle); ``pad`` keeps the whole picture and adds black bars
            (actors near the edge of a wide picture).
        flip: Mirror left and right.
        zoom: Side of the cut as a part of the largest one, in (0, 1].
        shift: Where the cut lies in the room that is left, each in [-1, 1] from left/top to right/bottom of the stored picture.

    Raises:
        VideoError: The file is damaged, has no video, or ends before the last wanted frame.
        ValueError: No indices, a negative one, or ``size``, ``zoom`` or ``shift`` out of range.
    """
    import torch

    numbers = np.asarray(indices, dtype=np.int64)
    if numbers.size == 0 or numbers.min() < 0 or size < 1 or not 0 < zoom <= 1 or max(map(abs, shift)) > 1:
        raise ValueError(f"decode of {path}: {numbers.size} indices, {size=}, {zoom=}, {shift=} out of range")
    unique, inverse = np.unique(numbers, return_inverse=True)
    wanted, last = set(unique.tolist()), int(unique[-1])
    pictures = np.empty((len(unique), 3, size, size), dtype=np.uint8)
    graph, graph_of, count = None, None, 0
    with opened(path) as (container, stream):
        stamps: list[int | None] = []
        for frame in _chosen(path, container, stream, wanted, last, stamps):
            if graph is None or graph_of != (frame.width, frame.height, frame.format.name):
                graph_of = (frame.width, frame.height, frame.format.name)
                graph = _graph(frame, stream, size=size, crop=crop, flip=flip, zoom=zoom, shift=shift)
            graph.push(frame)
            pictures[count] = graph.pull().to_ndarray().transpose(2, 0, 1)
            count += 1
        times = seconds(stamps, stream)
    if count < len(unique):
        if len(stamps) > last:
            raise VideoError(f"{path}: damaged: {len(unique) - count} of {len(unique)} wanted frames do not decode")
        raise VideoError(f"{path}: ends after {len(stamps)} frames, frame {last} was wanted; the file is truncated or its length is wrong")
    frames = torch.from_numpy(pictures if len(unique) == len(numbers) and (inverse[1:] > inverse[:-1]).all() else pictures[inverse])
    return Clip(frames, torch.from_numpy(times[numbers].astype(np.float32)))


def _chosen(
    path: str | Path, container: av.container.InputContainer, stream: av.VideoStream, wanted: set[int], last: int, stamps: list[int | None]
) -> Iterator[av.VideoFrame]:
    """The wanted frames in display order; fills ``stamps`` with the times of all frames up to the last of them.

    H.264 whose packets say when they are shown is decoded without the frames that are neither wanted nor referred to by others. Where these
    times rise with the order of decoding there is nothing to skip, or they are made up: AVI stores none.
    """
    if stream.codec_context.name == "h264" and Path(path).stat().st_size < _HELD:
        packets = list(container.demux(stream))
        shown = [packet.pts for packet in packets if packet.size]
        known = None not in shown and len(set(shown)) == len(shown) and not any(packet.is_discard for packet in packets)
        if known and shown != sorted(shown):
            shown.sort()
            stamps += shown[: last + 1]
            yield from _without_the_rest(path, packets, stream, {shown[number] for number in wanted if number < len(shown)})
            return
        source: Iterator[av.Packet] = iter(packets)
    else:
        source = container.demux(stream)
    for position, frame in enumerate(all_frames(path, source)):
        stamps.append(frame.pts)
        if position in wanted:
            yield frame
        if position == last:
            return


def _without_the_rest(path: str | Path, packets: list[av.Packet], stream: av.VideoStream, wanted: set[int]) -> Iterator[av.VideoFrame]:
    """The frames shown at the wanted stamps, without decoding what none of them needs."""

    def needed() -> Iterator[av.Packet]:
        left = len(wanted)
        for packet in packets:
            here = packet.pts in wanted
            left -= here
            context.skip_frame = "DEFAULT" if here else "NONREF"
            yield packet
            if not left:
                yield packets[-1]  # the empty one, which makes the decoder give what it holds back
                return

    context, before = stream.codec_context, None
    for frame in all_frames(path, needed()):
        if frame.pts is None or (before is not None and frame.pts <= before):
            raise VideoError(f"{path}: damaged: its frames are not in the order of their times {_place(frame, 0)}")
        before = frame.pts
        if before in wanted:
            yield frame


def decode_sampled(
    path: str | Path,
    sampling: FrameSampling,
    *,
    view: int = 0,
    name: str = "",
    seed: int = 0,
    num_frames: int = -1,
    rate: float = float("nan"),
) -> Clip:
    """Decode one view of a clip.

    Args:
        path: A video file.
        sampling: How many frames, how large, how cut.
        view: 0 is the plain one.
        name: The clip's name, which seeds views above 0 together with ``seed``.
        seed: Seed of the views.
        num_frames: Length of the clip if known, to save counting its packets.
        rate: Frames a second if known; only sampling by fps asks for it.

    Raises:
        VideoError: As ``probe`` and ``decode``.
    """
    if num_frames < 1 or (sampling.mode == "fps" and not rate > 0):
        info = probe(path)
        num_frames, rate = info.frames, info.fps
    plan = sampling.view(view, num_frames=num_frames, name=name, seed=seed, rate=rate)
    return decode(path, plan.indices, size=sampling.size, crop=sampling.crop, flip=plan.flip, zoom=plan.zoom, shift=plan.shift)


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first video stream; every failure of FFmpeg inside becomes a ``VideoError``."""
    _require_whole_file(Path(path))
    options = {"protocol_whitelist": "file"}
    try:
        with av.open(os.fspath(path), metadata_errors="ignore", options=options) as container:
            if container.format.name in _PLAYLISTS:
                raise VideoError(f"{path}: a playlist, not a video file")
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path}: no video stream in it (audio only?)")
            if streams[0].codec_context is None:
                raise VideoError(f"{path}: no decoder for its video codec")
            streams[0].thread_type = "NONE"
            yield container, streams[0]
    except av.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video ({error.strerror})") from error


def _require_whole_file(path: Path) -> None:
    """Refuse what must not be opened (a FIFO blocks for ever) and containers that are longer by their own account than the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise VideoError(f"{path}: empty file (0 bytes)")
        with path.open("rb") as file:
            head, end = file.read(12), 0
            if head[:4] == b"RIFF" and head[8:] == b"AVI ":
                length = struct.unpack("<I", head[4:8])[0]
                end = length + 8 if length != 0xFFFFFFFF else 0  # writers that never came to fill it in
            elif head[4:8] == b"ftyp":
                end = _end_of_boxes(file, status.st_size)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror.lower() if error.strerror else error}") from error
    if end > status.st_size + 1:  # an odd length may or may not be padded
        raise VideoError(f"{path}: truncated: it should hold {end:,} bytes and holds {status.st_size:,}")


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Where the last top-level box of an MP4/MOV file ends by its header."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            break
        length = struct.unpack(">I", head[:4])[0]
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8:  # 0: up to the end of the file
            break
        position += length
    return position


def _refuse_corrupt(path: str | Path, item: av.Packet | av.VideoFrame, kind: str, count: int) -> None:
    if item.is_corrupt:
        raise VideoError(f"{path}: damaged: a {kind} is corrupt {_place(item, count)}")


def _place(item: av.Packet | av.VideoFrame | None, count: int) -> str:
    """Where in the video something is, as well as that is known."""
    if item is None or item.pts is None or item.time_base is None:
        return f"after {count} frames"
    return f"near {float(item.pts * item.time_base):.2f} s"


def all_frames(path: str | Path, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
    """The frames of packets in display order; raises at the first that does not decode or is flagged corrupt."""
    count, packet = 0, None
    try:
        for packet in packets:
            _refuse_corrupt(path, packet, "packet", count)
            for frame in packet.decode():
                _refuse_corrupt(path, frame, "frame", count)
                yield frame
                count += 1
    except av.FFmpegError as error:
        raise VideoError(f"{path}: damaged: decoding stops {_place(packet, count)} ({error.strerror})") from error


def frame_rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or Fraction(25))


def _made_up(stream: av.VideoStream) -> bool:
    """Whether the times of showing are FFmpeg's guess: AVI holds the order of decoding, which is another one where frames are reordered."""
    return stream.container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def seconds(stamps: list[int | None], stream: av.VideoStream) -> NDArray[np.float64]:
    """(n,) seconds from the first frame: from timestamps where they rise steadily (AVI and raw streams: from the frame rate)."""
    known = [] if _made_up(stream) else [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) and stream.time_base is not None:
        pts = np.asarray(known, dtype=np.int64)
        if (np.diff(pts) > 0).all():
            return np.asarray((pts - pts[:1]) * float(stream.time_base))
    return np.arange(len(stamps)) / frame_rate(stream)


def _graph(
    frame: av.VideoFrame, stream: av.VideoStream, *, size: int, crop: Crop, flip: bool, zoom: float, shift: tuple[float, float]
) -> av.filter.Graph:
    """crop → scale by area → rgb24 → turn → mirror → pad, for frames such as this one."""
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    if crop == "center":
        side = min(frame.width * aspect, frame.height)
        cut_width, cut_height = side / aspect * zoom, side * zoom
        width = height = size
    else:
        cut_width, cut_height = frame.width * zoom, frame.height * zoom
        scale = size / max(cut_width * aspect, cut_height)
        width, height = max(1, round(cut_width * aspect * scale)), max(1, round(cut_height * scale))
    left, top = (frame.width - cut_width) / 2 * (1 + shift[0]), (frame.height - cut_height) / 2 * (1 + shift[1])
    return linked(
        frame,
        stream,
        ("crop", f"{round(cut_width)}:{round(cut_height)}:{int(left)}:{int(top)}"),
        ("scale", f"{width}:{height}:{scaling(frame)}"),
        ("format", "rgb24"),
        *turns(frame),
        *([("hflip", None)] if flip else []),
        *([("pad", f"{size}:{size}:-1:-1")] if crop == "pad" else []),
    )


def scaling(frame: av.VideoFrame) -> str:
    """The scale filter's options: average over areas, with the colours that the frame is tagged with."""
    matrix = _MATRICES.get(int(frame.colorspace), "bt709" if frame.height >= 720 else "bt601")
    full = int(frame.color_range) == _FULL_RANGE or frame.format.name.startswith("yuvj")
    return f"flags=area:in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}"


def turns(frame: av.VideoFrame) -> list[tuple[str, str | None]]:
    """The filters that stand a frame upright."""
    return _TURNS.get(-round(frame.rotation / 90) % 4, [])


def linked(frame: av.VideoFrame, stream: av.VideoStream, *steps: tuple[str, str | None]) -> av.filter.Graph:
    """A filter graph of one thread for frames such as this one: steps are filters with their arguments."""
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base)]
    nodes += [graph.add(name, arguments) for name, arguments in (*steps, ("buffersink", None))]
    graph.link_nodes(*nodes).configure()
    return graph
