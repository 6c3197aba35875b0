"""Fused log-probabilities by hand."""

import numpy as np
import pytest

from vtlvlm.metrics.fusion import fused


def test_the_geometric_mean_of_the_streams() -> None:
    one, two = np.log([[0.6, 0.3, 0.1]]), np.log([[0.2, 0.5, 0.3]])
    # square roots of 0.12, 0.15 and 0.03, divided by their sum 0.906915
    assert np.exp(fused([one, two], [1, 1])) == pytest.approx(np.array([[0.381966, 0.427051, 0.190983]]), abs=1e-6)
    # cube roots of 0.6² · 0.2, 0.3² · 0.5 and 0.1² · 0.3, divided by their sum 0.915931
    assert np.exp(fused([one, two], [2, 1])) == pytest.approx(np.array([[0.454201, 0.388336, 0.157463]]), abs=1e-6)
    assert fused([one, two], [0.6, 0.3]) == pytest.approx(fused([one, two], [2, 1]))
    assert fused([one, two], [3, 0]) == pytest.approx(one)


def test_a_constant_of_a_clip_changes_nothing() -> None:
    random = np.random.default_rng(0)
    one, two = random.normal(size=(2, 5, 4))
    for normalise in ("none", "l2"):
        shifted = fused([one + random.normal(size=(5, 1)), two], [0.6, 0.4], normalise)  # type: ignore[arg-type]
        assert shifted == pytest.approx(fused([one, two], [0.6, 0.4], normalise))  # type: ignore[arg-type]


def test_l2_by_hand() -> None:
    one, two = np.array([[3.0, 0.0, -3.0]]), np.array([[0.0, 2.0, -2.0]])
    # Norms are 3√2 and 2√2. The mean of (1, 0, -1)/√2 and (0, 1, -1)/√2 is (1, 1, -2)/√8, times the mean norm 2.5√2: 1.25 (1, 1, -2).
    scores = np.exp([[1.25, 1.25, -2.5]])
    assert np.exp(fused([one, two], [1, 1], "l2")) == pytest.approx(scores / scores.sum())
    assert np.exp(fused([one, one], [1, 4], "l2")) == pytest.approx(np.exp(one) / np.exp(one).sum())


def test_l2_lets_no_stream_win_by_being_sure() -> None:
    sure, unsure = np.log([[0.99, 0.01], [0.5, 0.5]]), np.log([[0.45, 0.55], [0.45, 0.55]])
    assert fused([sure, unsure], [1, 1.1]).argmax(1).tolist() == [0, 1]
    assert fused([sure, unsure], [1, 1.1], "l2").argmax(1).tolist() == [1, 1]
