"""Scores of segments against the truth: mean average precision over overlaps, and frame accuracy, edit score and F1 of labelled steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError
from vtlvlm.segments.timeline import NONE, Segment, runs

OVERLAPS = (0.1, 0.25, 0.5)
"""Of F1@{10, 25, 50}"""
Videos = Mapping[str, Sequence[Segment]]
"""Video -> its segments"""


def overlap(one: Segment, other: Segment) -> float:
    """Temporal intersection over union of two segments, in [0, 1]."""
    shared = max(0.0, min(one.end, other.end) - max(one.start, other.start))
    joined = one.seconds + other.seconds - shared
    return shared / joined if joined > 0 else 0.0


def average_precisions(truth: Videos, found: Videos, overlaps: Sequence[float]) -> dict[str, NDArray[np.float64]]:
    """Average precision of each action at each overlap, as ActivityNet's evaluation computes it.

    Of one action, the segments of all videos are taken by falling score. Each is right if the true segment of its video that it overlaps
    most, among those that are not taken yet, overlaps it by at least the threshold. Precision is interpolated: that of a recall is the
    highest at any higher recall.

    Args:
        truth: The true segments.
        found: The segments to score; videos without truth count too.
        overlaps: Thresholds in (0, 1].

    Returns:
        Action -> (thresholds,), for the actions that the truth has.
    """
    if any(not 0 < one <= 1 for one in overlaps):
        raise UsageError(f"overlaps={list(overlaps)}: give thresholds above 0, up to 1")
    labels = sorted({one.label for segments in truth.values() for one in segments})
    return {label: _average_precision(_of(label, truth), _of(label, found), overlaps) for label in labels}


def mean_average_precision(truth: Videos, found: Videos, overlaps: Sequence[float]) -> NDArray[np.float64]:
    """(thresholds,) the mean of :func:`average_precisions` over the actions; nan without any truth."""
    each = average_precisions(truth, found, overlaps)
    if not each:
        return np.full(len(overlaps), np.nan)
    mean: NDArray[np.float64] = np.mean(list(each.values()), axis=0)
    return mean


def _of(label: str, videos: Videos) -> list[tuple[str, Segment]]:
    return [(video, one) for video, segments in videos.items() for one in segments if one.label == label]


def _average_precision(
    truth: list[tuple[str, Segment]], found: list[tuple[str, Segment]], overlaps: Sequence[float]
) -> NDArray[np.float64]:
    own: dict[str, list[int]] = {}
    for number, (video, _) in enumerate(truth):
        own.setdefault(video, []).append(number)
    order = sorted(found, key=lambda pair: -pair[1].score)
    taken = np.zeros((len(overlaps), len(truth)), dtype=bool)
    right = np.zeros((len(overlaps), len(order)), dtype=bool)
    for place, (video, one) in enumerate(order):
        near = sorted(((overlap(one, truth[number][1]), number) for number in own.get(video, ())), reverse=True)
        for level, least in enumerate(overlaps):
            free = [number for value, number in near if value >= least and not taken[level, number]]
            if free:
                taken[level, free[0]] = right[level, place] = True
    hits = right.cumsum(1)
    precision = hits / np.arange(1, len(order) + 1)
    interpolated = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result: NDArray[np.float64] = (interpolated * right).sum(1) / len(truth)
    return result


class StepScores(NamedTuple):
    """Scores of labelled steps over all videos, in [0, 1]; nan where nothing could be scored."""

    accuracy: float
    """share of the steps with the true label, without steps whose truth is background"""
    accuracy_all: float
    """the same over all steps"""
    edit: float
    """1 - edit distance of the sequences of segments over the longer one's length, mean over videos"""
    f1: dict[float, float]
    """threshold -> F1 of segments, counted over all videos"""


def step_scores(
    truth: Sequence[NDArray[np.int64]],
    found: Sequence[NDArray[np.int64]],
    background: Sequence[int] = (NONE,),
    overlaps: Sequence[float] = OVERLAPS,
) -> StepScores:
    """Frame accuracy, edit score and F1@k of temporal segmentation (Lea et al. 2017), by the definitions of MS-TCN's evaluation.

    Args:
        truth: (T,) labels of each video.
        found: The same for what was found; as long.
        background: Labels that are no actions: their segments enter neither the edit score nor F1. They change F1 by points, so name them
            beside it.
        overlaps: Thresholds of F1.

    Raises:
        UsageError: The videos differ in number or length.
    """
    if len(truth) != len(found) or any(len(one) != len(other) for one, other in zip(truth, found, strict=False)):
        raise UsageError("step_scores: give as many videos, and as many steps of each, as the truth has")
    no_action = np.asarray(list(background), dtype=np.int64)
    right, steps, acting_right, acting = 0, 0, 0, 0
    edits: list[float] = []
    counts = np.zeros((len(overlaps), 3), dtype=np.int64)
    for one, other in zip(truth, found, strict=True):
        same, action = one == other, ~np.isin(one, no_action)
        right, steps = right + int(same.sum()), steps + len(one)
        acting_right, acting = acting_right + int((same & action).sum()), acting + int(action.sum())
        wanted, given = (([part for part in runs(line) if part[0] not in no_action]) for line in (one, other))
        edits.append(_edit([label for label, _, _ in wanted], [label for label, _, _ in given]))
        for level, least in enumerate(overlaps):
            counts[level] += _matches(wanted, given, least)
    f1 = {}
    for least, (hits, wrong, missed) in zip(overlaps, counts.tolist(), strict=True):
        f1[least] = _share(2 * hits, 2 * hits + wrong + missed)
    return StepScores(_share(acting_right, acting), _share(right, steps), _share(sum(edits), len(edits)), f1)


def _share(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")


def _edit(wanted: list[int], given: list[int]) -> float:
    """Levenshtein's distance as a score in [0, 1]; two empty sequences are equal."""
    if not wanted and not given:
        return 1.0
    line = list(range(len(given) + 1))
    for row, label in enumerate(wanted, 1):
        before, line[0] = line[0], row
        for column, other in enumerate(given, 1):
            before, line[column] = line[column], min(line[column] + 1, line[column - 1] + 1, before + (label != other))
    return 1 - line[-1] / max(len(wanted), len(given))


def _matches(wanted: list[tuple[int, int, int]], given: list[tuple[int, int, int]], least: float) -> NDArray[np.int64]:
    """Right, wrong and missed segments: each given one, in order, takes the true one of its label that it overlaps most."""
    taken = np.zeros(len(wanted), dtype=bool)
    hits = 0
    for label, start, end in given:
        best, number = 0.0, -1
        for place, (other, from_, to) in enumerate(wanted):
            if other == label:
                shared = min(end, to) - max(start, from_)
                value = shared / (max(end, to) - min(start, from_))
                if value > best:
                    best, number = value, place
        if number >= 0 and best >= least and not taken[number]:
            taken[number] = True
            hits += 1
    return np.array([hits, len(given) - hits, len(wanted) - hits])
