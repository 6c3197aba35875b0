"""The alignment of two sentences, by hand and against every possible one."""

from functools import cache

import numpy as np
import pytest

from vtlvlm.app.comparing import align


def test_a_sentence_and_itself() -> None:
    one = np.arange(12).reshape(3, 4)
    found = align(one, one)
    assert found.pairs == [(0, 0, 1.0), (1, 1, 1.0), (2, 2, 1.0)]
    assert found.likeness == 1
    assert found.shared == [(code, 1, 1) for code in range(12)]


def test_by_hand() -> None:
    """The one's windows 0 and 2 are the other's 1 and 2; half of the cells of window 2 agree."""
    one = np.array([[1, 1], [5, 6], [2, 3]])
    other = np.array([[9, 9], [1, 1], [2, 8], [7, 7]])
    found = align(one, other)
    assert found.pairs == [(0, 1, 1.0), (2, 2, 0.5)]
    assert found.likeness == pytest.approx(1.5 / 4)
    assert found.shared == [(1, 2, 2), (2, 1, 1)]


def test_nothing_in_common() -> None:
    assert align(np.zeros((3, 2), np.int64), np.ones((2, 2), np.int64)) == ([], [], 0.0)


def test_order_counts() -> None:
    """Swapped windows cannot both have a partner."""
    one, other = np.array([[1], [2]]), np.array([[2], [1]])
    found = align(one, other)
    assert len(found.pairs) == 1
    assert found.likeness == 0.5


def test_no_alignment_is_better() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        one, other = (random.integers(0, 3, (random.integers(1, 7), 2)) for _ in range(2))
        share = (one[:, None] == other[None]).mean(-1)

        @cache
        def best(i: int, j: int, share: tuple[tuple[float, ...], ...] = tuple(map(tuple, share))) -> float:
            if i == len(share) or j == len(share[0]):
                return 0.0
            return max(best(i + 1, j), best(i, j + 1), share[i][j] + best(i + 1, j + 1))

        found = align(one, other)
        assert sum(part for *_, part in found.pairs) == pytest.approx(best(0, 0))
        assert all(part == share[i, j] > 0 for i, j, part in found.pairs)
        for (i, j, _), (k, m, _) in zip(found.pairs, found.pairs[1:], strict=False):
            assert i < k
            assert j < m
