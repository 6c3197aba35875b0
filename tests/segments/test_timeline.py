"""Segments and steps say the same."""

import numpy as np
import pytest

from vtlvlm.segments.timeline import NONE, Segment, runs, to_segments, to_steps

CLASSES = ("run", "sit")


def test_steps_become_segments() -> None:
    steps, scores = np.array([NONE, 0, 0, 1, NONE]), np.array([[0, 0], [0.5, 0], [1, 0], [0, 0.25], [0, 0.0]])
    assert to_segments(steps, CLASSES, 0.5, scores) == [Segment("run", 0.5, 1.5, 0.75), Segment("sit", 1.5, 2.0, 0.25)]
    assert to_segments(np.zeros(0, np.int64), CLASSES, 0.5) == []
    assert runs(np.array([3, 3, NONE])) == [(3, 0, 2), (NONE, 2, 3)]


def test_segments_become_steps_and_back() -> None:
    segments = [Segment("run", 0.5, 1.5), Segment("dance", 0, 9), Segment("sit", 2.0, 2.6)]
    steps = to_steps(segments, CLASSES, 0.5, 3.1)
    assert steps.tolist() == [NONE, 0, 0, NONE, 1, NONE, NONE]  # the middle of step 5, 2.75 s, lies after 2.6
    again = to_segments(steps, CLASSES, 0.5)
    assert again == [Segment("run", 0.5, 1.5), Segment("sit", 2.0, 2.5)]
    assert to_steps([], CLASSES, 0.5, 0).tolist() == []
    assert Segment("run", 1, 3).seconds == pytest.approx(2)
