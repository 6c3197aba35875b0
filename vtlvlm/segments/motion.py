"""Cuts a video into parts that move, and names each part by the windows that hold it.

A window that holds an action whole may hold much rest too, and says the action for all of it. So motion says when, and windows say what:
temporal action proposals from actionness, and their classification. Motion is the change of the backbone's features in a second, divided
by the change from which the training clips count as moving (``moving`` of a bundle). Each time has the motion of the first window that
holds it, so that a stream knows it as soon as a file does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.segments.steps import joint
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.windows import Grid

STEP = 0.05
"""Seconds between the times at which motion is known"""
REACH = 3
"""Motion is smoothed over so many times before and after each"""
LOW = 0.8
"""A part begins and ends where its motion passes this; within it, motion reaches 1"""
REST, QUIET = 0.6, 0.25
"""Motion of training clips at rest, about; and the share of a scene's recent times that is taken to be rest at least"""
EDGE = 3
"""Samples at the edge of a window whose mean stands for the times that no window holds"""
RECENT = 60.0
"""Seconds from which a scene's own noise is known"""
NOISE = (0.75, 1.6)
"""Least and largest noise of a scene, in units of the training clips'"""
LONG = 1.5
"""A part of more windows than this may hold several actions"""


class Part(NamedTuple):
    """A part of a video in which something moves, with gaps that are too short to count."""

    start: float
    """seconds"""
    end: float
    moving: float
    """seconds with a motion of at least 1"""


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (n,) averaged over ``REACH`` on either side, as far as there are any."""
    if not len(values):
        return values
    padded, there = np.pad(values, REACH), np.pad(np.ones(len(values)), REACH)
    sums = (np.lib.stride_tricks.sliding_window_view(one, 2 * REACH + 1).sum(1) for one in (padded, there))
    found: NDArray[np.float64] = np.divide(*sums)
    return found


class MotionCurve:
    """Motion over time, from windows that come one after the other.

    Cameras and rooms differ in their noise: a picture in poor light changes while nothing moves. So motion is divided by the noise of the
    scene: a low quantile of the last minute, within bounds, since there may be no rest in it.

    Args:
        grid: The windows; the first one that is added begins at 0.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.recent: NDArray[np.float64] = np.zeros(0)  # not divided by the noise
        self.first = 0  # number of the first time that is kept
        self._values: NDArray[np.float64] = np.zeros(0)
        self._new: list[NDArray[np.float64]] = []  # what comes after them, not joined yet
        self._count = 0  # of both
        self._total: NDArray[np.float64] | None = None  # what moved until each time, if it is known
        self._edge: float | None = None  # at the end of the last window

    @property
    def values(self) -> NDArray[np.float64]:
        """(n,) the motion at the times that are kept, from number ``first``."""
        if self._new:
            self._values, self._new = np.concatenate([self._values, *self._new]), []
        return self._values

    @property
    def known(self) -> float:
        """Seconds up to which the smoothed motion will not change."""
        return max(0, self.first + self._count - REACH) * STEP

    def add(self, number: int, motion: NDArray[np.float64]) -> None:
        """Add a window.

        Args:
            number: Of the window, more than that of the one before. Times between two windows are as the nearer one's edge.
            motion: (N, 2) seconds from the window's start, ascending, and motion.
        """
        start = number * self.grid.hop
        new = np.arange(self.first + self._count, round((start + self.grid.clip) / STEP))
        at = (new + 0.5) * STEP - start
        read = np.interp(at, motion[:, 0], motion[:, 1])
        first, last = float(motion[:EDGE, 1].mean()), float(motion[-EDGE:, 1].mean())
        if len(at) and at[0] < 0:
            read[at < 0] = first
            read[at < at[0] / 2] = first if self._edge is None else self._edge
        self._edge = last
        self.recent = np.append(self.recent, read)[-round(RECENT / STEP) :]
        noise = float(np.clip(np.quantile(smooth(self.recent), QUIET) / REST, *NOISE))
        self._new.append(read / noise)
        self._count, self._total = self._count + len(new), None

    def forget(self, before: float) -> None:
        """Forget what comes before a time."""
        old = min(self._count, max(0, math.floor(before / STEP) - 2 * REACH - self.first))
        if old:
            self._values = self.values[old:]
            self.first, self._count, self._total = self.first + old, self._count - old, None

    def smoothed(self) -> NDArray[np.float64]:
        """The motion (n,) at the known times, from number ``first``."""
        return smooth(self.values)

    def moves(self, start: float, end: float) -> bool:
        """Whether something moves between two times, as far as is known; true where nothing is."""
        first, last = (max(0, round(at / STEP) - self.first) for at in (start, end))
        seen = self.values[first:last]
        return not len(seen) or bool((self.smoothed()[first:last] >= LOW).any())

    def parts(self, gap: float, ended: bool = True) -> tuple[list[Part], Part | None]:
        """The parts that move.

        Args:
            gap: Seconds; a shorter lull does not end a part.
            ended: Whether no more windows come.

        Returns:
            Those that are over, and the one that may go on.
        """
        level = self.smoothed()
        if self.first:
            level[:REACH] = 0.0  # their neighbours are forgotten
        if not ended:
            level = level[: max(0, len(level) - REACH)]
        edges = np.flatnonzero(np.diff(np.pad(level >= LOW, 1)))
        lull = round(gap / STEP)
        found: list[list[int]] = []
        for start, end in edges.reshape(-1, 2).tolist():
            if found and start - found[-1][1] <= lull:
                found[-1][1] = end
            else:
                found.append([start, end])
        parts = [self._part(level, *one) for one in found]
        goes_on = not ended and bool(found) and len(level) - found[-1][1] <= lull
        return (parts[:-1], parts[-1]) if goes_on else (parts, None)

    def _part(self, level: NDArray[np.float64], start: int, end: int) -> Part:
        moving = int((level[start:end] >= 1).sum()) * STEP
        return Part((self.first + start) * STEP, (self.first + end) * STEP, moving)

    def excess(self, start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much moves (n,) between times (n,) and later ones (n,), above rest."""
        if self._total is None:
            self._total = np.append(0.0, np.cumsum(np.clip(self.smoothed() - LOW, 0, None)))
        places = [np.clip(np.round(at / STEP).astype(np.int64) - self.first, 0, self._count) for at in (start, end)]
        found: NDArray[np.float64] = np.clip(self._total[places[1]] - self._total[places[0]], 0, None)
        return found


def weights(part: Part, numbers: NDArray[np.int64], curve: MotionCurve) -> NDArray[np.float64]:
    """How much each window (n,) says of a part: zero, or a share of 1.

    A window says much that holds the part whole, in which little else moves, and whose middle is near to the part's.

    Args:
        part: At most ``LONG`` windows long.
        numbers: (n,) of the windows.
        curve: The motion of all of them.
    """
    clip = curve.grid.clip
    starts: NDArray[np.float64] = numbers * np.float64(curve.grid.hop)
    first, last = np.maximum(starts, part.start), np.minimum(starts + clip, part.end)
    held = np.clip(last - first, 0, None) / min(part.end - part.start, clip)
    alone = curve.excess(first, np.maximum(first, last)) / np.maximum(curve.excess(starts, starts + clip), 1e-9)
    apart = np.abs(starts + clip / 2 - (part.start + part.end) / 2) / clip
    found = np.square(held * alone) * np.exp(-3 * apart)
    shares: NDArray[np.float64] = found / max(float(found.sum()), 1e-300)
    return shares


def named(
    part: Part, rows: NDArray[np.float64], rejected: NDArray[np.bool_], numbers: NDArray[np.int64], curve: MotionCurve
) -> NDArray[np.float64]:
    """The probabilities (A,) of a part: the normalised geometric mean over its windows. The share of rejected windows is taken off.

    Args:
        part: At most ``LONG`` windows long.
        rows: (n, A) probabilities of windows.
        rejected: (n,) whether a window is unlike the training.
        numbers: (n,) of the windows.
        curve: The motion of all of them.
    """
    return joint(rows, weights(part, numbers, curve) * ~rejected)


def windows_of(part: Part, count: int, grid: Grid) -> NDArray[np.int64]:
    """The numbers of the windows that hold some of a part, of ``count`` windows."""
    first = max(0, math.floor((part.start - grid.clip) / grid.hop) + 1)
    return np.arange(first, min(count, math.ceil(part.end / grid.hop - 1e-9)))


def reaching(part: Part, curve: MotionCurve, end: float) -> Part:
    """A part of a video of ``end`` seconds. One that still moves when the last window ends goes on to the video's end."""
    last = curve.known + REACH * STEP
    return part._replace(end=end if part.end >= last - STEP / 2 else min(part.end, end))


def segment_of(part: Part, probabilities: NDArray[np.float64], classes: Sequence[str], least: float) -> list[Segment]:
    """The segment of a part with the probabilities (A,), or none if no action is as likely as ``least``."""
    best = int(probabilities.argmax())
    score = float(probabilities[best])
    return [Segment(classes[best], part.start, part.end, score)] if score >= least else []


def clipped(segments: Sequence[Segment], start: float, part: Part, shortest: float) -> list[Segment]:
    """Segments that begin at ``start``, as far as they lie in a part, but for those that are then too short."""
    shifted = (one._replace(start=max(start + one.start, part.start), end=min(start + one.end, part.end)) for one in segments)
    return [one for one in shifted if one.end - one.start > max(0.0, shortest - STEP)]


def rest_below(motions: Sequence[NDArray[np.float64]]) -> float | None:
    """The motion that parts rest from movement best, in the units of the motions: the threshold of
    Otsu (1979) of their logarithms, which lies halfway between the means of two groups.

    Args:
        motions: (N,) of some training clips each, in their order of time.

    Returns:
        None if nothing moves at all.
    """
    from sklearn.cluster import KMeans

    means = [np.convolve(one, np.full(3, 1 / 3), "valid") for one in motions if len(one) >= 3]
    values = np.concatenate([np.zeros(0), *means])
    values = np.log(values[values > 0])
    if len(np.unique(values)) < 2:
        return None
    ends = np.quantile(values, [0.02, 0.98])[:, None]
    centres = KMeans(2, init=ends, n_init=1).fit(values[:, None]).cluster_centers_
    return float(np.exp(centres.mean()))
