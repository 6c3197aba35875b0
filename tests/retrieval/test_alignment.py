"""The alignment against its recursion, written out."""

from functools import cache

import numpy as np
import pytest

from vtlvlm.retrieval.alignment import align, directions


def by_recursion(one: np.ndarray, other: np.ndarray, units: np.ndarray) -> float:
    """Cheapest path over the costs of windows, cell by cell; a step in both sentences counts twice."""

    def cost(i: int, j: int) -> float:
        return 1 - float(np.mean([units[a] @ units[b] for a, b in zip(one[i], other[j], strict=True)]))

    @cache
    def path(i: int, j: int) -> float:
        if i < 0 or j < 0:
            return 0.0 if i == j == -1 else np.inf
        return min(path(i - 1, j - 1) + 2 * cost(i, j), path(i - 1, j) + cost(i, j), path(i, j - 1) + cost(i, j))

    return 1 - path(len(one) - 1, len(other) - 1) / (len(one) + len(other))


@pytest.mark.parametrize(("windows", "other_windows", "cells"), [(5, 5, 2), (6, 4, 1), (3, 7, 3), (1, 1, 2), (1, 4, 1), (4, 1, 1)])
def test_it_is_the_recursion(windows: int, other_windows: int, cells: int) -> None:
    rng = np.random.default_rng(windows)
    units = directions(rng.standard_normal((9, 6)))
    query, others = rng.integers(9, size=(windows, cells)), rng.integers(9, size=(8, other_windows, cells))
    expected = [by_recursion(query, other, units) for other in others]
    np.testing.assert_allclose(align(query, others, units), expected, atol=1e-5)


def test_by_hand() -> None:
    """Two codes at right angles, once seen from their mean: cosine -1, so cost 2. The slower sentence 0 0 1 costs
    nothing; 1 0 costs 2 in both of its ends, over four steps."""
    units = directions(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert align(np.array([[0], [1]]), np.array([[[0], [0], [1]]]), units) == pytest.approx([1.0])
    # costs [[2, 0], [0, 2]]: 2·2 down the diagonal and 2·2 again, or 2·2 + 0 + 2 over a corner
    assert align(np.array([[0], [1]]), np.array([[[1], [0]]]), units) == pytest.approx([1 - (2 * 2 + 0 + 2) / 4])


def test_near_codes_cost_little_and_the_common_direction_nothing() -> None:
    table = np.array([[1.0, 0.0], [0.98, 0.2], [-1.0, 0.0], [-0.98, -0.2]]) + 50
    units = directions(table)
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, atol=1e-5)
    equal, near, far = align(np.array([[0], [0]]), np.array([[[0], [0]], [[1], [1]], [[2], [2]]]), units)
    assert equal == pytest.approx(1, abs=1e-5)
    assert equal > near > 0.9 > 0 > far
