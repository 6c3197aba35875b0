"""Divides a batch: over the processes, and over the passes that each process makes before an optimiser step."""

from __future__ import annotations

from vtlvlm.errors import UsageError

DECODED = 8
"""Clips of video that an evaluation decodes at once if no setting says how many. 64 frames of 224 x 224 pixels are 10 MB"""


def share_of(batch: int, world: int) -> int:
    """Clips of a batch that each process gets.

    Args:
        batch: Clips of an optimiser step, over all processes.
        world: Number of processes.

    Raises:
        UsageError: The processes cannot have equal shares.
    """
    if batch % world:
        raise UsageError(
            f"data.batch_size={batch} is not a multiple of the {world} processes: set --data.batch_size {-(-batch // world) * world}, or "
            "start another number of processes (--trainer.devices, --trainer.num_nodes)"
        )
    return batch // world


def micro_batch(batch: int, most: int | None, world: int) -> int:
    """Clips that a process takes at once: the largest number up to ``most`` that divides the process's share of a batch.

    An evaluation may have processes that do not divide the batch. It takes ``most``, or the share rounded down if that is less.

    Args:
        batch: Clips of an optimiser step, over all processes.
        most: Largest number of clips at once; None for the whole share.
        world: Number of processes.
    """
    share = max(1, batch // world)
    largest = share if most is None else min(most, share)
    return largest if batch % world else next(size for size in range(largest, 0, -1) if share % size == 0)


def passes(batch: int, micro: int, world: int, clips: int) -> int:
    """Passes that each process makes before an optimiser step.

    Args:
        batch: Clips of an optimiser step, over all processes.
        micro: Clips that one process takes at once; from :func:`micro_batch`, or the whole share.
        world: Number of processes.
        clips: Number of training clips.

    Raises:
        UsageError: The processes cannot have equal shares; or there are fewer clips than a batch, which takes several passes.
    """
    count = share_of(batch, world) // micro
    if count > 1 and clips < batch:
        raise UsageError(
            f"data.batch_size={batch} in {count} passes, but the split has only {clips} training clips: set --data.batch_size "
            f"{max(1, clips // world) * world} or lower"
        )
    return count
