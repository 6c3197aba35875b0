"""Metrics of action recognition as torchmetrics objects. Their states are sums, so results are exact under any number of processes.

Every metric takes ``scores`` (B, A) and ``labels`` (B,) int64. A row of scores holds probabilities (in [0, 1], summing to one) or any
logits, such as label log-likelihoods. Both are normalised over the A classes. Clips labelled -1 (unknown) are not counted.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassStatScores

UNKNOWN = -1
"""The label of a clip with unknown action, and the code number of a token without a code."""


def log_probabilities(scores: Tensor) -> Tensor:
    """Normalise scores over the classes, row by row: (B, A) probabilities or logits -> (B, A) float32 log-probabilities, all <= 0."""
    scores = scores.float()
    total = scores.sum(-1, keepdim=True)
    # The tolerance covers probabilities rounded to bfloat16. Positive logits that sum to one within 1 % do not occur by chance.
    are_probabilities = (scores >= 0).all(-1, keepdim=True) & ((total - 1).abs() < 0.01)
    safe = torch.where(are_probabilities, scores / total, torch.ones_like(scores))
    return torch.where(are_probabilities, safe.clamp_min(torch.finfo(torch.float32).tiny).log(), scores.log_softmax(-1))


def mean_over_views(log_probs: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Average the probabilities of a clip's views, which are adjacent rows.

    Args:
        log_probs: (B, A) log-probabilities, which also represent probabilities too small for a float.
        clips: (B,) the clip of each row.

    Returns:
        (C, A) the logarithm of the mean, one row per clip, and (C,) the position of each clip's first row.
    """
    _, place, count = torch.unique_consecutive(clips, return_inverse=True, return_counts=True)
    lowest = log_probs.new_full((len(count), log_probs.shape[1]), torch.finfo(log_probs.dtype).min)
    top = lowest.scatter_reduce(0, place[:, None].expand_as(log_probs), log_probs, "amax")
    total = torch.zeros_like(top).index_add(0, place, (log_probs - top[place]).exp())
    return top + (total / count[:, None]).log(), count.cumsum(0) - count


class ClipMean(Metric):
    """Base of the metrics that are the mean over clips of one number per clip."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: scores (B, A), labels (B,)."""
        known = labels != UNKNOWN
        values = self.per_clip(log_probabilities(scores), labels.clamp_min(0))
        self.total += values.masked_fill(~known, 0.0).sum()
        self.count += known.sum()

    def compute(self) -> Tensor:
        """The mean over all labelled clips; nan if there are none."""
        return self.total / self.count

    @abstractmethod
    def per_clip(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """The number of each clip: log-probabilities (B, A), labels (B,) in [0, A) -> (B,)."""


class NegativeLogLikelihood(ClipMean):
    """Mean of -log P(label), in nats; a uniform guess scores log A."""

    higher_is_better = False

    def per_clip(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """See ``ClipMean``."""
        return -log_probs.gather(-1, labels[:, None]).squeeze(-1)


class BrierScore(ClipMean):
    """Mean squared distance of the probabilities from the one-hot label, summed over classes, in [0, 2] (Brier 1950)."""

    higher_is_better = False

    def per_clip(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """See ``ClipMean``."""
        probs = log_probs.exp()
        return probs.square().sum(-1) - 2 * probs.gather(-1, labels[:, None]).squeeze(-1) + 1


class MeanClassAccuracy(MulticlassStatScores):
    """Top-1 accuracy within each class, averaged over the classes that occur among the labels.

    torchmetrics' ``macro`` also counts a class that is predicted but is no clip's label, as zero. The average of a test set without
    some classes would then depend on the errors. Here, only the labels decide which classes count.
    """

    higher_is_better = True

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None, ignore_index=UNKNOWN, validate_args=False)

    def compute(self) -> Tensor:
        """Mean over the classes among the labels, in [0, 1]; nan without a label."""
        counts = super().compute()  # (A, 5): true and false positives, true and false negatives, clips
        correct, count = counts[:, 0], counts[:, 4]
        return (correct / count)[count > 0].mean()


class ExpectedCalibrationError(Metric):
    """Mean distance between confidence and accuracy over equal-width confidence bins (Guo et al. 2017), in [0, 1].

    The metric of torchmetrics keeps every clip's confidence; this one keeps three sums per bin.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = False
    confidence: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("confidence", torch.zeros(bins), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add a batch: scores (B, A), labels (B,)."""
        known = labels != UNKNOWN
        confidence, guess = log_probabilities(scores).exp().max(-1)
        rows = (confidence * self.bins).long().clamp(0, self.bins - 1)
        self.confidence.index_add_(0, rows, confidence * known)
        self.correct.index_add_(0, rows, (known & (guess == labels)).long())
        self.count.index_add_(0, rows, known.long())

    def compute(self) -> Tensor:
        """Sum over bins of |confidence - accuracy|, weighted by the bin's share of the clips."""
        return (self.confidence - self.correct).abs().sum() / self.count.sum()


def action_metrics(num_classes: int) -> MetricCollection:
    """The metrics of every recogniser of A actions.

    Args:
        num_classes: A, at least 2.

    Returns:
        A collection with ``top1``, ``top5`` (top-A where A < 5), ``mean_class_accuracy``, ``ece``, ``brier`` and ``nll``.
    """
    return MetricCollection(
        {
            "top1": MulticlassAccuracy(num_classes, average="micro", ignore_index=UNKNOWN),
            "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes), ignore_index=UNKNOWN),
            "mean_class_accuracy": MeanClassAccuracy(num_classes),
            "ece": ExpectedCalibrationError(),
            "brier": BrierScore(),
            "nll": NegativeLogLikelihood(),
        },
        # Groups are formed by equal states after the first batch. If top-1 and top-5 agree on it, they would stay merged.
        compute_groups=False,
    )


def confusion(num_classes: int) -> MulticlassConfusionMatrix:
    """Counts of clips, (A, A) int64: row = label, column = most likely class."""
    return MulticlassConfusionMatrix(num_classes, ignore_index=UNKNOWN)
