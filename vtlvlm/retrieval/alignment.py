"""Aligns event sentences in time by how alike the vectors of their codes are: near codes are not equal, but cost little."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def directions(table: NDArray[np.floating]) -> NDArray[np.float32]:
    """(K, E) code vectors → (K, E) of length 1, seen from their mean. The mean says nothing about a code."""
    centred = table.astype(np.float32) - table.mean(0, dtype=np.float64).astype(np.float32)
    found: NDArray[np.float32] = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return found


def align(query: NDArray[np.integer], others: NDArray[np.integer], units: NDArray[np.float32]) -> NDArray[np.float32]:
    """How alike a sentence and each of some others are once their windows are aligned in time.

    Two windows cost 1 minus the mean cosine of the codes in equal cells. The alignment is the cheapest path of dynamic time warping that
    moves on in one sentence or in both. A step in both counts twice, so that all paths weigh the same (Sakoe & Chiba 1978, symmetric form).

    Args:
        query: (W, S) codes.
        others: (n, W', S) codes.
        units: (K, E) their :func:`directions`.

    Returns:
        (n,) 1 minus the cost of the path over W + W': 1 for equal sentences, about 0 for unrelated ones, at least -1.
    """
    costs = _costs(query, others, units)
    count, steps, other_steps = costs.shape
    # diagonal d of the table holds the cells (i, d - i): each depends on the two diagonals before
    before, last = (np.full((count, steps), np.inf, dtype=np.float32) for _ in range(2))
    rows = np.arange(steps)
    for diagonal in range(steps + other_steps - 1):
        columns = diagonal - rows
        inside = (columns >= 0) & (columns < other_steps)
        here = costs[:, rows, columns.clip(0, other_steps - 1)]
        straight = last + here  # from (i, j - 1)
        straight[:, 1:] = np.minimum(straight[:, 1:], last[:, :-1] + here[:, 1:])  # from (i - 1, j)
        straight[:, 1:] = np.minimum(straight[:, 1:], before[:, :-1] + 2 * here[:, 1:])  # from (i - 1, j - 1)
        if diagonal == 0:
            straight[:, 0] = 2 * here[:, 0]
        before, last = last, np.where(inside, straight, np.float32(np.inf))
    found: NDArray[np.float32] = 1 - last[:, -1] / (steps + other_steps)
    return found


def _costs(query: NDArray[np.integer], others: NDArray[np.integer], units: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, W, W') costs of each window with each other window."""
    asked = (units[query.ravel()] @ units.T).reshape(*query.shape, -1)  # (W, S, K)
    cells = np.arange(query.shape[1])
    alike = asked[:, cells, others].mean(-1)  # (W, n, W')
    found: NDArray[np.float32] = 1 - alike.transpose(1, 0, 2)
    return found
