"""From the probabilities of steps to labels: the best path through a whole video, and a rule with two thresholds for a live stream."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError
from vtlvlm.segments.timeline import NONE, runs


def best_path(scores: NDArray[np.float64], switch: float) -> NDArray[np.int64]:
    """The labels with the highest sum of scores, less a price for each change (Viterbi 1967).

    Args:
        scores: (T, L) log-probabilities of L labels in each step; -inf forbids one.
        switch: The price of a change, in nats, at least 0.

    Returns:
        (T,) int64 in [0, L). Of equal paths, the one that changes later and takes the smaller label.

    Raises:
        UsageError: ``switch`` is below 0 or not a number.
    """
    if not switch >= 0:
        raise UsageError(f"switch={switch}: the price of a change is at least 0")
    steps, labels = scores.shape
    if not steps:
        return np.zeros(0, dtype=np.int64)
    best = scores[0].astype(np.float64)
    came = np.empty((steps, labels), dtype=np.int64)
    own = np.arange(labels)
    for step in range(1, steps):  # a path is a sequence: each step needs the one before
        top = int(best.argmax())
        stays = best >= best[top] - switch
        came[step] = np.where(stays, own, top)
        best = np.where(stays, best, best[top] - switch) + scores[step]
    path = np.empty(steps, dtype=np.int64)
    path[-1] = int(best.argmax())
    for step in range(steps - 1, 0, -1):
        path[step - 1] = came[step, path[step]]
    return path


@dataclass
class Hysteresis:
    """Decides step by step, with what is known so far. An action begins after enough steps at or above ``on``, and ends at the first step
    below ``off``, or when another one begins.

    Attributes:
        on: Probability from which an action may begin, in (0, 1].
        off: Probability below which it ends, at most ``on``.
        steps: Steps in a row at or above ``on`` before it begins.

    Raises:
        UsageError: A number is out of range.
    """

    on: float = 0.5
    off: float = 0.3
    steps: int = 2
    _label: int = field(default=NONE, init=False)
    _candidate: int = field(default=NONE, init=False)
    _count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.on <= 1 or not 0 <= self.off <= self.on or self.steps < 1:
            raise UsageError(f"on={self.on}, off={self.off}, steps={self.steps}: on in (0, 1], off from 0 to on, steps from 1")

    def __call__(self, probabilities: NDArray[np.float64]) -> int:
        """The label of the next step: its number, or ``NONE``.

        Args:
            probabilities: (A,) of the actions in this step.
        """
        top = int(probabilities.argmax())
        if top != self._candidate or probabilities[top] < self.on:
            self._candidate, self._count = top, 0
        self._count += bool(probabilities[top] >= self.on)
        if top != self._label and self._count >= self.steps:
            self._label = top
        elif self._label != NONE and probabilities[self._label] < self.off:
            self._label = NONE
        return self._label

    def forget(self) -> None:
        """Begin anew, as after a gap in a stream."""
        self._label, self._candidate, self._count = NONE, NONE, 0


def tidied(steps: NDArray[np.int64], shortest: int, gap: int) -> NDArray[np.int64]:
    """Labels without short gaps and short segments.

    Gaps are closed first: up to ``gap`` steps without an action between two segments of the same one. Then segments of fewer than
    ``shortest`` steps become none.

    Args:
        steps: (T,) labels, or ``NONE``.
        shortest: Steps.
        gap: Steps.
    """
    found = steps.copy()
    parts = runs(found)
    for before, here, after in zip(parts, parts[1:], parts[2:], strict=False):
        if here[0] == NONE and before[0] == after[0] and here[2] - here[1] <= gap:
            found[here[1] : here[2]] = before[0]
    for label, start, end in runs(found):
        if label != NONE and end - start < shortest:
            found[start:end] = NONE
    return found
