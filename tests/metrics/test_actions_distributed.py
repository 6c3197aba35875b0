"""Thirteen clips over two gloo processes, seven and six: every figure is that of one process, and no clip is counted twice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gloo import in_processes
from torchmetrics import MeanMetric

from vtlvlm.data.samplers import ExactSampler
from vtlvlm.metrics.actions import action_metrics, confusion

RANKS, CLIPS, CLASSES, BATCH = 2, 13, 7, 2


def figures(rank: int, world: int) -> dict[str, torch.Tensor]:
    """All figures over this rank's share, in batches; over all shares where there are several processes."""
    generator = torch.Generator().manual_seed(3)
    scores, labels = 3 * torch.randn(CLIPS, CLASSES, generator=generator), torch.randint(CLASSES, (CLIPS,), generator=generator)
    mine = [clip for clip, _ in ExactSampler(np.arange(CLIPS), np.zeros(CLIPS, dtype=np.int64), rank=rank, world=world)]
    assert len(mine) == -(-(CLIPS - rank) // world)
    metrics, matrix, mass = action_metrics(CLASSES), confusion(CLASSES), MeanMetric()
    for part in torch.tensor(mine).split(BATCH):
        probabilities = scores[part].softmax(-1)
        metrics.update(probabilities, labels[part])
        matrix.update(probabilities.argmax(-1), labels[part])
        mass.update(probabilities[:, :3].sum(-1).mean(), weight=len(part))  # as the stage logs the in-list mass
    return {**metrics.compute(), "confusion": matrix.compute(), "mass": mass.compute()}


def test_two_processes_count_thirteen_clips(tmp_path: Path) -> None:
    found = in_processes(figures, tmp_path, RANKS, ranks=RANKS)
    alone = figures(0, 1)
    assert set(alone) == {"top1", "top5", "mean_class_accuracy", "ece", "brier", "nll", "confusion", "mass"}
    assert alone["confusion"].sum() == CLIPS
    for own in found:
        assert torch.equal(own["confusion"], alone["confusion"])
        assert {k: float(v) for k, v in own.items() if k != "confusion"} == pytest.approx(
            {k: float(v) for k, v in alone.items() if k != "confusion"}, abs=1e-6
        )
