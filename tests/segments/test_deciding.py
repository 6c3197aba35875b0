"""The best path by trying all paths; the two thresholds by hand."""

from itertools import pairwise, product

import numpy as np
import pytest

from vtlvlm.errors import UsageError
from vtlvlm.segments.deciding import Hysteresis, best_path, tidied
from vtlvlm.segments.timeline import NONE


@pytest.mark.parametrize("switch", [0.0, 0.4, 1.5, 50.0])
def test_the_best_of_all_paths(switch: float) -> None:
    random = np.random.default_rng(int(10 * switch))
    for _ in range(20):
        scores = np.log(random.dirichlet(np.ones(3), 6))

        def worth(path: tuple[int, ...], scores: np.ndarray = scores) -> float:
            changes = sum(a != b for a, b in pairwise(path))
            return sum(scores[step, label] for step, label in enumerate(path)) - switch * changes

        best = max(product(range(3), repeat=6), key=worth)
        found = tuple(best_path(scores, switch).tolist())
        assert worth(found) == pytest.approx(worth(best))
    assert best_path(np.zeros((0, 3)), switch).tolist() == []


def test_a_price_below_zero_is_refused() -> None:
    for price in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="the price of a change"):
            best_path(np.zeros((2, 2)), price)


def test_two_thresholds_by_hand() -> None:
    decide = Hysteresis(on=0.6, off=0.4, steps=2)
    line = [(0.9, 0.1), (0.5, 0.5), (0.7, 0.3), (0.8, 0.2), (0.5, 0.5), (0.45, 0.55), (0.3, 0.7), (0.3, 0.7), (0.5, 0.5)]
    assert [decide(np.array(p)) for p in line] == [NONE, NONE, NONE, 0, 0, 0, NONE, 1, 1]
    decide.forget()
    assert decide(np.array([0.9, 0.1])) == NONE
    with pytest.raises(UsageError, match="off from 0 to on"):
        Hysteresis(on=0.3, off=0.5)


def test_short_gaps_close_and_short_segments_go() -> None:
    steps = np.array([0, 0, NONE, 0, NONE, NONE, 1, NONE, 2, 2, 2])
    assert tidied(steps, shortest=2, gap=1).tolist() == [0, 0, 0, 0, NONE, NONE, NONE, NONE, 2, 2, 2]
    assert tidied(steps, shortest=1, gap=0).tolist() == steps.tolist()
