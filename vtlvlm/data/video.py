"""Reads video files: counts frames (``probe``), decodes chosen frames (``decode``), and decodes everything as a check (``verify``).

Each call opens one container with one thread, and closes it. A visibly damaged file is refused with the reason; no frame is ever invented.
Frame counts and times do not come from the container's header. They come from the packets' headers if ``Shown`` can read them, else from
decoding all packets. Frames are numbered from 0 in display order, as a full decode returns them.

Colours follow the tagged matrix and range. Untagged video has limited range, and BT.709 from 720 lines upwards or BT.601 below, as in
players. The stored display rotation and sample aspect ratio are applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.container import VideoError, opened, packets_of, place, unusable
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.timestamps import Shown, frame_rate, frame_times

if TYPE_CHECKING:  # probing does not need torch, and `vtlvlm prepare` starts without it
    from torch import Tensor

Crop = Literal["center", "pad"]
Decoder = Literal["cpu", "cuda"]

_MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # AVColorSpace → name in the scale filter
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_HELD = 512 * 2**20  # bytes; packets of smaller files are held in memory
_TURNS: dict[int, list[tuple[str, str | None]]] = {
    1: [("transpose", "clock")],
    2: [("hflip", None), ("vflip", None)],
    3: [("transpose", "cclock")],
}


class VideoInfo(NamedTuple):
    """Length, rate and size of a video."""

    frames: int
    """Number of frames that a full decode shows."""
    fps: float
    """Declared average frames per second."""
    duration: float
    """Seconds."""
    width: int
    """Pixels as stored, before rotation."""
    height: int
    rotation: int
    """Degrees clockwise that turn the stored picture upright: 0, 90, 180 or 270."""
    variable: bool
    """Whether frames are unevenly spaced in time: the longest interval is over 1.5 times the median."""


class Stopped(Exception):
    """Decoding ended early because the caller asked for it."""


class Clip(NamedTuple):
    """Chosen frames of one video."""

    frames: Tensor
    """(T, 3, size, size) uint8 RGB"""
    times: Tensor
    """(T,) float32 seconds from the start of the clip, non-decreasing"""


def probe(path: str | Path, *, stop: Event | None = None) -> VideoInfo:
    """Count the frames that a file shows. For most files, reads only the packets, in about 1 % of the decoding time; decodes the others.

    Args:
        path: A video file.
        stop: Ends the reading once it is set.

    Raises:
        Stopped: ``stop`` was set.
        VideoError: The file is not a regular readable file, has no video, is truncated, or its first frame does not decode. For a file that
            must be decoded: any frame does not decode.
    """
    with opened(path) as (container, stream):
        found = Shown(stream)
        source = found.noted(_until(stop, packets_of(path, container, stream)))
        first = next(all_frames(path, source), None)
        if first is None:
            raise VideoError(f"{path}: has no frame that decodes")
        for _ in source:  # reads the other packets without decoding them
            continue
        stamps = found.stamps
        if stamps is None:
            with opened(path) as (again, same):
                stamps = [frame.pts for frame in all_frames(path, _until(stop, packets_of(path, again, same)))]
        fps = frame_rate(stream)
        times = frame_times(stamps, stream)
        steps = np.diff(times)
        variable = bool(len(steps) > 1 and steps.max() > 1.5 * np.median(steps))
        turned = -round(first.rotation / 90) % 4 * 90
        return VideoInfo(len(stamps), fps, float(times[-1]) + 1 / fps, first.width, first.height, turned, variable)


def verify(path: str | Path) -> int:
    """Decode every frame, and return their number.

    Raises:
        VideoError: As ``probe``; or a frame does not decode or is corrupt.
    """
    count = 0
    with opened(path) as (container, stream):
        for _ in all_frames(path, packets_of(path, container, stream)):
            count += 1
    if not count:
        raise VideoError(f"{path}: has no frame that decodes")
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
    stop: Event | None = None,
) -> Clip:
    """Decode chosen frames as upright ``size`` x ``size`` RGB pictures.

    Only wanted frames go through the filter graph (crop → scale by area → RGB → turn), and decoding stops after the last one. In H.264 from
    MP4, MOV or MKV, unwanted frames that no other frame refers to are not decoded, and not checked for damage.

    Args:
        path: A video file.
        indices: (T,) frame numbers in display order; any order, repeats allowed.
        size: Output side in pixels.
        crop: ``center`` cuts the largest centred square (action in the middle); ``pad`` keeps the whole picture and adds black bars
            (actors near the edge of a wide picture).
        flip: Mirror left and right.
        zoom: Side of the cut relative to the largest possible one, in (0, 1].
        shift: Position of the cut, each in [-1, 1] from left/top to right/bottom of the stored picture.
        stop: Ends the decoding once it is set.

    Raises:
        Stopped: ``stop`` was set.
        VideoError: The file is damaged, has no video, or ends before the last wanted frame.
        ValueError: No index is given, one is negative, or ``size``, ``zoom`` or ``shift`` is out of range.
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
        for frame in _chosen(path, container, stream, wanted, last, stamps, stop):
            if graph is None or graph_of != (frame.width, frame.height, frame.format.name):
                graph_of = (frame.width, frame.height, frame.format.name)
                graph = picture_graph(frame, stream, size=size, crop=crop, flip=flip, zoom=zoom, shift=shift)
            graph.push(frame)
            pictures[count] = graph.pull().to_ndarray().transpose(2, 0, 1)
            count += 1
        times = frame_times(stamps, stream)
    if count < len(unique):
        if len(stamps) > last:
            raise VideoError(f"{path}: damaged: {len(unique) - count} of {len(unique)} wanted frames do not decode")
        raise VideoError(f"{path}: ends after {len(stamps)} frames, before frame {last}; the file is truncated or its length is wrong")
    frames = torch.from_numpy(pictures if len(unique) == len(numbers) and (inverse[1:] > inverse[:-1]).all() else pictures[inverse])
    return Clip(frames, torch.from_numpy(times[numbers].astype(np.float32)))


