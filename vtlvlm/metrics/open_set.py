"""Figures of a score that separates known clips from unknown ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Values = NDArray[np.float64]


def auroc(known: Values, unknown: Values) -> float:
    """The probability that a known clip has a larger score than an unknown one; ties count half.

    Args:
        known: (n,) scores, n at least 1.
        unknown: (m,) scores, m at least 1.
    """
    ranks = rankdata(np.concatenate([known, unknown]))[: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))


def false_acceptance(known: Values, unknown: Values, acceptance: float = 0.95) -> float:
    """The share of unknown clips that are accepted where at least this share of known clips is (FPR at 95 % TPR).

    Args:
        known: (n,) scores, n at least 1.
        unknown: (m,) scores, m at least 1.
        acceptance: In (0, 1].
    """
    threshold = np.sort(known)[len(known) - int(np.ceil(acceptance * len(known) - 1e-9))]
    return float(np.mean(unknown >= threshold))
