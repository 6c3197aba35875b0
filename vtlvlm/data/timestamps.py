"""Which frames a video shows, and when: from its packets where their headers settle it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.headers import Unsure
from vtlvlm.data.pictures import counter

_DROPPING, _LEAP = ("hevc", "mpeg4"), 1.75  # decoders that drop frames which refer to a lost one; median intervals of the gap


class Shown:
    """Which frames packets show, and when, as far as the packets' headers settle it.

    Packets that an edit list leaves out and hidden frames are not shown. A frame that is shown again counts again.

    Args:
        stream: The stream whose packets are added.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        codec = stream.codec_context
        self._count = counter(codec.codec.canonical_name, codec.extradata or b"")
        self._timed = not _made_up(stream)
        self._bridged = codec.name not in _DROPPING
        self._stamps: list[int | None] = []
        self._known: bool | None = None
        self._due: int | None = None

    def noted(self, source: Iterable[av.Packet]) -> Iterator[av.Packet]:
        """Add packets, and pass them on."""
        for packet in source:
            self.add(packet)
            yield packet

    def add(self, packet: av.Packet) -> None:
        """Take the next packet in the order of the file."""
        if self._count is None or not packet.size:
            return
        try:
            if packet.is_corrupt:
                raise Unsure
            number = self._count(memoryview(packet))
            known, due = self._timed and packet.pts is not None, packet.dts
            anew = known and self._due is not None and (due is None or due <= self._due)
            if number and (anew or self._known not in (None, known)):
                raise Unsure  # stamps that begin anew or are missing do not give the order of the frames
        except Unsure:
            self._count = None
            return
        if number:
            self._known, self._due = known, due
        if not packet.is_discard:
            self._stamps += [packet.pts if known else None] * number

    @property
    def stamps(self) -> list[int | None] | None:
        """Times of the frames in display order, in the stream's time base; all of them None if the container has none. None instead of the
        list if the packets do not settle which frames are shown."""
        if self._count is None or not self._count.settled or not self._stamps:
            return None
        if not self._known:
            return self._stamps
        rising = sorted(stamp for stamp in self._stamps if stamp is not None)
        ordered = self._due is not None and len(set(rising)) == len(rising)
        if ordered and not self._bridged and len(rising) > 2:
            steps = np.diff(rising)
            ordered = bool(steps.max() < _LEAP * np.median(steps))  # else a picture may be missing that others refer to
        return list(rising) if ordered else None


def frame_rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or Fraction(25))


def _made_up(stream: av.VideoStream) -> bool:
    """Whether FFmpeg guesses the display times. AVI stores frames in decoding order, which differs from theirs if frames are reordered; an
    MPEG program stream has times for only some of its frames."""
    name = stream.container.format.name
    return name == "mpeg" or (name == "avi" and bool(stream.codec_context.has_b_frames))


def frame_times(stamps: list[int | None], stream: av.VideoStream) -> NDArray[np.float64]:
    """(n,) seconds from the first frame; each depends on the frames before it alone.

    Times follow from the timestamps as long as these are known and rise. Where one does not, as at the joint of two recordings, the frame
    comes one frame interval after the one before.
    """
    if not stamps or _made_up(stream) or stream.time_base is None:
        return np.arange(len(stamps)) / frame_rate(stream)
    known = np.array([stamp if stamp is not None else -1 for stamp in stamps], dtype=np.int64)
    steps = np.diff(known)
    if None not in stamps and (steps > 0).all():  # exact, without adding up
        return np.asarray((known - known[0]) * float(stream.time_base))
    here = np.array([stamp is not None for stamp in stamps])
    usable = here[1:] & here[:-1] & (steps > 0)
    return np.concatenate([[0.0], np.cumsum(np.where(usable, steps * float(stream.time_base), 1 / frame_rate(stream)))])
