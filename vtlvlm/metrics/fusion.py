"""Fusion of the streams of a recogniser: one probability for each class from those of several models on the same clips.

The official codes of skeleton networks add the raw scores of their streams. Our files hold calibrated probabilities. Their logarithms are
the raw scores divided by the temperature, up to a constant for each clip, which changes no decision. So a weighted sum of log-probabilities
is the nearest to the official fusion, and each stream counts by how sure it is after calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Normalise = Literal["none", "l2"]
NORMALISE: tuple[Normalise, ...] = ("none", "l2")


def fused(log_probs: Sequence[NDArray[np.float64]], weights: Sequence[float], normalise: Normalise = "none") -> NDArray[np.float64]:
    """The weighted mean of the streams' log-probabilities, normalised over the classes: their geometric mean.

    Weights are divided by their sum. This changes no decision, and equal streams give their own probabilities.

    With ``l2``, each clip's scores are divided by their L2 norm before, as in HD-GCN (Lee et al. 2023). A stream then counts equally on
    clips that it is sure and unsure of, and the temperature has no influence. The norm of raw scores depends on the constant that
    log-probabilities lack, so the scores here have a mean of zero over the classes. The sum is multiplied by the weighted mean norm.
    This changes no decision, and gives the probabilities the streams' confidence again.

    Args:
        log_probs: (n, A) finite values for each stream.
        weights: One for each stream, not negative, with a positive sum.
        normalise: ``none`` or ``l2``.

    Returns:
        (n, A) log-probabilities.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    total = np.zeros_like(log_probs[0], dtype=np.float64)
    size = np.zeros((len(total), 1))
    for stream, share in zip(log_probs, shares, strict=True):
        if normalise == "l2":
            scores = stream - stream.mean(1, keepdims=True)
            norm = np.linalg.norm(scores, axis=1, keepdims=True)
            total += share * np.divide(scores, norm, out=np.zeros_like(scores), where=norm > 0)
            size += share * norm
        else:
            total += share * stream
    scores = total * size if normalise == "l2" else total
    scores = scores - scores.max(1, keepdims=True)
    normalised: NDArray[np.float64] = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return normalised
