"""Segments of a video, and labels on a grid of equal steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NONE = -1
"""The label of a step in which nothing of the list happens"""


class Segment(NamedTuple):
    """An action in a part of a video."""

    label: str
    start: float
    """seconds from the start of the video"""
    end: float
    """seconds, after ``start``"""
    score: float = 1.0
    """confidence in [0, 1]; 1 for the truth"""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


def runs(steps: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(label, first step, step after the last) of each run of equal labels (T,)."""
    if not len(steps):
        return []
    borders = np.flatnonzero(np.diff(steps)) + 1
    starts, ends = [0, *borders.tolist()], [*borders.tolist(), len(steps)]
    return [(int(steps[start]), start, end) for start, end in zip(starts, ends, strict=True)]


def to_segments(steps: NDArray[np.int64], classes: Sequence[str], step: float, scores: NDArray[np.float64] | None = None) -> list[Segment]:
    """Labels of steps as segments. Steps without an action make none.

    Args:
        steps: (T,) labels in [0, A), or ``NONE``.
        classes: The A names.
        step: Seconds of a step; the first begins at 0.
        scores: (T, A) in [0, 1]; a segment's score is the mean of its label's over its steps. None for 1.
    """
    found = []
    for label, start, end in runs(steps):
        if label != NONE:
            score = 1.0 if scores is None else float(scores[start:end, label].mean())
            found.append(Segment(classes[label], start * step, end * step, score))
    return found


def to_steps(segments: Sequence[Segment], classes: Sequence[str], step: float, length: float) -> NDArray[np.int64]:
    """Segments as labels of steps (T,): the label at the middle of each step; where segments overlap, that of the later one in the list.

    Args:
        segments: Of one video. Those of other actions than ``classes`` count as none.
        classes: The names.
        step: Seconds of a step.
        length: Seconds of the video.
    """
    number = {name: place for place, name in enumerate(classes)}
    middles = (np.arange(max(0, math.ceil(length / step - 1e-9))) + 0.5) * step
    found = np.full(len(middles), NONE, dtype=np.int64)
    for one in segments:
        if one.label in number:
            found[(middles >= one.start) & (middles < one.end)] = number[one.label]
    return found
