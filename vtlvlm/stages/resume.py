"""Corrects Lightning's loop counters before they are loaded, so that training resumes at the right place.

Three checkpoints would resume wrongly. With ``max_steps``, Lightning counts a finished epoch twice when it resumes from an end-of-epoch
checkpoint. A checkpoint between two optimiser steps would lose the gradients accumulated so far. A checkpoint of another number of
processes, or of clips in a batch, counts in other units. All three become a checkpoint after an optimiser step with the present settings.
"""

from __future__ import annotations

from typing import Any


def adjust_loop_counters(loop: dict[str, Any], clips: int, global_micro_batch: int, now: int) -> None:
    """Correct the counters of a checkpoint in place.

    Args:
        loop: State of the fit loop, in ``checkpoint["loops"]``.
        clips: Number of the epoch's clips that all processes together have learned from; 0 when an epoch has ended.
        global_micro_batch: Number of clips in one pass of all processes together, when the checkpoint was written.
        now: The same number now.
    """
    epoch, batch = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    ended, passed = batch["is_last_batch"], batch["current"]["processed"]
    if epoch["current"]["processed"] > epoch["current"]["completed"]:  # written by a hook at an epoch's end, or where max_steps ended it
        for counts in (epoch["current"], epoch["total"]):
            counts["processed"] = counts["completed"] = counts["processed" if ended else "completed"]
        batch["is_last_batch"] = False
    elif ended:  # Lightning ends the epoch
        return
    left = clips // now
    if left == passed and global_micro_batch == now:
        return
    earlier = batch["total"]["processed"] - passed * (not ended)
    batch["current"] = dict.fromkeys(batch["current"], left)
    batch["total"] = dict.fromkeys(batch["total"], round(earlier * global_micro_batch / now) + left)
