"""Finds the actions in a camera or network stream while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from vtlvlm.data.playing import Frame
from vtlvlm.data.streaming import LiveStream, without_password
from vtlvlm.segments.finding import ClipModel, recognised
from vtlvlm.segments.live import Began, Live
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.windows import Grid, Window, windows


class Interrupted(NamedTuple):
    """The stream was away; what comes next is a new piece."""

    at: float
    """seconds since the stream was opened"""


class Watch:
    """What happens in a stream, as soon as it is known. A step of ``grid.hop`` seconds is decided ``grid.clip`` seconds after its start,
    and a segment is told about as long after its end.

    Each connected piece of the stream is windowed and decided as a file that begins at the next multiple of the hop. A model that takes
    longer than a hop reads fewer windows: those that are late when it is free are skipped, but for the newest one.

    Args:
        model: Recognises clips.
        stream: Opened.
        grid: The windows.
        rule: From probabilities to segments, by hysteresis.
        progress: Called after each window that the model read.

    Attributes:
        windows: Number of windows so far.
        skipped: How many of them the model did not read.
    """

    def __init__(self, model: ClipModel, stream: LiveStream, grid: Grid, rule: Rule, progress: Callable[[], object] = lambda: None) -> None:
        self.model, self.stream, self.grid, self.rule, self.progress = model, stream, grid, rule, progress
        self.windows = self.skipped = 0

    def __iter__(self) -> Iterator[Began | Segment | Interrupted]:
        """What happens, in its order.

        Raises:
            DataError: The model gives no probabilities.
        """
        for piece in self.stream.pieces():
            yield from self._piece(piece)

    def _piece(self, piece: Iterator[Frame]) -> Iterator[Began | Segment | Interrupted]:
        first = next(piece)
        start = math.ceil(first.time / self.grid.hop) * self.grid.hop
        end = 0.0
        live = Live(self.model.classes, self.grid, self.rule, start)

        def shifted() -> Iterator[Frame]:
            nonlocal end
            for frame in chain([first], piece):
                end = frame.time - start + 1 / self.stream.rate
                if frame.time >= start:
                    yield Frame(frame.time - start, frame.picture)

        late: Window | None = None
        free, took = -math.inf, 0.0  # when the model was free last, and how long it had read
        for window in windows(shifted(), self.stream.rate, self.grid, self.model.sampling):
            self.windows += 1
            began = time.monotonic()
            behind = self.stream.counts().lag > self.grid.hop < took
            if behind and began - free < took:  # and no longer: where frames themselves come late, skipping does not help
                self.skipped, late = self.skipped + 1, window
                continue
            yield from self._read(live, window)
            late, free = None, time.monotonic()
            took = free - began
            self.progress()
        if late is not None:  # the stream ends with it
            self.skipped -= 1
            yield from self._read(live, late)
        yield from live.end(max(end, self.grid.clip))
        yield Interrupted(start + end)

    def _read(self, live: Live, window: Window) -> list[Began | Segment]:
        return live.window(recognised(self.model, window.clip, without_password(self.stream.source)), window.number)
