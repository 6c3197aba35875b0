"""Parts that move, by hand and by loops; a stream finds the parts that a file has."""

from itertools import pairwise

import numpy as np
import pytest

from vtlvlm.segments.finding import decided
from vtlvlm.segments.live import Began, Live, Reading
from vtlvlm.segments.motion import STEP, MotionCurve, Part, clipped, named, reaching, rest_below, segment_of, weights, windows_of
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.timeline import Segment
from vtlvlm.segments.windows import Grid

CLASSES = ["wave", "jump"]


def motion_of(moves: list[tuple[float, float]], start: float, clip: float, high: float = 2.0) -> np.ndarray:
    """The motion of a window: ``high`` within the spans of the video, and 0.5 elsewhere; known every tenth of a second."""
    times = np.arange(0.05, clip, 0.1)
    at = times + start
    value = np.full(len(at), 0.5)
    for begin, end in moves:
        value[(at >= begin) & (at < end)] = high
    return np.stack([times, value], axis=1)


def curve_of(moves: list[tuple[float, float]], count: int, grid: Grid) -> MotionCurve:
    curve = MotionCurve(grid)
    for number in range(count):
        curve.add(number, motion_of(moves, number * grid.hop, grid.clip))
    return curve


def test_each_time_has_the_motion_of_the_first_window_that_holds_it() -> None:
    curve = MotionCurve(Grid(1.0, 0.5))
    curve.add(0, np.array([[0.0, 1.0], [1.0, 3.0]]))
    curve.add(1, np.array([[0.0, 100.0], [1.0, 100.0]]))
    assert len(curve.values) == 30
    assert curve.values[:20] == pytest.approx((1 + 2 * (np.arange(20) + 0.5) * STEP) / 1.6)  # the most noise
    assert (curve.values[20:] == 100 / 1.6).all()
    level = curve.smoothed()
    assert level[0] == pytest.approx(curve.values[:4].mean())  # at the ends over what is there
    assert level[10] == pytest.approx(curve.values[7:14].mean())


@pytest.mark.parametrize(("rest", "noise"), [(0.6, 1.0), (0.75, 1.25), (0.1, 0.75), (3.0, 1.6)])
def test_motion_is_divided_by_the_noise_of_the_scene(rest: float, noise: float) -> None:
    """The lowest quarter of the last minute is taken to be rest: 0.6 has a noise of 1."""
    curve = MotionCurve(Grid(10.0, 10.0))
    times = np.arange(0.05, 10.0, 0.1)
    for number in range(8):
        level = np.where(times < 4, rest, 5.0) if number else np.full(len(times), 30.0)  # the first ten seconds are forgotten
        curve.add(number, np.stack([times, level], axis=1))
    assert curve.values[-20:] == pytest.approx(5.0 / noise, rel=1e-3)
    assert len(curve.recent) == 60 / STEP


def test_parts_by_hand() -> None:
    grid = Grid(2.0, 0.5)
    curve = curve_of([(2.0, 4.0), (4.45, 5.0), (7.0, 7.6), (9.5, 20.0)], 17, grid)  # known up to 10
    parts, going = curve.parts(0.5)
    assert going is None
    assert [(part.start, part.end) for part in parts] == [
        (pytest.approx(2.0, abs=0.2), pytest.approx(5.0, abs=0.2)),  # the lull of 0.45 s does not count
        (pytest.approx(7.0, abs=0.2), pytest.approx(7.6, abs=0.2)),
        (pytest.approx(9.5, abs=0.2), pytest.approx(10.0)),
    ]
    assert parts[0].moving == pytest.approx(2.9, abs=0.3)
    assert reaching(parts[2], curve, 10.4).end == 10.4
    assert reaching(parts[1], curve, 10.4) == parts[1]
    parts, going = curve.parts(0.5, ended=False)
    assert len(parts) == 2
    assert going is not None
    assert going.start == pytest.approx(9.5, abs=0.2)
    assert [len(one) for one in (curve.parts(0.0)[0], MotionCurve(grid).parts(0.5)[0])] == [4, 0]


