"""Plays a video from its start to its end, frame by frame: for long videos, of which no list of frames is known or kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.container import VideoError, opened, packets_of
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.timestamps import frame_rate, made_up
from vtlvlm.data.video import all_frames, picture_graph


class Frame(NamedTuple):
    """A frame of a video that plays."""

    time: float
    """seconds from the first frame, rising"""
    picture: Callable[[], NDArray[np.uint8]]
    """makes the picture (3, size, size) uint8 RGB"""


class Playing(NamedTuple):
    """A video that plays."""

    rate: float
    """declared average frames per second"""
    seconds: float | None
    """length as the container declares it, which may be wrong; None if it does not"""
    frames: Iterator[Frame]


@contextmanager
def playing(path: str | Path, sampling: FrameSampling) -> Iterator[Playing]:
    """Open a video and yield its frames, in the order of their display, with the times that ``decode`` gives. Only the current frame is
    held, and only frames whose pictures are asked for are scaled.

    Args:
        path: A video file.
        sampling: For the pictures' size and cut.

    Raises:
        VideoError: As ``decode``; while playing, a frame does not decode.
    """
    with opened(path) as (container, stream):
        declared = None if container.duration is None else container.duration / av.time_base
        yield Playing(frame_rate(stream), declared, _frames(path, container, stream, sampling))


def _frames(path: str | Path, container: av.container.InputContainer, stream: av.VideoStream, sampling: FrameSampling) -> Iterator[Frame]:
    graphs: dict[tuple[int, int, str], av.filter.Graph] = {}

    def picture_of(frame: av.VideoFrame) -> NDArray[np.uint8]:
        kind = (frame.width, frame.height, frame.format.name)
        if kind not in graphs:
            graphs.clear()  # of the size before
            graphs[kind] = picture_graph(frame, stream, size=sampling.size, crop=sampling.crop)
        graphs[kind].push(frame)
        made: NDArray[np.uint8] = np.ascontiguousarray(graphs[kind].pull().to_ndarray().transpose(2, 0, 1))
        return made

    for time, frame in timed(path, container, stream):
        yield Frame(time, lambda frame=frame: picture_of(frame))  # type: ignore[misc]


def timed(path: str | Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames of an opened video in the order of their display, with their times in seconds from the first one, rising.

    Raises:
        VideoError: A frame does not decode, or there is none.
    """
    interval, guessed = 1 / frame_rate(stream), made_up(stream)
    first: int | None = None
    before: int | None = None
    last, shift, count = 0.0, 0.0, 0
    for frame in all_frames(path, packets_of(path, container, stream)):
        stamp = frame.pts
        if guessed or stream.time_base is None:
            time = count * interval
        elif count == 0:
            time, first = 0.0, stamp
        elif stamp is None or before is None or stamp <= before:  # a joint of two recordings: one interval later
            time = last + interval
            first, shift = stamp, time
        else:
            time = shift + (stamp - (first or 0)) * float(stream.time_base)
        yield time, frame
        last, before, count = time, stamp, count + 1
    if not count:
        raise VideoError(f"{path}: has no frame that decodes")
