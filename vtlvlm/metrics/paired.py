"""The difference of two recognisers on the same clips, with a bootstrap confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
COVERED = 0.95
AT_ONCE = 100
"""Samples that :func:`paired_scores` draws at once"""


@dataclass(frozen=True)
class Difference:
    """A mean difference of accuracies with its bootstrap confidence interval (percentiles, 95 %)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], groups: NDArray[np.generic] | None = None) -> Difference:
    """Bootstrap of the mean of ``ours - theirs`` over clips, or over whole groups of clips.

    A clip counts once, with the mean over its seeds, since seeds are not new clips. Clips of one person are alike. With enough people,
    drawing people instead of clips gives a wider and more honest interval (Efron & Tibshirani 1993). Few values differ, so each sample is
    drawn as the number of clips with each value: the same distribution as drawing every clip, in milliseconds for 50,000 clips.

    Args:
        ours: (R, n) whether each clip was right, for each of R seeds.
        theirs: (R, n) the same for the other recogniser.
        groups: (n,) the person of each clip; None to draw single clips.

    Returns:
        The mean and its interval, deterministic.

    Raises:
        ValueError: shapes differ, or no clips.
    """
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.shape[1]:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape}: give the same seeds and clips for both")
    gain = ours.sum(axis=0, dtype=np.int64) - theirs.sum(axis=0, dtype=np.int64)
    mean = float(gain.mean() / len(ours))
    _, place = np.unique(np.arange(len(gain)) if groups is None else groups, return_inverse=True)
    total = np.bincount(place, weights=gain).astype(np.int64)
    units, number = np.unique(np.stack([total, np.bincount(place)], 1), axis=0, return_counts=True)
    weights = number / number.sum()
    drawn = np.random.default_rng(0).multinomial(number.sum(), weights, size=DRAWS)
    means = (drawn @ units[:, 0]) / (drawn @ units[:, 1]) / len(ours)
    low, high = np.quantile(means, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Difference(mean, float(low), float(high))


def paired_scores(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> Difference:
    """Bootstrap of the mean of ``ours - theirs`` over clips, for scores that are no counts, such as average precisions.

    Args:
        ours: (R, n) the score of each clip, for each of R seeds. A clip counts once, with the mean over its seeds.
        theirs: (R, n) the same for the other method.

    Returns:
        The mean and its interval, deterministic.

    Raises:
        ValueError: shapes differ, or no clips.
    """
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.shape[1]:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape}: give the same seeds and clips for both")
    gain = (ours - theirs).mean(axis=0, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = np.concatenate([rng.choice(gain, (AT_ONCE, len(gain))).mean(axis=1) for _ in range(DRAWS // AT_ONCE)])
    low, high = np.quantile(means, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Difference(float(gain.mean()), float(low), float(high))
