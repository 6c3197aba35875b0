"""Scores of segments by hand, and against slow forms that follow the published evaluations line by line."""

from itertools import product

import numpy as np
import pytest

from vtlvlm.errors import UsageError
from vtlvlm.segments.metrics import average_precisions, mean_average_precision, overlap, step_scores
from vtlvlm.segments.timeline import NONE, Segment


def test_overlap_by_hand() -> None:
    assert overlap(Segment("a", 0, 4), Segment("a", 2, 6)) == pytest.approx(2 / 6)
    assert overlap(Segment("a", 0, 1), Segment("a", 1, 2)) == 0
    assert overlap(Segment("a", 0, 2), Segment("a", 0, 2)) == 1


def test_average_precision_by_hand() -> None:
    """Two true segments. By falling score: right, wrong, right. Precision 1, 1/2, 2/3: AP = (1 + 2/3) / 2."""
    truth = {"v": [Segment("run", 0, 10), Segment("run", 20, 30)]}
    found = {"v": [Segment("run", 1, 10, 0.9), Segment("run", 12, 18, 0.8), Segment("run", 20, 29, 0.7)]}
    assert average_precisions(truth, found, [0.5])["run"].tolist() == pytest.approx([(1 + 2 / 3) / 2])
    assert mean_average_precision(truth, found, [0.5, 0.95]).tolist() == pytest.approx([(1 + 2 / 3) / 2, 0])
    twice = {"v": [Segment("run", 0, 10, 0.9), Segment("run", 0, 10, 0.8)]}  # a true segment is found once
    assert average_precisions(truth, twice, [0.5])["run"].tolist() == [0.5]
    assert np.isnan(mean_average_precision({}, found, [0.5])).all()
    assert mean_average_precision(truth, {}, [0.5]).tolist() == [0]
    with pytest.raises(UsageError, match="above 0, up to 1"):
        average_precisions(truth, found, [0.0])


def slow_average_precision(truth: dict, found: dict, label: str, least: float) -> float:
    """ActivityNet's evaluation in plain loops."""
    wanted = [(video, one) for video, segments in truth.items() for one in segments if one.label == label]
    given = sorted(((v, s) for v, segments in found.items() for s in segments if s.label == label), key=lambda p: -p[1].score)
    locked: set[int] = set()
    right = []
    for video, one in given:
        candidates = [(overlap(one, other), number) for number, (own, other) in enumerate(wanted) if own == video]
        hit = False
        for value, number in sorted(candidates, reverse=True):
            if value < least:
                break
            if number not in locked:
                locked.add(number)
                hit = True
                break
        right.append(hit)
    precision = [0.0, *(sum(right[: n + 1]) / (n + 1) for n in range(len(right))), 0.0]
    recall = [0.0, *(sum(right[: n + 1]) / len(wanted) for n in range(len(right))), 1.0]
    for n in range(len(precision) - 2, -1, -1):
        precision[n] = max(precision[n], precision[n + 1])
    return sum((recall[n] - recall[n - 1]) * precision[n] for n in range(1, len(recall)) if recall[n] != recall[n - 1])


def test_average_precision_of_random_segments_by_loops() -> None:
    random = np.random.default_rng(0)

    def some(number: int, scored: bool) -> list[Segment]:
        starts, lengths = random.uniform(0, 50, number), random.uniform(1, 12, number)
        labels = random.choice(["run", "sit", "fall"], number)
        return [
            Segment(str(w), a, a + d, float(random.random()) if scored else 1.0) for w, a, d in zip(labels, starts, lengths, strict=True)
        ]

    truth, found = {v: some(9, False) for v in "abc"}, {v: some(25, True) for v in "abcd"}
    levels = [0.1, 0.3, 0.5, 0.7]
    for label, values in average_precisions(truth, found, levels).items():
        assert values.tolist() == pytest.approx([slow_average_precision(truth, found, label, least) for least in levels])


def test_step_scores_by_hand() -> None:
    truth = [np.array([NONE, 0, 0, 0, 0, NONE, 1, 1])]
    found = [np.array([0, 0, 0, 0, NONE, NONE, 1, 0])]
    scores = step_scores(truth, found)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.accuracy_all == pytest.approx(5 / 8)
    assert scores.edit == pytest.approx(1 - 1 / 3)  # 0 1 against 0 1 0
    # 0 overlaps by 3/5, 1 by 1/2, the last 0 none: at 0.5 two of three are right; none is missed
    assert scores.f1[0.5] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert step_scores(truth, found, background=()).f1[0.5] != scores.f1[0.5]  # what counts as background changes F1


def test_empty_videos() -> None:
    nothing = [np.full(4, NONE), np.zeros(0, np.int64)]
    scores = step_scores(nothing, nothing)
    assert (scores.edit, scores.accuracy_all) == (1, 1)
    assert np.isnan(scores.accuracy)
    assert np.isnan(scores.f1[0.5])
    assert step_scores([np.zeros(4, np.int64)], [np.full(4, NONE)]).f1[0.1] == 0
    with pytest.raises(UsageError, match="as many steps of each"):
        step_scores(nothing, nothing[::-1])


def slow_f1(truth: list[np.ndarray], found: list[np.ndarray], background: tuple[int, ...], least: float) -> float:
    """MS-TCN's f_score in plain loops, summed over videos."""

    def parts(line: np.ndarray) -> list[list[int]]:
        out: list[list[int]] = []
        for step, label in enumerate(line.tolist()):
            if out and out[-1][0] == label and out[-1][2] == step:
                out[-1][2] = step + 1
            else:
                out.append([label, step, step + 1])
        return [part for part in out if part[0] not in background]

    hits = wrong = missed = 0
    for one, other in zip(truth, found, strict=True):
        wanted, given = parts(one), parts(other)
        used = [0] * len(wanted)
        for label, start, end in given:
            values = [
                (min(end, to) - max(start, from_)) / (max(end, to) - min(start, from_)) * (label == name) for name, from_, to in wanted
            ]
            best = int(np.argmax(values)) if values else -1
            if best >= 0 and values[best] >= least and not used[best]:
                used[best] = 1
                hits += 1
            else:
                wrong += 1
        missed += len(wanted) - sum(used)
    precision, recall = hits / (hits + wrong), hits / (hits + missed)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("background", [(NONE,), (NONE, 2), ()])
def test_f1_of_random_steps_by_loops(background: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    truth = [np.repeat(random.integers(-1, 3, 12), random.integers(1, 9, 12)) for _ in range(5)]
    found = []
    for line in truth:
        changed = line.copy()
        for _ in range(6):
            start = random.integers(0, len(line))
            changed[start : start + random.integers(1, 8)] = random.integers(-1, 3)
        found.append(changed)
    scores = step_scores(truth, found, background, (0.1, 0.25, 0.5, 0.75))
    for least, value in scores.f1.items():
        assert value == pytest.approx(slow_f1(truth, found, background, least))


def test_edit_score_by_all_alignments() -> None:
    """The distance of short sequences by recursion."""

    def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    for a, b in product([(0, 1, 0), (1,), (0, 2, 1, 0)], [(0, 1), (2, 1, 0), (0,)]):
        scores = step_scores([np.repeat(a, 12 // len(a))], [np.repeat(b, 12 // len(b))], background=())
        assert scores.edit == pytest.approx(1 - distance(a, b) / max(len(a), len(b)))
