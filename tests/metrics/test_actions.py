"""Metrics against hand-computed values."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from vtlvlm.metrics.actions import (
    ExpectedCalibrationError,
    MeanClassAccuracy,
    action_metrics,
    confusion,
    log_probabilities,
    mean_over_views,
)

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
LABELS = torch.tensor([0, 1, 1, 0])
"""Right, wrong, right, wrong; class 2 is predicted once and never a label."""


def test_action_metrics_by_hand() -> None:
    metrics = action_metrics(3)
    metrics.update(PROBS, LABELS)
    values = metrics.compute()
    assert values["top1"] == pytest.approx(0.5)
    assert values["top5"] == 1.0  # three classes: top-3
    assert values["mean_class_accuracy"] == pytest.approx(0.5)  # class 0: 1/2, class 1: 1/2, class 2 does not occur
    assert values["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.8) + math.log(0.2)) / 4)
    # (.3²+.2²+.1²) + (.6²+.7²+.1²) + (.1²+.2²+.1²) + (.8²+.2²+.6²), over 4
    assert values["brier"] == pytest.approx((0.14 + 0.86 + 0.06 + 1.04) / 4, abs=1e-6)
    # 15 bins: 0.7 and 0.6 (twice) and 0.8 are in bins 10, 9, 12: |0.7-1| + |1.2-0| + |0.8-1|, over 4
    assert values["ece"] == pytest.approx((0.3 + 1.2 + 0.2) / 4, abs=1e-6)


def test_logits_and_probabilities_give_the_same_figures() -> None:
    from_probs, from_logits = action_metrics(3), action_metrics(3)
    from_probs.update(PROBS, LABELS)
    from_logits.update(PROBS.log() - 40.0, LABELS)  # label log-likelihoods that share a far-off constant
    for name, value in from_probs.compute().items():
        assert from_logits.compute()[name] == pytest.approx(float(value), abs=1e-5), name


def test_log_probabilities_row_by_row() -> None:
    mixed = torch.tensor([[0.5, 0.5, 0.0], [2.0, 2.0, 2.0]])
    out = log_probabilities(mixed).exp()
    torch.testing.assert_close(out, torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    rounded = torch.softmax(torch.randn(4, 120), -1).bfloat16()
    torch.testing.assert_close(log_probabilities(rounded).exp(), rounded.float(), atol=1e-3, rtol=1e-2)


def test_top5_stays_apart_from_top1_when_the_first_batch_agrees() -> None:
    metrics = action_metrics(8)
    metrics.update(torch.eye(8), torch.arange(8))  # both 1.0
    metrics.update(torch.arange(8.0).expand(8, 8), torch.arange(8))  # always guesses 7 > 6 > 5 > 4 > 3
    values = metrics.compute()
    assert values["top1"] == pytest.approx(9 / 16)
    assert values["top5"] == pytest.approx(13 / 16)


def test_unknown_labels_are_not_counted() -> None:
    metrics, matrix = action_metrics(3), confusion(3)
    scores = torch.cat([PROBS, torch.tensor([[0.9, 0.05, 0.05]])])
    labels = torch.cat([LABELS, torch.tensor([-1])])
    reference = action_metrics(3)
    reference.update(PROBS, LABELS)
    metrics.update(scores, labels)
    for name, value in reference.compute().items():
        assert metrics.compute()[name] == pytest.approx(float(value), abs=1e-6), name
    matrix.update(scores, labels)
    assert matrix.compute().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_mean_class_accuracy_weighs_classes_not_clips() -> None:
    metric = MeanClassAccuracy(4)
    metric.update(torch.eye(4)[torch.tensor([0, 0, 0, 1, 3])], torch.tensor([0, 0, 0, 0, 1]))
    assert metric.compute() == pytest.approx((3 / 4 + 0) / 2)


def test_calibration_error_equals_torchmetrics() -> None:
    torch.manual_seed(0)
    probs, labels = torch.softmax(2 * torch.randn(500, 12), -1), torch.randint(12, (500,))
    ours, theirs = ExpectedCalibrationError(15), MulticlassCalibrationError(12, n_bins=15, norm="l1")
    for part in range(0, 500, 128):
        ours.update(probs[part : part + 128], labels[part : part + 128])
    theirs.update(probs, labels)
    assert ours.compute() == pytest.approx(float(theirs.compute()), abs=1e-5)


def test_two_processes_with_uneven_halves_give_the_figures_of_one() -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(101, 7), torch.randint(7, (101,))
    for name, metric in action_metrics(7).items():
        whole, first, second = metric.clone(), metric.clone(), metric.clone()
        whole.update(scores, labels)
        first.update(scores[:64], labels[:64])
        second.update(scores[64:], labels[64:])
        first.merge_state(second)  # the same reduction as between processes
        assert float(first.compute()) == pytest.approx(float(whole.compute()), abs=1e-6), name


def test_views_of_a_clip_are_averaged() -> None:
    rows = torch.tensor([[0.2, 0.8], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5], [0.1, 0.9]])
    mean, first = mean_over_views(rows.log(), torch.tensor([7, 7, 3, 4, 4]))
    torch.testing.assert_close(mean.exp(), torch.tensor([[0.4, 0.6], [1.0, 0.0], [0.3, 0.7]]))
    assert first.tolist() == [0, 2, 3]


def test_unlikely_classes_keep_their_logarithms_over_views() -> None:
    """exp(-200) is no float32; of one view the row is unchanged to the bit, of two it is the mean all the same."""
    rows = torch.tensor([[0.0, -200.0], [0.0, -200.0], [0.0, -199.0]])
    mean, _ = mean_over_views(rows, torch.tensor([1, 2, 2]))
    assert torch.equal(mean[0], rows[0])
    assert mean[1, 1] == pytest.approx(-200 + math.log((1 + math.e) / 2), abs=1e-4)
