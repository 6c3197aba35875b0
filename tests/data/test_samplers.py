"""Orders of clips and views, divided over ranks."""

import numpy as np

from vtlvlm.data.samplers import ExactSampler, TrainSampler


def test_train_sampler_divides_an_epoch_over_ranks() -> None:
    clips, views = np.arange(100, 111), np.full(11, 3)
    ranks = [TrainSampler(clips, views, seed=1, rank=rank, world=2) for rank in range(2)]
    seen = [list(sampler) for sampler in ranks]
    assert [len(items) for items in seen] == [5, 5] == [len(sampler) for sampler in ranks]
    everything = seen[0] + seen[1]
    assert len({clip for clip, _ in everything}) == 10
    assert {view for _, view in everything} == {0, 1, 2}
    assert list(ranks[0]) == seen[0]
    ranks[0].set_epoch(1)
    assert list(ranks[0]) != seen[0]
    assert [len(list(TrainSampler(clips[:1], views, seed=0, rank=rank, world=2))) for rank in range(2)] == [1, 1]


def test_exact_sampler_repeats_nothing() -> None:
    parts = [list(ExactSampler(np.arange(13), np.zeros(13, dtype=int), rank=rank, world=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [7, 6]
    assert sorted(clip for part in parts for clip, _ in part) == list(range(13))
