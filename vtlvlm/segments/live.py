"""Segments of a stream, told as soon as they are known. A file that is decided by hysteresis is read as a stream."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.segments.motion import LONG, MotionCurve, Part, clipped, named, reaching, segment_of, windows_of
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.steps import number_of_steps, reach_of, some_steps
from vtlvlm.segments.timeline import NONE, Segment, runs
from vtlvlm.segments.windows import Grid

KEPT = 2 * LONG + 2
"""Windows' lengths for which what was said of windows is kept: a part that moves, and the windows at its ends"""


class Reading(NamedTuple):
    """What a model says of a window."""

    probabilities: NDArray[np.float64]
    """(A,)"""
    rejected: bool
    motion: NDArray[np.float64] | None
    """(N, 2) seconds from the window's start and motion; None from a model that does not know when it moves"""


class Began(NamedTuple):
    """An action that began. It may turn out to be too short for a segment, or to be another one."""

    label: str
    start: float
    """seconds from the start of the stream"""


class Live:
    """Decides a stream window by window. Its memory does not grow, but for A numbers of 8 bytes a step while one action goes on.

    A step of ``hop`` seconds is decided when the last window that covers it is known, ``clip`` seconds after the step's start. A segment is
    told once nothing can join or change it any more: ``rule.gap`` and a window after its end, or a window and a hop. Where the model says
    what moves, a segment is a part that moves; a part of more than ``LONG`` windows is decided by its steps, while it goes on.

    Args:
        classes: The A names.
        grid: The windows.
        rule: From probabilities to segments; it decides by hysteresis, whatever its ``decide`` says.
        start: Seconds of the first window from the start of the stream.
    """

    def __init__(self, classes: list[str], grid: Grid, rule: Rule, start: float = 0.0) -> None:
        self.classes, self.grid, self.rule, self.start = classes, grid, rule, start
        self.decide = rule.hysteresis()
        self.kept = math.ceil((KEPT * grid.clip + rule.gap) / grid.hop) + 2
        self.rows: deque[NDArray[np.float64]] = deque()
        self.rejected: deque[bool] = deque()
        self.number = 0
        self.first = 0  # the first step of those below, which are not told yet
        self.labels: list[int] = []
        self.scores: list[NDArray[np.float64]] = []
        self.told = NONE
        self.curve: MotionCurve | None = None
        self.done = 0.0  # seconds of the first window's start to which everything is told
        self.begun: float | None = None  # where a part began that is decided by its steps

    def window(self, reading: Reading, number: int | None = None) -> list[Began | Segment]:
        """What is known after one more window.

        Args:
            reading: What the model says of it.
            number: Of the window; None for the next one. Windows between it and the one before were not read: each counts as the nearer
                one of the two.
        """
        last = self.number if number is None else number
        if reading.motion is not None and self.rule.motion:
            self.curve = self.curve or MotionCurve(self.grid)
            self.curve.add(last, reading.motion)
        found: list[Began | Segment] = []
        middle, before = (self.number - 1 + last) / 2, (self.rows[-1], self.rejected[-1]) if self.rows else None
        for one in range(self.number, last + 1):
            row, rejected = before if before is not None and one < middle else (reading.probabilities, reading.rejected)
            self.rows.append(row)
            self.rejected.append(rejected)
            self.number += 1
            found += self._step(one)
        found += self._told(None)
        while len(self.rows) > self.kept:
            self.rows.popleft()
            self.rejected.popleft()
        return found

    def end(self, seconds: float) -> list[Began | Segment]:
        """What is known at the end of the stream.

        Args:
            seconds: Length of the stream from ``start``, at least one window.
        """
        found: list[Began | Segment] = []
        if self.number:
            for step in range(self.number, number_of_steps(self.grid, seconds)):
                found += self._step(step)
        return [*found, *self._told(seconds)]

    def _step(self, step: int) -> list[Began | Segment]:
        """Decide a step from the windows so far."""
        count = min(len(self.rows), reach_of(self.grid) + 1)
        rows, rejected = np.stack(list(self.rows)[-count:]), np.array(list(self.rejected)[-count:])
        row = some_steps(rows, rejected, self.number - count, np.array([step]), self.number, self.grid)[0]
        moves = self.curve is None or self.curve.moves(step * self.grid.hop, (step + 1) * self.grid.hop)
        label = self.decide(row if moves else np.zeros_like(row))
        self.labels.append(label)
        self.scores.append(row)
        before, self.told = self.told, label
        if label in (NONE, before):
            return []
        return [Began(self.classes[label], self.start + step * self.grid.hop)]

    def _told(self, end: float | None) -> list[Segment]:
        """The segments that are settled; all, if the stream has ended after ``end`` seconds."""
        if self.curve is None:
            return self._shifted(self._settled(end is not None, Part(0.0, math.inf if end is None else end, 0.0)))
        found: list[Segment] = []
        over, waiting = self.curve.parts(self.rule.gap, end is not None)
        for part in over:
            if part.end <= self.done:
                continue
            if end is None and (self.number - 1) * self.grid.hop < part.end:  # not all is known of the windows that hold some of it
                waiting = part
                break
            found += self._of_part(part if end is None else reaching(part, self.curve, end))
        else:
            if waiting is not None and (self.begun is not None or waiting.end - waiting.start > LONG * self.grid.clip):
                found += self._settled(False, self._begin(waiting)._replace(end=math.inf))
        if self.begun is None:
            self._drop_steps(int((self.curve.known if waiting is None else waiting.start) / self.grid.hop))
        recent = self.curve.known - 2 * self.rule.gap - self.grid.clip
        self.curve.forget((recent if self.begun is not None or waiting is None else min(recent, waiting.start)) - self.grid.clip)
        return self._shifted(found)

    def _of_part(self, part: Part) -> list[Segment]:
        """The segments of a part that is over."""
        assert self.curve is not None
        found: list[Segment] = []
        if self.begun is not None or part.end - part.start > LONG * self.grid.clip:
            whole = self._begin(part)
            later = self._take_steps(math.ceil(part.end / self.grid.hop - 1e-9))
            found = self._settled(True, whole)
            self.labels, self.scores = later
        elif part.moving >= self.rule.shortest:
            numbers = windows_of(part, self.number, self.grid)
            places = numbers - (self.number - len(self.rows))
            rows, rejected = np.stack(self.rows)[places], np.array(self.rejected)[places]
            found = segment_of(part, named(part, rows, rejected, numbers, self.curve), self.classes, self.rule.least)
        self.done, self.begun = part.end, None
        return found

    def _begin(self, part: Part) -> Part:
        """Decide a part by its steps from now on. Returns it with its true start."""
        if self.begun is None:
            self.begun = part.start
            self._drop_steps(int(part.start / self.grid.hop))
        return part._replace(start=self.begun)

    def _drop_steps(self, before: int) -> None:
        """Forget the steps before a number."""
        old = min(len(self.labels), max(0, before - self.first))
        self.first += old
        del self.labels[:old], self.scores[:old]

    def _take_steps(self, end: int) -> tuple[list[int], list[NDArray[np.float64]]]:
        """Keep the steps before a number, and return the later ones."""
        count = max(0, end - self.first)
        later = self.labels[count:], self.scores[count:]
        del self.labels[count:], self.scores[count:]
        return later

    def _shifted(self, segments: list[Segment]) -> list[Segment]:
        return [one._replace(start=self.start + one.start, end=self.start + one.end) for one in segments]

    def _settled(self, final: bool, part: Part) -> list[Segment]:
        """The segments of the steps that nothing can join or change any more, as far as they lie in a part; forgets these steps."""
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
        settled = self.rule.tidied(labels[:keep], self.grid.hop)
        found = []
        for label, start, end in runs(settled):
            if label != NONE:
                score = float(np.stack(self.scores[start:end])[:, label].mean())
                found.append(Segment(self.classes[label], start * self.grid.hop, end * self.grid.hop, score))
        first = self.first * self.grid.hop
        self.first += keep
        del self.labels[:keep], self.scores[:keep]
        return clipped(found, first, part, 0.0 if self.curve is None else self.rule.shortest)