def test_what_is_forgotten_changes_nothing_later() -> None:
    grid = Grid(2.0, 0.5)
    whole, part = curve_of([(2.0, 4.0), (7.0, 7.6)], 17, grid), curve_of([(2.0, 4.0), (7.0, 7.6)], 17, grid)
    part.forget(6.0)
    assert part.parts(0.5)[0] == whole.parts(0.5)[0][1:]
    assert len(part.values) < 90
    one, other = (curve.excess(np.array([6.5]), np.array([8.0])) for curve in (whole, part))
    assert one == pytest.approx(other)
    assert part.moves(7.0, 7.5)
    assert not part.moves(8.5, 9.0)
    assert part.moves(50.0, 51.0)  # nothing is known there


def test_weights_by_loops() -> None:
    grid = Grid(2.0, 0.5)
    curve = curve_of([(3.0, 4.0), (5.2, 6.2)], 17, grid)
    part = Part(3.0, 4.0, 1.0)
    numbers = windows_of(part, 17, grid)
    assert numbers.tolist() == [3, 4, 5, 6, 7]  # from that which begins at 1.5 to that at 3.5
    level, expected = curve.smoothed(), []
    for number in numbers:
        start, end = number * 0.5, number * 0.5 + 2
        held = (min(end, 4.0) - max(start, 3.0)) / 1.0

        def moved(first: float, last: float) -> float:
            return sum(max(0.0, level[i] - 0.8) for i in range(round(first / STEP), round(last / STEP)))

        alone = moved(max(start, 3.0), min(end, 4.0)) / moved(start, end)
        expected.append((held * alone) ** 2 * np.exp(-3 * abs(start + 1 - 3.5) / 2))
    assert weights(part, numbers, curve) == pytest.approx(np.array(expected) / sum(expected))


def test_a_part_has_the_name_of_its_windows() -> None:
    grid = Grid(2.0, 0.5)
    curve = curve_of([(3.0, 4.0)], 17, grid)
    part, numbers = Part(3.0, 4.0, 1.0), np.array([4, 5])
    share = weights(part, numbers, curve)
    rows = np.array([[0.9, 0.1], [0.6, 0.4]])
    logs = share[0] * np.log(rows[0]) + share[1] * np.log(rows[1])
    assert named(part, rows, np.zeros(2, dtype=bool), numbers, curve) == pytest.approx(np.exp(logs) / np.exp(logs).sum())
    half = named(part, rows, np.array([True, False]), numbers, curve)
    assert half == pytest.approx(share[1] * rows[1])
    assert (named(part, rows, np.ones(2, dtype=bool), numbers, curve) == 0).all()
    assert segment_of(part, np.array([0.3, 0.45]), CLASSES, 0.4) == [Segment("jump", 3.0, 4.0, 0.45)]
    assert segment_of(part, np.array([0.3, 0.45]), CLASSES, 0.5) == []


def test_segments_are_clipped_to_their_part() -> None:
    found = clipped([Segment("wave", 0.0, 2.0), Segment("jump", 2.0, 3.0)], 10.0, Part(10.5, 12.3, 1.0), 0.5)
    assert found == [Segment("wave", 10.5, 12.0)]


def film(count: int, grid: Grid, seed: int = 0) -> tuple[list[Reading], list[tuple[float, float]]]:
    """Windows of a film whose actions last 0.8 to 2.5 seconds and now and then 20; their probabilities hold noise."""
    random = np.random.default_rng(seed)
    moves, at = [], 1.0
    while at < count * grid.hop:
        length = 20.0 if random.random() < 0.15 else float(random.uniform(0.8, 2.5))
        moves.append((at, at + length))
        at += length + float(random.uniform(0.9, 4.0))
    readings = []
    for number in range(count):
        start = number * grid.hop
        inside = [place for place, (begin, end) in enumerate(moves) if begin < start + grid.clip and end > start]
        level = np.array([2.0, -2.0]) * (1 if inside and inside[0] % 2 else -1) if inside else np.zeros(2)
        odds = np.exp(level + random.normal(size=2) * 0.5)
        readings.append(Reading(odds / odds.sum(), bool(random.random() < 0.05), motion_of(moves, start, grid.clip)))
    return readings, moves


