"""Temperatures against ones that are known, and against a grid."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gloo import in_processes

from vtlvlm.metrics.calibration import FittedTemperature, calibration_metrics, fit_temperature


def honest(count: int, classes: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores whose softmax is the truth: labels are drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(count, classes, generator=generator)
    return scores, torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_overconfidence_by_a_known_factor_is_found(factor: float) -> None:
    scores, labels = honest(20_000)
    assert fit_temperature(scores * factor, labels) == pytest.approx(factor, rel=0.03)
    shifted = scores * factor - torch.randn(len(scores), 1)  # label log-likelihoods do not sum to one
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(scores * factor, labels), rel=1e-5)


@pytest.mark.parametrize("count", [13, 400])
def test_it_is_the_minimum_of_a_grid(count: int) -> None:
    scores, labels = honest(count, seed=count)
    scores = 4 * scores.double()
    grid = torch.linspace(math.log(0.05), math.log(20), 3001, dtype=torch.float64).exp()
    costs = torch.stack([F.cross_entropy(scores / t, labels, reduction="sum") + t.log() ** 2 / 2 for t in grid])
    assert fit_temperature(scores, labels) == pytest.approx(float(grid[costs.argmin()]), rel=3e-3)


def test_a_handful_of_clips_that_are_all_right_asks_for_a_moderate_temperature() -> None:
    scores = 5 * torch.eye(3)
    found = fit_temperature(scores, torch.arange(3))
    assert 0.3 < found < 1
    assert fit_temperature(scores, torch.tensor([1, 2, 0])) > 2  # and all wrong for a high one


def test_clips_without_label_or_finite_scores_do_not_count() -> None:
    scores, labels = honest(50)
    expected = fit_temperature(scores, labels)
    more = torch.cat([scores, torch.randn(2, 10), torch.full((1, 10), torch.nan)])
    assert fit_temperature(more, torch.cat([labels, torch.tensor([-1, -1, 3])])) == expected
    assert fit_temperature(more[50:], torch.tensor([-1, -1, 3])) == 1.0


def test_the_metric_tells_temperature_and_loss_and_never_another_action() -> None:
    scores, labels = honest(500)
    scores = 3 * scores
    metric = FittedTemperature()
    for part in range(0, 500, 64):
        metric.update(scores[part : part + 64], labels[part : part + 64])
    found = metric.compute()
    temperature = float(found["temperature"])
    assert temperature == pytest.approx(fit_temperature(scores, labels), rel=1e-6)
    assert float(found["nll_calibrated"]) == pytest.approx(float(F.cross_entropy(scores / temperature, labels)), abs=1e-5)
    assert found["nll_calibrated"] < F.cross_entropy(scores, labels)
    before, after = calibration_metrics(), calibration_metrics()
    before.update(scores, labels)
    after.update(scores / temperature, labels)
    assert after.compute()["ece"] < 0.3 * before.compute()["ece"]
    assert torch.equal((scores / temperature).argmax(-1), scores.argmax(-1))
    metric.reset()
    metric.update(*honest(13))
    assert float(metric.compute()["temperature"]) == pytest.approx(fit_temperature(*honest(13)), rel=1e-6)


def work(rank: int) -> dict[str, torch.Tensor]:
    metric = FittedTemperature()
    scores, labels = (column[rank::2] for column in honest(13))  # seven clips and six
    for part in range(0, len(labels), 4):
        metric.update(3 * scores[part : part + 4], labels[part : part + 4])
    return metric.compute()


def test_thirteen_clips_over_two_processes_give_the_temperature_of_one(tmp_path: Path) -> None:
    first, second = in_processes(work, tmp_path)
    assert first == second
    scores, labels = honest(13)
    alone = FittedTemperature()
    alone.update(3 * scores, labels)
    for name, value in alone.compute().items():
        np.testing.assert_allclose(first[name], value, rtol=1e-6)
