"""Cuts a video that plays into overlapping windows on one grid of time, and each window into the frames that a model reads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.data.playing import Frame
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip
from vtlvlm.errors import UsageError

SHORTEST_CLIP = 0.05
"""Seconds of a window, at least"""
MOST_OPEN = 64
"""Windows that overlap at one time, at most"""


@dataclass(frozen=True)
class Grid:
    """Windows of ``clip`` seconds, one every ``hop`` seconds; the first begins at 0.

    Raises:
        UsageError: A number is out of range.
    """

    clip: float
    hop: float

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.clip < math.inf:
            raise UsageError(f"clip={self.clip:g}, hop={self.hop:g}: seconds above 0, the hop at most as long as the clip")
        if self.clip < SHORTEST_CLIP:
            raise UsageError(f"clip={self.clip:g}: at least {SHORTEST_CLIP:g} seconds")
        if self.clip / self.hop > MOST_OPEN:
            raise UsageError(f"clip={self.clip:g}, hop={self.hop:g}: more than {MOST_OPEN} windows at once; make the hop longer")


class Window(NamedTuple):
    """A part of a video, as the clip that ``classify`` would read if the part were a file."""

    number: int
    start: float
    """seconds"""
    clip: Clip


class _Open:
    """A window that still lacks frames."""

    def __init__(self, number: int, start: float, shown: NDArray[np.float64]) -> None:
        self.number, self.start = number, start
        self.wanted = deque(float(start + at) for at in shown)
        self.pictures: list[NDArray[np.uint8]] = []
        self.times: list[float] = []

    def take(self, picture: NDArray[np.uint8], time: float, until: float) -> None:
        """Use a picture for the wanted moments before ``until``."""
        while self.wanted and self.wanted[0] < until:
            self.wanted.popleft()
            self.pictures.append(picture)
            self.times.append(time - self.start)

    def closed(self) -> Window:
        times = torch.tensor(np.maximum(self.times, 0.0), dtype=torch.float32)
        return Window(self.number, self.start, Clip(torch.from_numpy(np.stack(self.pictures)), times))


def windows(frames: Iterable[Frame], rate: float, grid: Grid, sampling: FrameSampling) -> Iterator[Window]:
    """The windows of a video, in their order, each as soon as its last frame is known.

    A window's frames are those on display at the moments that the plain view of ``sampling`` has in a clip of its length: for an even frame
    rate, the frames that ``classify`` reads of the part as a file. What comes later in the video changes no window. Windows that reach
    beyond the video's end are left out: a video that is shorter than one has none.

    Args:
        frames: In display order.
        rate: Declared frames per second.
        grid: The windows.
        sampling: As in training.
    """
    moments = _moments(grid.clip, rate, sampling)
    pending: deque[_Open] = deque()
    number, held, until = 0, None, 0.0
    for frame in chain(frames, [None]):
        if held is not None:
            until = held.time + 1 / rate if frame is None else frame.time
            number = _show(held, until, grid, moments, pending, number)
            while pending and pending[0].start + grid.clip <= until + 0.5 / rate:
                done = pending.popleft()
                if done.wanted:  # its last moments lie behind its last picture by a rounding
                    done.take(held.picture(), held.time, math.inf)
                yield done.closed()
        held = frame


def _moments(seconds: float, rate: float, sampling: FrameSampling) -> NDArray[np.float64]:
    """(T,) seconds: the middle of the display of each frame that the plain view takes of so long a clip."""
    number = max(1, round(seconds * rate))
    view = sampling.view(0, num_frames=number, name="", seed=0, rate=rate)
    return (view.indices + 0.5) / np.float64(rate)


def _show(held: Frame, until: float, grid: Grid, moments: NDArray[np.float64], pending: deque[_Open], number: int) -> int:
    """Show a frame up to a time: opens the windows that begin by then, and gives the frame to those that want it."""
    while number * grid.hop < until:
        pending.append(_Open(number, number * grid.hop, moments))
        number += 1
    if any(one.wanted and one.wanted[0] < until for one in pending):
        picture = held.picture()
        for one in pending:
            one.take(picture, held.time, until)
    return number
