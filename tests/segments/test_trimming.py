"""Where event sentences say that something moves, by hand; a stream trims as a file."""

import numpy as np
import pytest

from vtlvlm.segments.finding import Reading, Rule, decided
from vtlvlm.segments.live import Live
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.trimming import Parts, movement, reaching, trimmed
from vtlvlm.segments.windows import Grid


def parts(start: float, *edges: float) -> Parts:
    return Parts(start, np.stack([edges[:-1], edges[1:]], axis=1))


def test_movement_by_hand() -> None:
    """Four parts of 4 seconds: even ones would last 1 second. One lasts 2, two 0.5, one 1."""
    times = np.array([0.5, 2.2, 2.7, 3.5, 4.5])
    assert movement([parts(0.0, 0, 2, 2.5, 3, 4)], times) == pytest.approx([0.5, 2.0, 2.0, 1.0, np.nan], nan_ok=True)
    both = movement([parts(0.0, 0, 2, 2.5, 3, 4), parts(2.0, 0, 1, 2, 3, 4)], times)
    assert both == pytest.approx([0.5, 1.5, 1.5, 1.0, 1.0])
    assert movement([parts(0.0, 0, 0, 4)], np.array([1.0])) == pytest.approx([0.5])  # a part without length


def test_a_segment_is_cut_to_its_movement() -> None:
    window = parts(0.0, 0, 2, 2.5, 3, 4.5)  # even: 1.125 s
    found = trimmed(Segment("wave", 1.0, 4.5, 0.9), [window])
    assert (found.label, found.score) == ("wave", 0.9)
    assert found.start == pytest.approx(2.0)
    assert found.end == pytest.approx(3.0)
    still = Segment("wave", 0.0, 1.0)
    assert trimmed(still, [window]) == still
    assert trimmed(still, []) == still


def test_only_windows_that_reach_a_segment_count() -> None:
    windows = [parts(float(start), 0, 1, 2) for start in range(10)]
    found = reaching(windows, Segment("wave", 4.5, 6.0), 2.0)
    assert [one.start for one in found] == [3.0, 4.0, 5.0]


def of_two_actions(count: int) -> list[Reading]:
    """Windows of 3 seconds, one a second, of two actions with rest between them; the parts are drawn."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        probabilities = np.array([0.97, 0.01, 0.02]) if 5 <= number % 20 < 12 else np.array([0.25, 0.37, 0.38])
        edges = np.concatenate([[0.0], np.sort(generator.uniform(0, 3, 7)), [3.0]])
        found.append(Reading(probabilities, False, np.stack([edges[:-1], edges[1:]], axis=1)))
    return found


def test_a_stream_is_trimmed_as_a_file() -> None:
    grid, rule, classes = Grid(3.0, 1.0), Rule(decide="hysteresis"), ["a", "b", "c"]
    readings = of_two_actions(60)
    windows = [Parts(number * 1.0, one.spans) for number, one in enumerate(readings) if one.spans is not None]
    rows = np.stack([one.probabilities for one in readings])
    whole = decided(rows, classes, grid, 62.0, rule, None, windows)
    live = Live(classes, grid, rule)
    told = [part for one in readings for part in live.window(one)] + live.end(62.0)
    assert [one for one in told if isinstance(one, Segment)] == [one._replace(score=pytest.approx(one.score)) for one in whole.segments]
    untrimmed = decided(rows, classes, grid, 62.0, Rule(decide="hysteresis", trim=False), None, windows)
    assert len(untrimmed.segments) == len(whole.segments) == 3
    for one, other in zip(whole.segments, untrimmed.segments, strict=True):
        assert other.start <= one.start < one.end <= other.end
    assert sum(one.seconds for one in whole.segments) < sum(one.seconds for one in untrimmed.segments)
    assert len(live.parts) < 10
