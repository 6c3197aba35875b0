"""Reads cameras and network streams that never end. A thread drains the source: a slow reader loses frames here and there, evenly, and
never falls behind. A source that goes silent or away is opened again.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from vtlvlm.data.playing import Frame
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.timestamps import frame_rate
from vtlvlm.data.video import picture_graph
from vtlvlm.errors import DataError
from vtlvlm.system.text import shown

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
"""Addresses that are streams"""
_PROTOCOLS = (
    "rtsp,rtsps,rtmp,http,https,httpproxy,udp,tcp,rtp,srtp,tls,crypto,hls"  # no files: a playlist must not open one of this machine
)
_OPTIONS = {"rtsp_transport": "tcp", "flags": "low_delay", "analyzeduration": "1000000", "protocol_whitelist": _PROTOCOLS}
# FFmpeg looks at a second of the stream before its first frame, and keeps it; with its flag nobuffer those frames would be lost
_HELD = 64
"""Frames that wait for the reader, at most"""
_SILENCE = 5.0
"""Seconds after which a source that says nothing counts as gone"""
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before a source is opened again"""
_JUMP = 5.0
"""Seconds from one time stamp to the next, at most; a source with a longer step counts anew"""
_SECRET = re.compile(r"(?<=://)[^/@\s]+@")


class Gap(NamedTuple):
    """A place at which a stream was away: what comes after it is a new piece."""

    reason: str


class _Item(NamedTuple):
    """A frame that waits."""

    moment: float
    frame: av.VideoFrame
    graph: av.filter.Graph
    """scales it; made while the source was open"""


class Counts(NamedTuple):
    """What a stream has done so far."""

    frames: int
    """frames that came"""
    dropped: int
    """frames that were dropped because the reader was behind"""
    lag: float
    """seconds by which the reader is behind the newest frame"""


def is_stream(source: str) -> bool:
    """Whether a source is a network address or a camera, and no file."""
    scheme, found, _ = source.partition("://")
    return (bool(found) and scheme.lower() in SCHEMES) or _camera(source) is not None


def without_password(source: str) -> str:
    """An address without the name and password in it, for messages and files."""
    return _SECRET.sub("", source)


def _camera(source: str) -> str | None:
    """The device of a camera: ``camera:0`` or ``/dev/video0``."""
    if found := re.fullmatch(r"camera:(\d{1,3})", source):
        return f"/dev/video{found[1]}"
    return source if re.fullmatch(r"/dev/video\d{1,3}", source) else None