@pytest.mark.parametrize("seed", range(12))
def test_a_stream_has_the_parts_of_a_file(seed: int) -> None:
    grid = Grid(3.0, [0.5, 0.75, 1.0][seed % 3])
    readings, moves = film(120, grid, seed)
    end = 119 * grid.hop + 3.0 + 0.3
    rule = Rule(least=0.6, gap=0.5)
    path = decided(readings, CLASSES, grid, end, rule).segments
    live, told = Live(CLASSES, grid, rule), []
    most, steps, order = 0, 0, []
    for number, one in enumerate(readings):
        for event in live.window(one):
            if isinstance(event, Segment):
                told.append(event)
                order.append(number * grid.hop + grid.clip - event.end)
        assert live.curve is not None
        most, steps = max(most, len(live.curve.values)), max(steps, len(live.labels))
    told += [one for one in live.end(end) if isinstance(one, Segment)]
    short = [(begin, stop) for begin, stop in moves if stop - begin < 4 and stop < end - 1]
    for begin, stop in short:  # whatever the path takes of a part that is no longer than a window and a half, the stream takes
        one, other = ([s for s in found if s.start < stop and s.end > begin] for found in (path, told))
        assert [s[:3] for s in one] == [s[:3] for s in other]
        assert [s.score for s in one] == pytest.approx([s.score for s in other])
    assert sum(len([s for s in path if s.start < stop and s.end > begin]) for begin, stop in short) > len(short) / 2
    assert decided(readings, CLASSES, grid, end, Rule(least=0.6, decide="hysteresis")).segments == told
    assert all(one.end <= other.start + 1e-9 for one, other in pairwise(told))
    assert all(delay < 4.5 + 3.0 + 1.0 for delay in order if delay)
    assert most < 16 / STEP  # seconds
    assert steps < 24 / grid.hop


def test_short_parts_without_end_hold_no_memory() -> None:
    """A second of movement, then 1.2 seconds of rest, again and again: some part always waits for its windows."""
    grid, live = Grid(3.0, 0.75), Live(CLASSES, Grid(3.0, 0.75), Rule())
    moves = [(at, at + 1.0) for at in np.arange(0, 1600, 2.2)]
    for number in range(2000):
        start = number * grid.hop
        near = [one for one in moves if abs(one[0] - start) < 8]
        live.window(Reading(np.array([0.7, 0.3]), False, motion_of(near, start, grid.clip)))
        assert live.curve is not None
        assert max(len(live.labels), len(live.curve.values) * STEP) < 20


@pytest.mark.parametrize("gap", [0.0, 3.0, 10.0])
def test_a_gap_longer_than_windows(gap: float) -> None:
    grid = Grid(1.0, 0.25)
    readings, _ = film(400, grid, 3)
    path = decided(readings, CLASSES, grid, 100.75, Rule(gap=gap)).segments
    live = decided(readings, CLASSES, grid, 100.75, Rule(gap=gap, decide="hysteresis")).segments
    short = [one for one in path if one.seconds < 1.4]
    assert [one for one in live if one in short] == short


def test_single_values_make_no_parts_of_what_is_forgotten() -> None:
    grid, random = Grid(3.0, 0.75), np.random.default_rng(0)
    readings = []
    for _ in range(400):
        motion = motion_of([], 0.0, grid.clip)
        motion[random.random(len(motion)) < 0.02, 1] = 1.4
        readings.append(Reading(np.array([0.9, 0.1]), False, motion))
    path, live = (decided(readings, CLASSES, grid, 302.25, Rule(shortest=0.0, decide=how)).segments for how in ("path", "hysteresis"))
    assert len(path) == len(live) < 400


