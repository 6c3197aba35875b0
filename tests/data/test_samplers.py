"""Orders of clips and views, divided over ranks."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_the_batches_hold_the_same_clips_for_any_number_of_processes(epoch: int) -> None:
    """103 clips make 12 whole batches of 8; pass j of all processes together is a part of one of them."""
    clips, views, batch = np.arange(103), np.full(103, 4), 8
    found = []
    for world in (1, 2, 4, 8):
        samplers = [TrainSampler(clips, views, seed=3, rank=rank, world=world, batch=batch) for rank in range(world)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert [len(share) for share in shares] == [len(samplers[0])] * world == [96 // world] * world
        for micro in (1, 2, 4, 8):
            if micro * world > batch:
                continue
            passes = [[item for share in shares for item in share[at : at + micro]] for at in range(0, 96 // world, micro)]
            assert {len(items) for items in passes} == {micro * world}
            together = batch // (micro * world)
            found.append([{item for items in passes[at : at + together] for item in items} for at in range(0, len(passes), together)])
    assert len(found[0]) == 12
    assert all(batches == found[0] for batches in found)


def test_each_epoch_leaves_out_other_clips() -> None:
    sampler = TrainSampler(np.arange(11), np.ones(11, dtype=int), seed=0, batch=4)
    read = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        read.append({clip for clip, _ in sampler})
    assert {len(clips) for clips in read} == {8}
    assert len({frozenset(clips) for clips in read}) > 10
    assert set.union(*read) == {*range(11)}


def test_a_set_smaller_than_a_batch_keeps_its_clips() -> None:
    clips, views = np.arange(5), np.ones(5, dtype=int)
    assert sorted(clip for clip, _ in TrainSampler(clips, views, seed=0, batch=8)) == [*range(5)]
    ranks = [list(TrainSampler(clips, views, seed=0, rank=rank, world=2, batch=8)) for rank in range(2)]
    assert [len(items) for items in ranks] == [2, 2]
    assert len({clip for items in ranks for clip, _ in items}) == 4


def test_exact_sampler_repeats_nothing() -> None:
    parts = [list(ExactSampler(np.arange(13), np.zeros(13, dtype=int), rank=rank, world=2)) for rank in range(2)]
    assert [len(part) for part in parts] == [7, 6]
    assert sorted(clip for part in parts for clip, _ in part) == list(range(13))
