"""Finds the actions in a camera or network stream while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from vtlvlm.data.playing import Frame
from vtlvlm.data.streaming import LiveStream, without_password
from vtlvlm.segments.finding import ClipModel, recognised
from vtlvlm.segments.live import Began, Live
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.windows import Grid, windows


class Interrupted(NamedTuple):
    """The stream was away; what comes next is a new piece."""

    at: float
    """seconds since the stream was opened"""


def watch(model: ClipModel, stream: LiveStream, grid: Grid, rule: Rule) -> Iterator[Began | Segment | Interrupted]:
    """What happens in a stream, as soon as it is known. A step of ``grid.hop`` seconds is decided ``grid.clip`` seconds after its start,
    and a segment is told about as long after its end.

    Each connected piece of the stream is windowed and decided as a file that begins at the next multiple of the hop.

    Args:
        model: Recognises clips.
        stream: Opened.
        grid: The windows.
        rule: From probabilities to segments, by hysteresis.

    Raises:
        DataError: The stream gave no picture for too long, or the model gives no probabilities.
    """
    for piece in stream.pieces():
        yield from _piece(model, stream, piece, grid, rule)


def _piece(model: ClipModel, stream: LiveStream, piece: Iterator[Frame], grid: Grid, rule: Rule) -> Iterator[Began | Segment | Interrupted]:
    first = next(piece)
    start = math.ceil(first.time / grid.hop) * grid.hop
    end = 0.0
    live = Live(model.classes, grid, rule, start)

    def shifted() -> Iterator[Frame]:
        nonlocal end
        for frame in chain([first], piece):
            end = frame.time - start + 1 / stream.rate
            if frame.time >= start:
                yield Frame(frame.time - start, frame.picture)

    for window in windows(shifted(), stream.rate, grid, model.sampling):
        yield from live.window(recognised(model, window.clip, without_password(stream.source)))
    yield from live.end(max(end, grid.clip))
    yield Interrupted(start + end)
