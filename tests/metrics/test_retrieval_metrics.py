"""Against torchmetrics, and chance over all orders."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from vtlvlm.metrics.retrieval import CUTS, by_chance, query_score


def test_scores_are_those_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        relevant = rng.random(30) < 0.15
        relevant[rng.integers(30)] = True
        falling, target, indexes = torch.linspace(1, 0.1, 30), torch.from_numpy(relevant), torch.zeros(30, dtype=torch.long)
        found = query_score(relevant)
        assert found.average_precision == pytest.approx(float(RetrievalMAP()(falling, target, indexes=indexes)))
        for cut in CUTS:
            assert found.recall(cut) == bool(RetrievalHitRate(top_k=cut)(falling, target, indexes=indexes))


def test_no_relevant_clip() -> None:
    with pytest.raises(ValueError, match="no relevant clip"):
        query_score(np.zeros(3, np.bool_))


@pytest.mark.parametrize(("relevant", "clips"), [(1, 1), (1, 6), (2, 7), (3, 8), (8, 8)])
def test_chance_is_the_mean_over_all_orders(relevant: int, clips: int) -> None:
    scores = []
    for places in combinations(range(clips), relevant):
        flags = np.zeros(clips, np.bool_)
        flags[list(places)] = True
        scores.append(query_score(flags))
    precision, recalls = by_chance(relevant, clips)
    assert precision == pytest.approx(np.mean([score.average_precision for score in scores]))
    for cut in CUTS:
        assert recalls[cut] == pytest.approx(np.mean([score.recall(cut) for score in scores]))
