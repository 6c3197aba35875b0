"""Temperature scaling (Guo et al. 2017): one number, fitted on validation people, by which probabilities become neither too sure nor too
timid. It never changes which action is the likeliest.

It divides the logarithms of a clip's probabilities, after these are averaged over the clip's views (so that it cannot change the
likeliest action there either), which are then normalised again. With one view that is the softmax of the scores over T.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from vtlvlm.metrics.actions import UNKNOWN, BrierScore, ExpectedCalibrationError, NegativeLogLikelihood

LIMIT = 100.0
"""Temperatures are sought in [1 / LIMIT, LIMIT]"""


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature of the least negative log-likelihood.

    A normal prior of deviation one on log T counts about as much as one clip: without it a handful of clips that are all recognised would
    ask for T = 0. Deterministic: a bounded search in float64.

    Args:
        scores: (n, A) logits or log-probabilities.
        labels: (n,) int64; clips labelled -1, and rows that are not finite, are left out.

    Returns:
        T in [1/100, 100]; 1.0 without a clip.
    """
    scores, labels = scores.detach().double().cpu(), labels.cpu()
    used = (labels != UNKNOWN) & torch.isfinite(scores).all(1)
    scores, labels = scores[used], labels[used]
    if not len(labels):
        return 1.0

    def cost(logarithm: float) -> float:
        return float(F.cross_entropy(scores * math.exp(-logarithm), labels, reduction="sum")) + logarithm**2 / 2

    bound = math.log(LIMIT)
    return math.exp(minimize_scalar(cost, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-6}).x)


class FittedTemperature(Metric):
    """The temperature for everything it has seen: it keeps all scores (n, A), and gathers them, so that the number of processes and how
    the clips are divided over them make no difference.
    """

    is_differentiable = False
    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: logits or log-probabilities (B, A), labels (B,)."""
        self.scores.append(scores.detach().float())
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        """``temperature``, and ``nll_calibrated``, the mean negative log-likelihood at it, in nats."""
        scores, labels = (torch.cat(column) if isinstance(column, list) else column for column in (self.scores, self.labels))
        temperature = fit_temperature(scores, labels)
        nll = F.cross_entropy(scores.double().cpu() / temperature, labels.cpu(), ignore_index=UNKNOWN)
        return {"temperature": scores.new_tensor(temperature), "nll_calibrated": nll.to(scores)}


def calibration_metrics() -> MetricCollection:
    """What a temperature changes: ``ece``, ``brier`` and ``nll``; of scores over T, (B, A), and labels (B,)."""
    return MetricCollection(
        {"ece": ExpectedCalibrationError(), "brier": BrierScore(), "nll": NegativeLogLikelihood()}, compute_groups=False
    )
