"""Against every pair, and by hand."""

import numpy as np
import pytest

from vtlvlm.metrics.open_set import auroc, false_acceptance


def test_auroc_counts_pairs() -> None:
    generator = np.random.default_rng(0)
    known, unknown = generator.integers(0, 6, 40).astype(float), generator.integers(-2, 5, 30).astype(float)
    pairs = [1.0 if one > other else 0.5 if one == other else 0.0 for one in known for other in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs))
    assert auroc(np.array([2.0, 3.0]), np.array([1.0])) == 1.0
    assert auroc(np.array([1.0]), np.array([2.0, 3.0])) == 0.0


def test_false_acceptance_by_hand() -> None:
    known = np.arange(1.0, 21.0)  # 95 % of 20 are 19: those from 2
    assert false_acceptance(known, np.array([0.0, 1.9, 2.0, 30.0])) == 0.5
    assert false_acceptance(known, np.array([0.5, 1.0]), acceptance=1.0) == 0.5
    for seed in range(20):
        known = np.random.default_rng(seed).integers(0, 5, 33).astype(float)
        thresholds = [least for least in np.unique(known) if np.mean(known >= least) >= 0.95]
        assert false_acceptance(known, known) == pytest.approx(np.mean(known >= max(thresholds)))
