"""Temperature scaling (Guo et al. 2017): one number, fitted on validation people, corrects over- or underconfident probabilities.

The temperature T divides the logarithms of a clip's probabilities, which are then normalised again. They are averaged over the clip's
views before, so T never changes the most likely action. With one view, the result is the softmax of the scores over T.
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
"""The search covers temperatures in [1 / LIMIT, LIMIT]"""


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood.

    A normal prior with deviation one on log T counts about as much as one clip. Without it, a few clips that are all recognised would
    yield T = 0. The search is bounded, in float64, and deterministic.

    Args:
        scores: (n, A) logits or log-probabilities.
        labels: (n,) int64. Clips labelled -1 and rows with non-finite scores are left out.

    Returns:
        T in [1/100, 100]; 1.0 without clips.
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
    """The temperature of all clips. It keeps and gathers all scores (n, A), so it does not depend on how processes divide the clips."""

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
        """``temperature``, and ``nll_calibrated``, the mean negative log-likelihood at this temperature, in nats."""
        scores, labels = (torch.cat(column) if isinstance(column, list) else column for column in (self.scores, self.labels))
        temperature = fit_temperature(scores, labels)
        nll = F.cross_entropy(scores.double().cpu() / temperature, labels.cpu(), ignore_index=UNKNOWN)
        return {"temperature": scores.new_tensor(temperature), "nll_calibrated": nll.to(scores)}


def calibration_metrics() -> MetricCollection:
    """The metrics that depend on the temperature: ``ece``, ``brier`` and ``nll`` of scores over T, (B, A), and labels (B,)."""
    return MetricCollection(
        {"ece": ExpectedCalibrationError(), "brier": BrierScore(), "nll": NegativeLogLikelihood()}, compute_groups=False
    )