def _until(stop: Event | None, packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """The packets, as long as ``stop`` is not set."""
    for packet in packets:
        if stop is not None and stop.is_set():
            raise Stopped
        yield packet


def _chosen(
    path: str | Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    wanted: set[int],
    last: int,
    stamps: list[int | None],
    stop: Event | None,
) -> Iterator[av.VideoFrame]:
    """The wanted frames in display order. Fills ``stamps`` with the times of all frames up to the last wanted one.

    H.264 is decoded without its unwanted frames that no other frame refers to, if the packets show all frames and times. Times that rise in
    decoding order mean either that no frame can be skipped, or that FFmpeg guessed the times, as for AVI.
    """
    source: Iterable[av.Packet] = _until(stop, packets_of(path, container, stream))
    if stream.codec_context.name == "h264" and Path(path).stat().st_size < _HELD:
        found = Shown(stream)
        source = list(found.noted(source))
        if found.stamps is not None and None not in found.stamps and [packet.pts for packet in source if packet.size] != found.stamps:
            stamps += found.stamps[: last + 1]
            known = found.stamps
            yield from _without_the_rest(path, source, stream, {known[number] for number in wanted if number < len(known)}, stop)
            return
    for position, frame in enumerate(all_frames(path, source)):
        stamps.append(frame.pts)
        if position in wanted:
            yield frame
        if position == last:
            return


def _without_the_rest(
    path: str | Path, held: list[av.Packet], stream: av.VideoStream, wanted: set[int | None], stop: Event | None
) -> Iterator[av.VideoFrame]:
    """The frames at the wanted stamps, without decoding frames that none of them needs."""

    def needed() -> Iterator[av.Packet]:
        left = len(wanted)
        for packet in held:
            here = packet.pts in wanted
            left -= here
            context.skip_frame = "DEFAULT" if here else "NONREF"
            yield packet
            if not left:
                yield held[-1]  # the empty packet flushes the decoder
                return

    context, before = stream.codec_context, None
    for frame in all_frames(path, _until(stop, needed())):
        if frame.pts is None or (before is not None and frame.pts <= before):
            raise VideoError(f"{path}: damaged: its frames are not in the order of their times {place(frame)}")
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
    stop: Event | None = None,
    decoder: Decoder = "cpu",
) -> Clip:
    """Decode one view of a clip.

    Args:
        path: A video file.
        sampling: Number, size and cut of the frames.
        view: Number of the view; 0 is the plain one.
        name: The clip's name. Together with ``seed`` it seeds training views.
        seed: Seed of the views.
        num_frames: Length of the clip if known; saves counting its packets.
        rate: Frames per second if known; only sampling by fps needs it.
        stop: Ends the decoding on the CPU once it is set.
        decoder: ``cuda`` decodes on the current GPU, as :mod:`vtlvlm.data.cuda_video` describes, and leaves the frames there.

    Raises:
        Stopped: ``stop`` was set.
        VideoError: As ``probe`` and ``decode``.
    """
    if num_frames < 1 or (sampling.mode == "fps" and not rate > 0):
        info = probe(path, stop=stop)
        num_frames, rate = info.frames, info.fps
    plan = sampling.view(view, num_frames=num_frames, name=name, seed=seed, rate=rate)
    cut: dict[str, Any] = {"size": sampling.size, "crop": sampling.crop, "flip": plan.flip, "zoom": plan.zoom, "shift": plan.shift}
    if decoder == "cuda":
        from vtlvlm.data import cuda_video

        return cuda_video.decode(path, plan.indices, **cut)
    return decode(path, plan.indices, **cut, stop=stop)


