"""A stream is decided as its steps are by themselves: the same probabilities to the bit, the same segments, each told once and in order."""

from itertools import pairwise

import numpy as np
import pytest

from vtlvlm.segments.live import Began, Live, Reading
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.steps import of_steps
from vtlvlm.segments.timeline import Segment, to_segments
from vtlvlm.segments.windows import Grid

CLASSES = ["wave", "jump", "fall"]


def rows(seed: int, count: int) -> np.ndarray:
    """Probabilities that stay for a while, with noise."""
    generator = np.random.default_rng(seed)
    level = np.repeat(generator.normal(size=(count // 5 + 1, 3)), 5, axis=0)[:count] * 2.5
    exponentials = np.exp(level + generator.normal(size=(count, 3)))
    return exponentials / exponentials.sum(1, keepdims=True)


def told(live: Live, values: np.ndarray, rejected: np.ndarray, end: float) -> list[Began | Segment]:
    found = []
    for row, one in zip(values, rejected, strict=True):
        found += live.window(Reading(row, bool(one), None))
    return [*found, *live.end(end)]


@pytest.mark.parametrize("seed", range(40))
def test_a_stream_is_decided_as_its_steps_are(seed: int) -> None:
    generator = np.random.default_rng([1, seed])
    grid = Grid(3.0, float(generator.choice([0.5, 0.75, 1.0, 3.0])))
    rule = Rule(
        least=0.5, shortest=float(generator.choice([0.0, 1.0, 2.0])), gap=float(generator.choice([0.0, 0.8, 2.5])), decide="hysteresis"
    )
    values = rows(seed, 60)
    rejected = generator.random(60) < 0.1
    end = 59 * grid.hop + 3.0 + float(generator.uniform(0, grid.hop))
    steps, decide = of_steps(values, grid, end, rejected), rule.hysteresis()
    labels = rule.tidied(np.array([decide(row) for row in steps]), grid.hop)
    whole = [one._replace(end=min(one.end, end)) for one in to_segments(labels, CLASSES, grid.hop, steps)]
    found = [one for one in told(Live(CLASSES, grid, rule), values, rejected, end) if isinstance(one, Segment)]
    assert [one[:3] for one in found] == [one[:3] for one in whole]
    assert [one.score for one in found] == pytest.approx([one.score for one in whole], abs=1e-12)


def test_steps_are_those_of_the_whole_video_to_the_bit() -> None:
    grid, values = Grid(3.0, 0.7), rows(3, 50)
    live, seen = Live(CLASSES, grid, Rule()), []
    live.decide = lambda row: seen.append(row) or 0  # type: ignore[assignment, func-returns-value]
    told(live, values, np.zeros(50, dtype=bool), 49 * 0.7 + 3.2)
    assert np.array_equal(np.array(seen), of_steps(values, grid, 49 * 0.7 + 3.2))


def test_segments_are_told_when_they_are_settled_and_memory_stays() -> None:
    """Ten hours of an action every 20 seconds: told within the gap and the window after its end."""
    grid, rule = Grid(3.0, 1.0), Rule(gap=2.0)
    live, sure, none = Live(CLASSES, grid, rule), np.array([0.98, 0.01, 0.01]), np.array([0.28, 0.36, 0.36])
    segments, began, most = [], 0, 0
    for number in range(36_000):
        for one in live.window(Reading(sure if number % 20 < 6 else none, False, None)):
            began += isinstance(one, Began)
            if isinstance(one, Segment):
                segments.append(one)
                assert number + 3.0 - one.end <= 3.0 + 2.0 + 1.0
        most = max(most, len(live.labels))
    assert len(segments) == began == 1800
    assert most < 30
    assert all(before.end < after.start for before, after in pairwise(segments))


def test_a_stream_that_goes_on_has_the_times_of_its_start() -> None:
    grid, rule = Grid(2.0, 0.5), Rule()
    values, rejected = rows(5, 30), np.zeros(30, dtype=bool)
    one = told(Live(CLASSES, grid, rule), values, rejected, 17.0)
    later = told(Live(CLASSES, grid, rule, start=100.0), values, rejected, 17.0)
    assert [(part.label, part.start + 100) for part in one] == [(part.label, part.start) for part in later]
    assert one


def test_an_empty_stream_has_no_segments() -> None:
    assert Live(CLASSES, Grid(2.0, 0.5), Rule()).end(1.0) == []


def test_a_window_that_was_not_read_counts_as_the_nearer_one_of_its_neighbours() -> None:
    """Windows 0, 1, 4, 8 of nine: 2 is nearer to 1, 3 to 4, 5 to 4, and 6, as far from both, to the later one, like 7."""
    grid, rule, values = Grid(3.0, 0.75), Rule(gap=0.5), rows(7, 9)
    rejected = np.array([False, True, False, False, True, False, False, False, False])
    few, whole = Live(CLASSES, grid, rule), Live(CLASSES, grid, rule)
    found = [one for n in (0, 1, 4, 8) for one in few.window(Reading(values[n], bool(rejected[n]), None), n)]
    nearer = [0, 1, 1, 4, 4, 4, 8, 8, 8]
    assert [*found, *few.end(9.2)] == told(whole, values[nearer], rejected[nearer], 9.2)


@pytest.mark.parametrize("jump", [4, 20, 40, 200])
def test_a_part_has_its_name_however_many_windows_are_left_out(jump: int) -> None:
    """Windows of one second every 0.25 s: rest, a movement from 2 to 3 s, rest; then the model is away."""
    live = Live(CLASSES, Grid(1.0, 0.25), Rule())
    times = np.linspace(0.0, 1.0, 21)
    found = []
    for number in [*range(20), 19 + jump]:
        start = number * 0.25
        share = max(0.0, 1 - abs(start - 2.0))  # of the movement in the window
        moves = np.where((start + times > 2) & (start + times < 3), 3.0, 0.1)
        row = np.array([0.9 * share, 0.05, 1 - 0.05 - 0.9 * share])
        found += live.window(Reading(row, False, np.stack([times, moves], axis=1)), number)
    found += live.end((19 + jump) * 0.25 + 1)
    (segment,) = (one for one in found if isinstance(one, Segment))
    assert segment.label == "wave"
    assert (segment.start, segment.end) == pytest.approx((2, 3), abs=0.2)
    assert len(live.rows) == live.kept


def test_motion_of_times_in_skipped_windows() -> None:
    """Windows of one second, every 0.25 s; motion is the time in seconds. A window that is read holds the times of skipped ones before it;
    times that none holds, here from 2 to 5 s, are as the nearer edge: the mean of three samples 0.1 s apart.
    """
    live = Live(CLASSES, Grid(1.0, 0.25), Rule())
    times = np.linspace(0.0, 1.0, 11)
    for number in (0, 1, 4, 20):
        start = number * 0.25
        live.window(Reading(np.full(3, 1 / 3), False, np.stack([times, start + times], axis=1)), number)
    assert live.number == 21
    assert live.curve is not None
    middles = (np.arange(120) + 0.5) * 0.05
    expected = np.where((middles < 2) | (middles > 5), middles, np.where(middles < 3.5, 1.9, 5.1))
    assert live.curve.recent == pytest.approx(expected)
