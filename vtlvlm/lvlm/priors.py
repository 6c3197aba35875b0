"""How a label's log-likelihood becomes its score, and what scores are relative to.

Long and rare names are unlikely whatever is seen. A model that is trained on the categories unlearns that; for one that is not, and for a
level start, there are corrections. With log P the log-likelihood of a label and n its tokens, its end token included:

========== ============================================================================================================
sum        log P, as eq. 6 has it
mean       log P / n, per token (over-corrects: names win that the language model can complete by itself)
pmi        log P - mean of log P over training clips (domain-conditional PMI, arXiv 2104.08315)
batch_cal  log P - log of the mean over training clips of the label's share in P of all labels (batch calibration, arXiv 2309.17249)
ncc        log P / n - the same after empty events (normalised contextual calibration, arXiv 2511.14385)
========== ============================================================================================================
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ScoreMode = Literal["sum", "mean", "pmi", "batch_cal", "ncc"]
PER_TOKEN = ("mean", "ncc")
FROM_CLIPS = ("pmi", "batch_cal")
"""Modes whose prior comes from training clips; that of ``pmi``, in a model that is not trained, from empty events instead"""
RELATIVE = (*FROM_CLIPS, "ncc")
"""Modes that have a prior"""


class PriorSums(nn.Module):
    """Sums from which a prior follows; those of several processes add up.

    Args:
        mode: One of :data:`RELATIVE`.
        num_classes: A.
    """

    total: Tensor
    """(A,) float64; in float32 the probabilities of unlikely labels vanish"""
    count: Tensor
    """() float64"""

    def __init__(self, mode: ScoreMode, num_classes: int) -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("total", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def add(self, scores: Tensor) -> None:
        """Add clips by their scores without a prior, (b, A): log P, or log P / n where the mode is per token."""
        scores = scores.double()
        terms = scores if self.mode == "pmi" else scores.softmax(-1) if self.mode == "batch_cal" else scores.exp()
        self.total += terms.sum(0)
        self.count += len(scores)

    def solve(self) -> Tensor:
        """(A,) float32 nats, to be subtracted from scores."""
        mean = self.total / self.count
        return (mean if self.mode == "pmi" else mean.clamp(min=torch.finfo(torch.float64).tiny).log()).float()