def all_frames(path: str | Path, source: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    """The frames of packets in display order. A recording that was cut may begin with packets that do not decode; like players, skips them
    up to the first keyframe.

    Raises:
        VideoError: Any other packet does not decode, or a frame is corrupt.
    """
    count, packet, begun = 0, None, False
    try:
        for packet in source:
            begun = begun or packet.is_keyframe
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                if begun or count or not packet.size:
                    raise
                continue
            for frame in frames:
                if frame.is_corrupt:
                    raise VideoError(f"{path}: damaged: a frame is corrupt {place(frame, count)}")
                yield frame
                count += 1
    except (av.FFmpegError, MemoryError) as error:
        raise unusable(path, f"damaged: decoding stops {place(packet, count)}", error) from error


class Cut(NamedTuple):
    """A rectangle of the stored picture, and the size that it is scaled to."""

    left: int
    top: int
    cut_width: int
    cut_height: int
    width: int
    height: int

    @classmethod
    def of(
        cls, width: int, height: int, aspect: float, *, size: int, crop: Crop, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
    ) -> Cut:
        """The cut of a stored picture. ``aspect`` is the width of a pixel over its height; :func:`decode` describes the rest."""
        if crop == "center":
            side = min(width * aspect, height)
            cut_width, cut_height = side / aspect * zoom, side * zoom
            into = (size, size)
        else:
            cut_width, cut_height = width * zoom, height * zoom
            scale = size / max(cut_width * aspect, cut_height)
            into = (max(1, round(cut_width * aspect * scale)), max(1, round(cut_height * scale)))
        left, top = (width - cut_width) / 2 * (1 + shift[0]), (height - cut_height) / 2 * (1 + shift[1])
        return cls(int(left), int(top), round(cut_width), round(cut_height), *into)


def picture_graph(
    frame: av.VideoFrame,
    stream: av.VideoStream,
    *,
    size: int,
    crop: Crop,
    flip: bool = False,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> av.filter.Graph:
    """crop → scale by area → rgb24 → turn → mirror → pad, for frames like this one."""
    cut = Cut.of(frame.width, frame.height, pixel_aspect(stream), size=size, crop=crop, zoom=zoom, shift=shift)
    return linked(
        frame,
        stream,
        ("crop", f"{cut.cut_width}:{cut.cut_height}:{cut.left}:{cut.top}"),
        ("scale", f"{cut.width}:{cut.height}:{scaling(frame)}"),
        ("format", "rgb24"),
        *turns(frame),
        *([("hflip", None)] if flip else []),
        *([("pad", f"{size}:{size}:-1:-1")] if crop == "pad" else []),
    )


def pixel_aspect(stream: av.VideoStream) -> float:
    """Width of a pixel over its height; 1 if the file does not say."""
    return float(stream.sample_aspect_ratio or 1) or 1.0


def scaling(frame: av.VideoFrame) -> str:
    """The scale filter's options: average over areas, with the frame's tagged colours."""
    matrix = _MATRICES.get(int(frame.colorspace), "bt709" if frame.height >= 720 else "bt601")
    full = int(frame.color_range) == _FULL_RANGE or frame.format.name.startswith("yuvj")
    return f"flags=area:in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}"


def turns(frame: av.VideoFrame) -> list[tuple[str, str | None]]:
    """The filters that turn a frame upright."""
    return _TURNS.get(-round(frame.rotation / 90) % 4, [])


def linked(frame: av.VideoFrame, stream: av.VideoStream, *steps: tuple[str, str | None]) -> av.filter.Graph:
    """A single-threaded filter graph for frames like this one. Steps are filters and their arguments."""
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base)]
    nodes += [graph.add(name, arguments) for name, arguments in (*steps, ("buffersink", None))]
    graph.link_nodes(*nodes).configure()
    return graph
