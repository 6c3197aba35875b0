"""Makes a copy of any video that every browser plays: H.264, upright, without sound, its first frame at 0.

A browser plays neither AVI nor HEVC, and cannot seek in a recording of its own camera, which has no length. The frames of a copy have the
times that ``decode`` gives, so that a moment of the one is the same moment of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from threading import Event

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.container import VideoError, opened
from vtlvlm.data.playing import timed
from vtlvlm.data.timestamps import frame_rate
from vtlvlm.data.transcode import small_size
from vtlvlm.data.video import Stopped, linked, pixel_aspect, scaling, turns
from vtlvlm.errors import DataError
from vtlvlm.system.cpu import usable_cores
from vtlvlm.system.files import replacing

SIDE = 480
"""Pixels of a copy's short side, at most"""
_CLOCK = 90_000  # ticks per second
_OPTIONS = {"crf": "26", "preset": "veryfast", "g": "15", "bf": "0"}
_BT709, _LIMITED = 1, 1  # AVCOL_SPC_BT709 (likewise AVCOL_PRI and AVCOL_TRC), AVCOL_RANGE_MPEG
_IN_MP4, _IN_WEBM = ("h264", "av1"), ("vp8", "vp9", "av1")
_EIGHT_BITS = ("yuv420p", "yuvj420p")


def browser_type(path: str | Path) -> str | None:
    """The media type under which browsers play a file as it is; None if they may not, or would show its frames at other times.

    Raises:
        VideoError: The file is damaged or no video.
    """
    with opened(path) as (container, stream):
        names, codec = container.format.name.split(","), stream.codec_context
        late = stream.start_time is None or abs(stream.start_time * float(stream.time_base or 1)) > 0.001
        several = len(container.streams.video) > 1  # a browser may choose another one
        if late or several or container.duration is None or codec.pix_fmt not in _EIGHT_BITS:
            return None
        name = codec.codec.canonical_name
        if "mp4" in names and name in _IN_MP4:
            return "video/mp4"
        return "video/webm" if "webm" in names and name in _IN_WEBM else None


def write_preview(
    source: str | Path,
    target: Path,
    *,
    side: int = SIDE,
    progress: Callable[[float], object] | None = None,
    stop: Event | None = None,
    paint: Callable[[float, NDArray[np.uint8]], None] | None = None,
) -> None:
    """Write the copy of a video, whole or not at all. The memory does not grow with its length.

    Args:
        source: A video.
        target: An MP4 file to write.
        side: Pixels of the short side, at most.
        progress: Called with the seconds that are copied so far.
        stop: Ends the copying once it is set.
        paint: Called with the time in seconds and each picture (H, W, 3) uint8 RGB, which it may change.

    Raises:
        Stopped: ``stop`` was set.
        VideoError: The source is damaged.
        DataError: The copy cannot be written.
    """
    try:
        with (
            replacing(target, follow=False, tidy=False) as part,
            av.open(f"file:{part.absolute()}", "w", format="mp4", options={"movflags": "faststart"}) as container,
        ):
            _encode(source, container, side, progress, stop, paint)
    except OSError as error:  # av's write errors are OSErrors too; its read errors have become VideoErrors
        raise DataError(f"{target}: cannot be written ({error.strerror}); make room there and try again") from error


def _encode(
    source: str | Path,
    container: av.container.OutputContainer,
    side: int,
    progress: Callable[[float], object] | None,
    stop: Event | None,
    paint: Callable[[float, NDArray[np.uint8]], None] | None,
) -> None:
    output, graph, graph_of, size, before = None, None, None, (0, 0), -1
    with opened(source) as (opened_source, stream):
        for time, frame in timed(source, opened_source, stream):
            if stop is not None and stop.is_set():
                raise Stopped
            if graph is None or graph_of != (frame.width, frame.height, frame.format.name):
                graph_of = (frame.width, frame.height, frame.format.name)
                size = size if output is not None else small_size(frame, pixel_aspect(stream), side)
                scale = f"{size[0]}:{size[1]}:{scaling(frame)}:out_color_matrix=bt709:out_range=tv"
                graph = linked(frame, stream, ("scale", scale), ("format", "yuv420p"), *turns(frame), ("setsar", "1"))
            graph.push(frame)
            picture = graph.pull()
            if paint is not None:
                picture = _painted(picture, time, paint)
            output = output or _stream(container, picture, frame_rate(stream))
            before = max(before + 1, round(time * _CLOCK))  # rising
            picture.pts, picture.time_base, picture.pict_type = before, Fraction(1, _CLOCK), 0  # the encoder chooses
            container.mux(output.encode(picture))
            if progress is not None:
                progress(time)
    if output is None:
        raise VideoError(f"{source}: has no frame that decodes")
    container.mux(output.encode(None))


def _painted(picture: av.VideoFrame, time: float, paint: Callable[[float, NDArray[np.uint8]], None]) -> av.VideoFrame:
    """A picture after painting; BT.709 in limited range, as before."""
    matrix = {"src_colorspace": "ITU709", "src_color_range": "MPEG", "dst_colorspace": "ITU709", "dst_color_range": "JPEG"}
    shown = picture.reformat(format="rgb24", **matrix).to_ndarray()
    paint(time, shown)
    back = {"src_colorspace": "ITU709", "src_color_range": "JPEG", "dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
    return av.VideoFrame.from_ndarray(shown, format="rgb24").reformat(format="yuv420p", **back)


def _stream(container: av.container.OutputContainer, picture: av.VideoFrame, rate: float) -> av.VideoStream:
    stream: av.VideoStream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options=_OPTIONS)
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
    stream.time_base = stream.codec_context.time_base = Fraction(1, _CLOCK)
    context = stream.codec_context
    context.thread_count = usable_cores()
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED
    return stream
