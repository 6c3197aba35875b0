"""Log lines of stage 2 before it starts: the trained parameters, the number of clips, and the limits of its results."""

from __future__ import annotations

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from vtlvlm.lvlm.reasoner import EventReasoner

FEW_CLIPS = 30
"""With fewer training clips of an action, a linear probe is often as good as the language model (docs/results.md, the learning curve)"""


def say_trained(reasoner: EventReasoner, projector: str) -> None:
    """Log the trained parameters of adapter and projector, and whether the projector was never trained.

    Args:
        reasoner: Built.
        projector: ``trained``, ``pretrained`` or ``untrained``. Results of an untrained one do not measure LLaVA.
    """
    for count in reasoner.trainable_parameters():
        rank_zero_info(str(count))
    if projector == "untrained":
        rank_zero_info(f"{reasoner.llava.path}: its projector was composed and never trained, so the language model cannot read the events")


def say_few_clips(labels: NDArray[np.int64], num_classes: int) -> None:
    """Log a line if an action has so few training clips that a linear probe is often as good.

    Args:
        labels: (n,) of the training clips.
        num_classes: A.
    """
    fewest = int(np.bincount(labels, minlength=num_classes).min())
    if fewest < FEW_CLIPS:
        rank_zero_info(
            f"{len(labels)} training clips, {fewest} of the rarest action: with fewer than {FEW_CLIPS} of each, a linear probe is often as "
            "good; `vtlvlm test` compares both, and `vtlvlm probe --export` makes the probe a recogniser"
        )
