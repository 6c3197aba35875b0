"""Trims segments to where something moves. A window that holds an action whole may hold much rest too, and says the action for all of it.

Adaptive pooling cuts a window into parts of equal salience (eq. 2): its parts are short where something moves, and long where nothing does.
So the event sentence itself says when an action begins and ends. Movement at a time is the even length of a part over the length of the
part at that time, averaged over the windows: 1 where a window has no rest or nothing else, above 1 where more moves than elsewhere in the
window. A segment is cut to the time from its first to its last movement of at least 1. Nothing is fitted.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.segments.timeline import Segment

STEP = 0.05
"""Seconds between the times at which movement is looked at"""
SHORTEST_PART = 1e-3
"""Seconds; a part counts as at least so long"""


class Parts(NamedTuple):
    """The parts of a window that hold one event of each cell."""

    start: float
    """seconds of the window's start"""
    spans: NDArray[np.float64]
    """(W, 2) seconds from the window's start, ascending"""


def movement(windows: Sequence[Parts], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Movement (n,) at times (n,); NaN where no window is.

    Args:
        windows: Any that reach the times.
        times: Seconds, ascending.
    """
    total, count = np.zeros(len(times)), np.zeros(len(times))
    for start, spans in windows:
        edges = np.append(spans[:, 0], spans[-1, 1]) + start
        here = slice(*np.searchsorted(times, edges[[0, -1]]))
        part = np.searchsorted(edges, times[here], side="right") - 1
        lengths = np.maximum(np.diff(edges), SHORTEST_PART)
        total[here] += (edges[-1] - edges[0]) / len(lengths) / lengths[part.clip(0, len(lengths) - 1)]
        count[here] += 1
    with np.errstate(invalid="ignore"):
        return total / count


def reaching(windows: Sequence[Parts], segment: Segment, clip: float) -> list[Parts]:
    """The windows, at most ``clip`` seconds long and ascending, that have a time in common with a segment."""
    first = bisect.bisect_left(windows, segment.start - clip, key=_start)
    return [windows[number] for number in range(first, bisect.bisect_left(windows, segment.end, key=_start))]


def _start(part: Parts) -> float:
    return part.start


def trimmed(segment: Segment, windows: Sequence[Parts]) -> Segment:
    """A segment from its first to its last movement; the segment as it is where the windows do not say.

    Args:
        segment: To trim.
        windows: All windows that reach it, or more.
    """
    times = np.arange(segment.start + STEP / 2, segment.end, STEP)
    found = np.flatnonzero(movement(windows, times) >= 1.0)
    if not len(found):
        return segment
    return segment._replace(start=float(times[found[0]] - STEP / 2), end=float(min(segment.end, times[found[-1]] + STEP / 2)))
