"""Where a training goes on: Lightning's loop counters, put right before they are loaded.

A checkpoint that was written when an epoch ended is understood only where ``max_epochs`` ends a training: with ``max_steps`` Lightning
counts that epoch twice. One written between two optimiser steps would lose the gradients gathered so far, and one written with another
number of processes, or of clips at once, counts in other units. All three are brought into the form of a checkpoint that was written after
an optimiser step with the settings of now.
"""

from __future__ import annotations

from typing import Any


def adjust_loop_counters(loop: dict[str, Any], clips: int, global_micro_batch: int, now: int) -> None:
    """Change the counters of a checkpoint in place.

    Args:
        loop: State of the fit loop, in ``checkpoint["loops"]``.
        clips: Those of the epoch that all processes together have learned from; 0 when an epoch has ended.
        global_micro_batch: Clips that all processes together took in one pass when the checkpoint was written.
        now: ... and now.
    """
    epoch, batch = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    ended, passed = batch["is_last_batch"], batch["current"]["processed"]
    if epoch["current"]["processed"] > epoch["current"]["completed"]:  # by a hook at the end of an epoch, or of one that max_steps cut
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
