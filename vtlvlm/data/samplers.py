"""Orders clips and views: by a seed, the same for any number of workers, and divided over ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Item = tuple[int, int]
"""Row of the index, and view."""


class EpochProgress(NamedTuple):
    """The position of a training within an epoch."""

    clips: int
    """Clips that all processes together have consumed"""
    global_micro_batch: int
    """Clips that all processes together take in one pass"""


class TrainSampler(Sampler[Item]):
    """Whole batches of clips in random order, each clip at most once per epoch. Order and views depend on (seed, epoch) alone.

    An epoch leaves out the last clips of its order that do not fill a batch; they differ from epoch to epoch. The k-th batch holds the same
    clips for any number of processes. If there are fewer clips than a batch holds, an epoch leaves out only those that the processes cannot
    share equally.

    Args:
        clips: (n,) rows of the index.
        views: (n,) number of stored views of each clip; one of them is drawn.
        seed: Seed of orders and views.
        rank: Number of this process.
        world: Number of processes. They take turns in the order.
        batch: Clips of an optimiser step, over all processes.

    Attributes:
        done: Clips to skip at the beginning of the next epoch, over all ranks: an interrupted training has consumed them. A multiple of
            ``world``.
    """

    def __init__(
        self, clips: NDArray[np.int64], views: NDArray[np.int64], *, seed: int, rank: int = 0, world: int = 1, batch: int = 1
    ) -> None:
        self.clips, self.views = clips, views
        self.seed, self.rank, self.world, self.epoch, self.done = seed, rank, world, 0, 0
        whole = math.lcm(batch, world)
        unit = whole if len(clips) >= whole else world
        self.used = max(unit, len(clips) // unit * unit)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order. The trainer calls this before every epoch, also after resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.used // self.world

    def __iter__(self) -> Iterator[Item]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.clips))
        views = (generator.random(len(order)) * self.views[order]).astype(np.int64)
        done, self.done = self.done, 0
        mine = np.arange(self.rank + done, self.used, self.world) % len(order)  # fewer clips than processes: some come twice
        return zip(self.clips[order[mine]].tolist(), views[mine].tolist(), strict=True)


class ExactSampler(Sampler[Item]):
    """Every item exactly once over all ranks, in order. No item is repeated to make ranks equal.

    Args:
        clips: (n,) rows of the index.
        views: (n,) view of each item.
        together: Number of successive items that go to the same rank (a clip's test views); divides n.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(self, clips: NDArray[np.int64], views: NDArray[np.int64], *, together: int = 1, rank: int = 0, world: int = 1) -> None:
        self.clips, self.views = (column.reshape(-1, together)[rank::world].reshape(-1) for column in (clips, views))

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Item]:
        return zip(self.clips.tolist(), self.views.tolist(), strict=True)
