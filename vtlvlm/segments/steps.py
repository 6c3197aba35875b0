"""From the probabilities of overlapping windows to those of steps of one hop."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vtlvlm.segments.windows import Grid


def of_steps(rows: NDArray[np.float64], grid: Grid, end: float, rejected: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Probabilities of steps of ``hop`` seconds: the normalised geometric mean over the windows that cover a step, weighted by how near
    their middles are (a triangle). What lies behind the last window counts as its end. Rejected windows have no part in the mean, and their
    share of the weights is taken off all actions: it is the probability of none.

    Args:
        rows: (windows, A).
        grid: The windows.
        end: Seconds of the video.
        rejected: (windows,); None for none.

    Returns:
        (steps, A).
    """
    told = np.zeros(len(rows), dtype=np.bool_) if rejected is None else rejected
    return some_steps(rows, told, 0, np.arange(number_of_steps(grid, end)), len(rows), grid)


def some_steps(
    rows: NDArray[np.float64], rejected: NDArray[np.bool_], first: int, steps: NDArray[np.int64], number: int, grid: Grid
) -> NDArray[np.float64]:
    """As :func:`of_steps`, for some of the steps (S,), from the windows that cover them. The result is the same to the bit.

    Args:
        rows: (n, A) of consecutive windows.
        rejected: (n,)
        first: Number of the first of them.
        steps: Their numbers.
        number: Windows in all.
        grid: The windows.

    Returns:
        (S, A).
    """
    near, weights = _near(steps, number, grid)
    at = (near - first).clip(0, len(rows) - 1)
    return joint(rows[at], weights * ~rejected[at])


def joint(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """What several windows say together: the normalised geometric mean of their probabilities, times the sum of their weights.

    Args:
        rows: (..., N, A) probabilities.
        weights: (..., N), at least 0, with a sum of at most 1. What lacks to 1 is the probability of none of the actions.

    Returns:
        (..., A).
    """
    known = weights.sum(-1, keepdims=True)
    mean = ((weights / np.where(known > 0, known, 1))[..., None] * np.log(np.clip(rows, 1e-12, None))).sum(-2)
    found = np.exp(mean - mean.max(-1, keepdims=True))
    result: NDArray[np.float64] = known * found / found.sum(-1, keepdims=True)
    return result


def number_of_steps(grid: Grid, end: float) -> int:
    """Steps of a video of ``end`` seconds."""
    return max(1, math.ceil(end / grid.hop - 1e-9))


def reach_of(grid: Grid) -> int:
    """A step is covered by windows of at most so much smaller numbers than its own."""
    return math.ceil(grid.clip / grid.hop) + 1


def _near(steps: NDArray[np.int64], number: int, grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The windows (S, N) that may cover each step, and their weights, which sum to one."""
    middles = np.minimum((steps + 0.5) * grid.hop, (number - 1) * grid.hop + grid.clip - grid.hop / 2)
    first = np.floor((middles - grid.clip) / grid.hop).astype(np.int64)
    near = first[:, None] + np.arange(reach_of(grid) + 1)
    distance = np.abs(middles[:, None] - near * grid.hop - grid.clip / 2)
    weights = np.clip(1 - distance / (grid.clip / 2 + 1e-9), 0, None) * ((near >= 0) & (near < number))
    return near.clip(0, number - 1), weights / weights.sum(1, keepdims=True)


def nearest(rows: NDArray[np.float64], grid: Grid, end: float, rejected: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(steps, A) the probabilities of the window whose middle is nearest; 0 if it is rejected."""
    near, weights = _near(np.arange(number_of_steps(grid, end)), len(rows), grid)
    chosen = near[np.arange(len(near)), weights.argmax(1)]
    return rows[chosen] * ~rejected[chosen, None]