def test_no_segment_of_a_long_part_is_too_short() -> None:
    grid = Grid(2.0, 0.5)
    for seed in range(20):
        random = np.random.default_rng(seed)
        readings = [Reading(random.dirichlet([1, 1]), False, motion_of([(3.2, 40.0)], 0.5 * number, 2.0)) for number in range(60)]
        for how in ("path", "hysteresis"):
            found = decided(readings, CLASSES, grid, 31.5, Rule(shortest=1.0, decide=how)).segments
            assert all(one.seconds >= 0.95 for one in found)


def test_starts_and_ends_are_those_of_the_movement() -> None:
    grid = Grid(3.0, 0.75)
    readings = []
    for number in range(30):
        holds = number * 0.75 + 3 > 6.0 and number * 0.75 < 8.0
        readings.append(Reading(np.array([0.9, 0.1] if holds else [0.5, 0.5]), False, motion_of([(6.0, 8.0)], number * 0.75, 3.0)))
    (found,) = decided(readings, CLASSES, grid, 24.75, Rule()).segments
    assert found == Segment("wave", pytest.approx(6.0, abs=0.2), pytest.approx(8.0, abs=0.2), pytest.approx(0.9, abs=1e-3))
    without = decided(readings, CLASSES, grid, 24.75, Rule(motion=False)).segments
    assert without[0].seconds > 3
    still = [one._replace(motion=motion_of([], 0.0, 3.0)) for one in readings]
    assert decided(still, CLASSES, grid, 24.75, Rule()).segments == []
    live = Live(CLASSES, grid, Rule())
    assert not [one for reading in still for one in live.window(reading) if isinstance(one, Began)]  # nothing begins at rest
    later = Live(CLASSES, grid, Rule(), start=100.0)
    told = [one for reading in readings for one in later.window(reading) if isinstance(one, Segment)]
    assert [one.start for one in told] == [pytest.approx(found.start + 100)]


def test_a_movement_without_end_is_told_while_it_goes_on() -> None:
    """An hour of movement, an action every 20 seconds: decided by its steps, in little memory."""
    grid, sure, none = Grid(3.0, 1.0), np.array([0.98, 0.01, 0.01]), np.array([0.28, 0.36, 0.36])
    live, told = Live([*CLASSES, "fall"], grid, Rule(gap=2.0)), []
    ever = motion_of([(0.0, 1e9)], 0.0, 3.0)
    for number in range(3_600):
        told += [one for one in live.window(Reading(sure if number % 20 < 6 else none, False, ever)) if isinstance(one, Segment)]
        assert live.curve is not None
        assert len(live.curve.values) < 20 / STEP
        assert len(live.labels) < 40
    assert len(told) == 180


def test_rest_is_told_from_movement() -> None:
    random = np.random.default_rng(0)
    clips = [np.concatenate([random.uniform(0.9, 1.1, 20), random.uniform(9, 11, 20), random.uniform(0.9, 1.1, 10)]) for _ in range(8)]
    threshold = rest_below(clips)
    assert threshold == pytest.approx(np.sqrt(1 * 10), rel=0.1)  # halfway in logarithms
    assert rest_below([10 * one for one in clips]) == pytest.approx(10 * threshold)
    assert rest_below([np.zeros(20)]) is None
    assert rest_below([np.ones(2)]) is None
    assert rest_below([]) is None


def test_hours_of_a_film_take_seconds() -> None:
    """Three hours, an action of two seconds every 20: each has its own segment. A sum over the whole film for each would take minutes."""
    grid = Grid(3.0, 1.0)
    moves, rest = ([Reading(np.array(p), False, motion_of(m, 0.0, 3.0)) for p in ([0.9, 0.1],)] for m in ([(0.5, 2.5)], []))
    pattern = [rest[0]] * 20
    for number in (17, 18, 19):  # the windows that begin 1 and 0 seconds before the action, and 1 second after its start
        start = number - 18.0
        pattern[number] = moves[0]._replace(motion=motion_of([(0.5 - start, 2.5 - start)], 0.0, 3.0))
    found = decided(pattern * 540, CLASSES, grid, 10_802.0, Rule())
    assert len(found.segments) == 540
