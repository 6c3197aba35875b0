"""Which clips and views come in which order: seeded, the same for any number of workers, divided over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Item = tuple[int, int]
"""Row of the index and view."""


class EpochProgress(NamedTuple):
    """How far into an epoch a training is."""

    clips: int
    """that all processes together have learned from"""
    global_micro_batch: int
    """that they take in one pass"""


class TrainSampler(Sampler[Item]):
    """All clips once an epoch in an order, and with views, that depend on (seed, epoch) alone. Every rank gets equally many.

    Args:
        clips: (n,) rows of the index.
        views: (n,) number of stored views of each clip, of which one is drawn.
        seed: Seed of orders and views.
        rank: Number of this process.
        world: Number of processes. The n mod world clips at the end of an epoch's order are left out of that epoch.

    Attributes:
        done: Clips at the beginning of the next epoch's order, over all ranks, that are left out: training has had them before it was
            interrupted. A multiple of ``world``.
    """

    def __init__(self, clips: NDArray[np.int64], views: NDArray[np.int64], *, seed: int, rank: int = 0, world: int = 1) -> None:
        self.clips, self.views = clips, views
        self.seed, self.rank, self.world, self.epoch, self.done = seed, rank, world, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the trainer calls this before every epoch, also after resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self.clips) // self.world)

    def __iter__(self) -> Iterator[Item]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = np.resize(generator.permutation(len(self.clips)), len(self) * self.world)
        views = (generator.random(len(order)) * self.views[order]).astype(np.int64)
        done, self.done = self.done, 0
        mine = slice(self.rank + done, None, self.world)
        return zip(self.clips[order][mine].tolist(), views[mine].tolist(), strict=True)


class ExactSampler(Sampler[Item]):
    """Every item once over all ranks together, in order: nothing is repeated to make ranks equal.

    Args:
        clips: (n,) rows of the index.
        views: (n,) the view of each item.
        together: Items in a row that belong together (a clip's test views) and go to the same rank; divides n.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(self, clips: NDArray[np.int64], views: NDArray[np.int64], *, together: int = 1, rank: int = 0, world: int = 1) -> None:
        self.clips, self.views = (column.reshape(-1, together)[rank::world].reshape(-1) for column in (clips, views))

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Item]:
        return zip(self.clips.tolist(), self.views.tolist(), strict=True)
