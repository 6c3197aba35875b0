"""Finds the frames that a video shows, and their times, from the headers of its packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.headers import Unsure
from vtlvlm.data.pictures import counter

_DROPPING, _LEAP = ("hevc", "mpeg4"), 1.75  # decoders that drop frames after a lost reference; gap of a lost frame, in median intervals


class Shown:
    """Counts the frames that packets show, and collects their times, if the packets' headers settle both.

    Hidden frames do not count, nor packets that an edit list leaves out. A frame that is shown again counts again.

    Args:
        stream: The stream of the packets.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        codec = stream.codec_context
        self._count = counter(codec.codec.canonical_name, codec.extradata or b"")
        self._timed = not made_up(stream)
        self._bridged = codec.name not in _DROPPING
        self._stamps: list[int | None] = []
        self._known: bool | None = None
        self._due: int | None = None

    def noted(self, source: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """Add packets, and yield them."""
        for packet in source:
            self.add(packet)
            yield packet

    def add(self, packet: av.Packet) -> None:
        """Add the next packet in file order."""
        if self._count is None or not packet.size:
            return
        try:
            if packet.is_corrupt:
                raise Unsure
            number = self._count(memoryview(packet))
            known, due = self._timed and packet.pts is not None, packet.dts
            anew = known and self._due is not None and (due is None or due <= self._due)
            if number and (anew or self._known not in (None, known)):
                raise Unsure  # stamps that restart or are missing do not give the order of the frames
        except Unsure:
            self._count = None
            return
        if number:
            self._known, self._due = known, due
        if not packet.is_discard:
            self._stamps += [packet.pts if known else None] * number

    @property
    def stamps(self) -> list[int | None] | None:
        """Times of the frames in display order, in the stream's time base. All are None if the container has no times. Instead of a list,
        None if the packets do not settle which frames are shown."""
        if self._count is None or not self._count.settled or not self._stamps:
            return None
        if not self._known:
            return self._stamps
        rising = sorted(stamp for stamp in self._stamps if stamp is not None)
        ordered = self._due is not None and len(set(rising)) == len(rising)
        if ordered and not self._bridged and len(rising) > 2:
            steps = np.diff(rising)
            ordered = bool(steps.max() < _LEAP * np.median(steps))  # else a reference picture may be missing
        return list(rising) if ordered else None


def frame_rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or Fraction(25))


def made_up(stream: av.VideoStream) -> bool:
    """Whether FFmpeg guesses the display times. AVI stores frames in decoding order and without times, so that reordered frames have no
    known time. An MPEG program stream has times for only some of its frames."""
    name = stream.container.format.name
    return name == "mpeg" or (name == "avi" and bool(stream.codec_context.has_b_frames))


def frame_times(stamps: list[int | None], stream: av.VideoStream) -> NDArray[np.float64]:
    """n timestamps -> (n,) seconds from the first frame. Each time depends on earlier frames only.

    Known and rising timestamps give the times. A frame with a missing or falling timestamp, as at the joint of two recordings, comes one
    frame interval after the frame before it.
    """
    if not stamps or made_up(stream) or stream.time_base is None:
        return np.arange(len(stamps)) / frame_rate(stream)
    known = np.array([stamp if stamp is not None else -1 for stamp in stamps], dtype=np.int64)
    steps = np.diff(known)
    if None not in stamps and (steps > 0).all():  # exact, without adding up
        return np.asarray((known - known[0]) * float(stream.time_base))
    here = np.array([stamp is not None for stamp in stamps])
    usable = here[1:] & here[:-1] & (steps > 0)
    return np.concatenate([[0.0], np.cumsum(np.where(usable, steps * float(stream.time_base), 1 / frame_rate(stream)))])
