"""Lays two event sentences beside each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Alignment(NamedTuple):
    """Windows of two clips that correspond."""

    pairs: list[tuple[int, int, float]]
    """a window of the one, a window of the other, and the share of cells with the same code, above 0; both numbers rise"""
    shared: list[tuple[int, int, int]]
    """a code that both have, and how often each has it; most frequent in both first"""
    likeness: float
    """sum of the pairs' shares over the number of windows of the longer clip, in [0, 1]: 1 for a clip and itself"""


def align(one: NDArray[np.int64], other: NDArray[np.int64]) -> Alignment:
    """The pairs of windows, in the order of both clips, whose shares add up to the most.

    Args:
        one: (W, S) codes.
        other: (V, S) codes of the same model.

    Returns:
        Of several best ones, that which pairs early windows of ``one``.
    """
    share = (one[:, None] == other[None]).mean(-1)  # (W, V)
    best = np.zeros((len(one) + 1, len(other) + 1))
    for row in range(len(one)):
        best[row + 1, 1:] = np.maximum.accumulate(np.maximum(best[row, 1:], best[row, :-1] + share[row]))
    pairs, left, right = [], len(one), len(other)
    while left and right:
        if np.isclose(best[left, right], best[left - 1, right]):
            left -= 1
        elif np.isclose(best[left, right], best[left, right - 1]):
            right -= 1
        else:
            left, right = left - 1, right - 1
            pairs.append((left, right, float(share[left, right])))
    counts = [dict(zip(*map(np.ndarray.tolist, np.unique(codes, return_counts=True)), strict=True)) for codes in (one, other)]
    shared = [(code, number, counts[1][code]) for code, number in counts[0].items() if code in counts[1]]
    shared.sort(key=lambda row: (-min(row[1:]), row[0]))
    return Alignment(pairs[::-1], shared, float(best[-1, -1] / max(len(one), len(other), 1)))
