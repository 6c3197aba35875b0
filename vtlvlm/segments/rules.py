"""The rule by which probabilities over time become segments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError
from vtlvlm.segments.deciding import Hysteresis, tidied

MODES = ("path", "windows", "hysteresis")
BELOW = 0.2
"""An action ends this far below the probability with which it begins, with hysteresis"""


@dataclass(frozen=True)
class Rule:
    """From probabilities to segments.

    Attributes:
        least: An action needs at least this probability to be likelier than none, in (0, 1).
        switch: Price of a change of label, in nats.
        shortest: Seconds; shorter segments are left out, and parts that move for less.
        gap: Seconds; shorter gaps within one action are closed, and shorter lulls within a part that moves.
        decide: ``path`` takes the best path through the video, or through a part that moves for long. ``windows`` takes the best label of
            each step by itself. ``hysteresis`` goes step by step, with what is known so far: an action begins after two steps at ``least``,
            and ends at the first step 0.2 below it.
        motion: Where the model says what moves, cut the video into parts that move, and name each (``motion.py``); with ``path`` and
            ``hysteresis``. A part of over one and a half windows is decided step by step.

    Raises:
        UsageError: A number is out of range.
    """

    least: float = 0.5
    switch: float = 1.0
    shortest: float = 0.5
    gap: float = 0.5
    decide: str = "path"
    motion: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.least < 1 or not self.switch >= 0 or not min(self.shortest, self.gap) >= 0:
            raise UsageError(
                f"least={self.least}, switch={self.switch}, shortest={self.shortest}, gap={self.gap}: least in (0, 1), others from 0"
            )
        if self.decide not in MODES:
            raise UsageError(f"decide={self.decide!r}: use one of {', '.join(MODES)}")

    def hysteresis(self) -> Hysteresis:
        """The decision step by step."""
        return Hysteresis(self.least, max(0.0, self.least - BELOW))

    def tidied(self, labels: NDArray[np.int64], hop: float) -> NDArray[np.int64]:
        """Labels (T,) of steps of ``hop`` seconds without short gaps and short segments."""
        return tidied(labels, round(self.shortest / hop), round(self.gap / hop))
