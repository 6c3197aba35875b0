"""Segments of a stream, told as soon as they are known. On the same windows they are those of a file that is decided by hysteresis."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.segments.finding import Reading, Rule, number_of_steps, reach_of, some_steps
from vtlvlm.segments.timeline import NONE, Segment, runs
from vtlvlm.segments.trimming import Parts, reaching, trimmed
from vtlvlm.segments.windows import Grid


class Began(NamedTuple):
    """An action that began. It may turn out to be too short for a segment."""

    label: str
    start: float
    """seconds from the start of the stream"""


class Live:
    """Decides a stream window by window. Its memory does not grow, but for a number of 8 bytes a step while one action goes on.

    A step of ``hop`` seconds is decided when the last window that covers it is known, ``clip`` seconds after the step's start. A segment is
    told once nothing can join it any more: after ``rule.gap`` seconds of something else.

    Args:
        classes: The A names.
        grid: The windows.
        rule: From probabilities to segments; it decides by hysteresis, whatever its ``decide`` says.
        start: Seconds of the first window from the start of the stream.
    """

    def __init__(self, classes: list[str], grid: Grid, rule: Rule, start: float = 0.0) -> None:
        self.classes, self.grid, self.rule, self.start = classes, grid, rule, start
        self.decide = rule.hysteresis()
        self.rows: deque[NDArray[np.float64]] = deque(maxlen=reach_of(grid) + 1)
        self.rejected: deque[bool] = deque(maxlen=reach_of(grid) + 1)
        self.parts: deque[Parts] = deque()
        self.number = 0
        self.first = 0  # the first step of those below, which are not told yet
        self.labels: list[int] = []
        self.scores: list[NDArray[np.float64]] = []
        self.told = NONE

    def window(self, reading: Reading) -> list[Began | Segment]:
        """What is known after one more window."""
        self.rows.append(reading.probabilities)
        self.rejected.append(reading.rejected)
        if reading.spans is not None:
            self.parts.append(Parts(self.start + self.number * self.grid.hop, reading.spans))
        self.number += 1
        return [*self._step(self.number - 1), *self._ready(final=False)]

    def end(self, seconds: float) -> list[Began | Segment]:
        """What is known at the end of the stream.

        Args:
            seconds: Length of the stream from ``start``, at least one window.
        """
        found: list[Began | Segment] = []
        if self.number:
            for step in range(self.number, number_of_steps(self.grid, seconds)):
                found += self._step(step)
        return [*found, *self._ready(final=True, limit=self.start + seconds)]

    def _step(self, step: int) -> list[Began | Segment]:
        """Decide a step from the windows so far."""
        rows = np.stack(self.rows)
        row = some_steps(rows, np.array(self.rejected), self.number - len(rows), np.array([step]), self.number, self.grid)[0]
        label = self.decide(row)
        self.labels.append(label)
        self.scores.append(row)
        before, self.told = self.told, label
        if label in (NONE, before):
            return []
        return [Began(self.classes[label], self.start + step * self.grid.hop)]

    def _ready(self, final: bool, limit: float = math.inf) -> list[Began | Segment]:
        """The segments that nothing can join or change any more, none of which goes on after ``limit``; forgets their steps."""
        labels = np.array(self.labels, dtype=np.int64)
        parts, gap = runs(labels), round(self.rule.gap / self.grid.hop)
        keep = 0 if not final else len(labels)
        if not final:
            for place, (label, start, end) in enumerate(parts):
                last = place == len(parts) - 1
                if label == NONE and (end - start > gap or (not last and place and parts[place - 1][0] != parts[place + 1][0])):
                    keep = end  # no gap that closes: what came before is settled
                elif label != NONE and place and parts[place - 1][0] not in (NONE, label):
                    keep = start  # one action right after another
        if not keep:
            return []
        settled = self.rule.tidied(labels[:keep], self.grid.hop)
        found: list[Began | Segment] = []
        for label, start, end in runs(settled):
            if label != NONE:
                score = float(np.stack(self.scores[start:end])[:, label].mean())
                begins, ends = ((self.first + step) * self.grid.hop for step in (start, end))
                whole = Segment(self.classes[label], self.start + begins, min(self.start + ends, limit), score)
                found.append(trimmed(whole, reaching(self.parts, whole, self.grid.clip)) if self.rule.trim and self.parts else whole)
        self.first += keep
        while self.parts and self.parts[0].start + self.grid.clip <= self.start + self.first * self.grid.hop:
            self.parts.popleft()
        del self.labels[:keep], self.scores[:keep]
        return found