class LiveStream:
    """A camera or network stream as pieces of frames.

    Args:
        source: As :func:`is_stream` accepts it.
        sampling: For the pictures' size and cut.
        give_up: Seconds without a frame after which it counts as over.
        seconds: End it after so long; None for no end.
        say: Called with a line when the stream is lost.

    Attributes:
        over: Why it was given up; "" while it was not.
    """

    def __init__(
        self,
        source: str,
        sampling: FrameSampling,
        *,
        give_up: float = 60.0,
        seconds: float | None = None,
        say: Callable[[str], object] = lambda line: None,
    ) -> None:
        self.source, self.sampling, self.give_up, self.seconds, self.say = source, sampling, give_up, seconds, say
        self.rate = 30.0
        self._waiting: deque[_Item | Gap] = deque()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._frames = self._dropped = 0
        self.over = ""
        self._newest = self._read = 0.0
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._drain, name="stream", daemon=True)

    def __enter__(self) -> LiveStream:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * _SILENCE)

    def counts(self) -> Counts:
        """What it has done so far."""
        with self._changed:
            return Counts(self._frames, self._dropped, max(0.0, self._newest - self._read))

    def pieces(self) -> Iterator[Iterator[Frame]]:
        """The connected pieces of the stream, one after the other; each must be read to its end. Times are seconds since it was opened."""
        while (first := self._next()) is not None:
            if not isinstance(first, Gap):
                yield self._piece(first)

    def _piece(self, first: _Item) -> Iterator[Frame]:
        item: _Item | Gap | None = first
        while item is not None and not isinstance(item, Gap):
            self._read = item.moment
            yield Frame(item.moment, partial(_picture, item))
            item = self._next()

    def _next(self) -> _Item | Gap | None:
        """The next frame or gap; None once it is over."""
        if self.seconds is not None and time.monotonic() - self._began > self.seconds:
            self._stop.set()
        with self._changed:
            while not self._waiting:
                if self._stop.is_set() or not self._thread.is_alive():
                    return None
                self._changed.wait(0.2)
                if self.seconds is not None and time.monotonic() - self._began > self.seconds:
                    self._stop.set()
            return self._waiting.popleft()

    def stop(self) -> None:
        """End it; the frames that wait are still read."""
        self._stop.set()

    # -- the thread ----------------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        last, failures = time.monotonic(), 0
        while not self._stop.is_set():
            before = self._frames
            try:
                reason = self._connected()
            except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
                reason = shown(getattr(error, "strerror", None) or str(error))
            if self._stop.is_set():
                return
            if self._frames > before:
                last, failures = time.monotonic(), 0
                self._put(Gap(reason))
            if time.monotonic() - last > self.give_up:
                self.over = f"no picture for {self.give_up:g} s ({reason})"
                return
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
            failures += 1
            self.say(f"{without_password(self.source)}: lost ({reason}); trying again in {pause:g} s")
            self._stop.wait(min(pause, max(0.1, self.give_up - (time.monotonic() - last))))

    def _connected(self) -> str:
        """Read until the source ends or fails. Returns why it ended."""
        device = _camera(self.source)
        options = {} if device is not None else dict(_OPTIONS)
        if not self.source.lower().startswith("rtsp"):
            options.pop("rtsp_transport", None)
        with av.open(device or self.source, format="v4l2" if device else None, options=options, timeout=(_SILENCE, _SILENCE)) as container:
            if not container.streams.video:
                return "it has no video"
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"
            self.rate = frame_rate(stream)
            graph, kind, offset, before, last = None, None, 0.0, None, 0.0
            for frame in container.decode(stream):
                if self._stop.is_set():
                    return "ended"
                if graph is None or kind != (frame.width, frame.height, frame.format.name):
                    kind = (frame.width, frame.height, frame.format.name)
                    graph = picture_graph(frame, stream, size=self.sampling.size, crop=self.sampling.crop)
                now = time.monotonic() - self._began
                stamp = now if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
                if before is None or not 0 <= stamp - before <= _JUMP:  # the first one, or a source that counts anew
                    offset = now - stamp
                moment = max(stamp + offset, last + 1e-3)
                before, last = stamp, moment
                if moment > now:  # a server that sends faster than the pictures were taken
                    self._stop.wait(moment - now)
                self._put(_Item(moment, frame, graph))
        return "it ended"

    def _put(self, item: _Item | Gap) -> None:
        with self._changed:
            if not isinstance(item, Gap):
                self._frames += 1
                self._newest = item.moment
                while sum(not isinstance(one, Gap) for one in self._waiting) >= _HELD:
                    self._drop()
            self._waiting.append(item)
            self._changed.notify_all()

    def _drop(self) -> None:
        """Drop the frame whose neighbours are nearest to each other, so that those that stay lie evenly; gaps stay."""
        frames = [(place, one.moment) for place, one in enumerate(self._waiting) if not isinstance(one, Gap)]
        moments = [self._read, *(moment for _, moment in frames), self._newest]
        widths = [later - earlier for earlier, later in zip(moments, moments[2:], strict=False)]
        del self._waiting[frames[widths.index(min(widths))][0]]
        self._dropped += 1


def _picture(item: _Item) -> NDArray[np.uint8]:
    """The picture (3, size, size) of a frame."""
    item.graph.push(item.frame)
    made: NDArray[np.uint8] = np.ascontiguousarray(item.graph.pull().to_ndarray().transpose(2, 0, 1))
    return made


def require_camera(source: str) -> None:
    """Refuse a camera that is not there, before a model is loaded."""
    device = _camera(source)
    if device is not None and not Path(device).exists():
        raise DataError(f"{source}: no such camera ({device}); `ls /dev/video*` shows those that are there")
