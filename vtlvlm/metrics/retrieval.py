"""Metrics of a search, one query at a time, and what an order by chance has on average."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

CUTS = (1, 5, 10)
"""Lengths of the list of which recall is told"""


class QueryScore(NamedTuple):
    """How well one query's list is ordered."""

    average_precision: float
    """mean, over the relevant clips, of the share of relevant ones down to each"""
    first: int
    """rank of the first relevant clip, from 1"""

    def recall(self, cut: int) -> bool:
        """Whether any of the first ``cut`` clips is relevant: recall at ``cut``, as retrieval of videos counts it."""
        return self.first <= cut


def query_score(relevant: NDArray[np.bool_]) -> QueryScore:
    """The score of a list.

    Args:
        relevant: (n,) whether each clip is relevant, best first.

    Raises:
        ValueError: None is.
    """
    ranks = np.flatnonzero(relevant) + 1
    if not len(ranks):
        raise ValueError("no relevant clip: leave the query out")
    return QueryScore(float((np.arange(1, len(ranks) + 1) / ranks).mean()), int(ranks[0]))


def by_chance(relevant: int, clips: int) -> tuple[float, dict[int, float]]:
    """What an order by chance has on average.

    Args:
        relevant: Number of relevant clips, from 1.
        clips: Number of clips.

    Returns:
        The average precision, and recall at each of ``CUTS``.
    """
    ranks = np.arange(1, clips + 1)
    beside = (relevant - 1) / (clips - 1) if clips > 1 else 0.0
    precision = float(((1 + (ranks - 1) * beside) / ranks).mean())
    return precision, {cut: 1 - _none(relevant, clips, min(cut, clips)) for cut in CUTS}


def _none(relevant: int, clips: int, cut: int) -> float:
    """Probability that none of ``cut`` drawn clips is relevant (hypergeometric)."""
    if cut > clips - relevant:
        return 0.0
    logs = gammaln([clips - relevant + 1, clips - cut + 1, clips - relevant - cut + 1, clips + 1])
    return float(np.exp(logs[0] + logs[1] - logs[2] - logs[3]))
