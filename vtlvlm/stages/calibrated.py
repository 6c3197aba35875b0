"""Evaluation of a stage that recognises actions: metrics, confusion matrix, and a temperature that validation fits."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from vtlvlm.metrics.actions import action_metrics, confusion, mean_over_views
from vtlvlm.metrics.calibration import FittedTemperature, calibration_metrics
from vtlvlm.stages.stage import Stage


class CalibratedStage(Stage):
    """A stage whose steps give logits of A actions.

    Validation also fits the temperature of the probabilities (``metrics.calibration``). The checkpoint holds it with the weights that it
    was fitted for. After further training steps it is 1 until the next validation. ``nll``, ``ece`` and ``brier`` are measured without the
    temperature, metrics named ``_calibrated`` with it; ``predict`` uses it.

    Args:
        calibrate: Fit the temperature on the validation people. The best checkpoint is then the one with the lowest NLL at its temperature.
    """

    temperature: Tensor
    """Scalar that divides the logits before the softmax; 1 until it is fitted. The subclass holds it"""

    def __init__(self, calibrate: bool) -> None:
        super().__init__()
        self.calibrate = calibrate
        self.monitor = "val/nll_calibrated" if calibrate else "val/nll"  # a model may be right but overconfident
        self.classes: tuple[str, ...] = ()
        self.confusion: Any = None

    def make_metrics(self) -> None:
        """Make the metrics for ``classes``."""
        count = len(self.classes)
        self.val_metrics = action_metrics(count).clone(prefix="val/")
        self.test_metrics = action_metrics(count).clone(prefix="test/")
        self.val_calibrated = calibration_metrics().clone(prefix="val/", postfix="_calibrated")
        self.test_calibrated = calibration_metrics().clone(prefix="test/", postfix="_calibrated")
        self.confusion = confusion(count)
        self.fitted = FittedTemperature()

    def probabilities(self, scores: Tensor) -> Tensor:
        """Logits or log-probabilities (B, A) -> calibrated probabilities (B, A) float32."""
        return (scores.float() / self.temperature).softmax(-1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds each training step from seed, epoch, batch and rank, so that a resumed training draws the same random numbers. Without
        ``seed_everything`` torch's own state stays."""
        if (seed := os.environ.get("PL_GLOBAL_SEED")) is None:
            return
        place = (int(seed), self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Resets the temperature, which was fitted for the weights before the step."""
        super().on_before_optimizer_step(optimizer)
        self.temperature.fill_(1)

    def evaluate(self, logits: Tensor, batch: Any, split: str) -> dict[str, Tensor]:
        """Update and log the metrics of a batch, whose views of a clip are adjacent rows.

        Args:
            logits: (B, A).
            batch: With ``labels`` and ``clips``.
            split: val or test.

        Returns:
            Row in the index, label and calibrated probabilities of each clip, averaged over its views.
        """
        log_probs, first = mean_over_views(logits.float().log_softmax(-1), batch.clips)
        labels = batch.labels[first]
        metrics, calibrated = (self.val_metrics, self.val_calibrated) if split == "val" else (self.test_metrics, self.test_calibrated)
        metrics.update(log_probs, labels)
        self.confusion.update(log_probs.argmax(-1), labels)
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(labels))
        if self.fits_temperature:
            self.fitted.update(log_probs, labels)
        else:
            calibrated.update(log_probs / self.temperature, labels)
            self.log_dict(calibrated, on_step=False, on_epoch=True, batch_size=len(labels))
        return {"clips": batch.clips[first], "labels": labels, "probs": self.probabilities(log_probs)}

    @property
    def fits_temperature(self) -> bool:
        """Whether this evaluation is the validation of a training, which fits the temperature."""
        return self.calibrate and self.trainer.state.fn == TrainerFn.FITTING

    def on_validation_epoch_end(self) -> None:
        """Fit the temperature before the checkpoint is written; it is the same on every rank."""
        if self.fits_temperature and not self.trainer.sanity_checking:
            found = self.fitted.compute()
            self.temperature.copy_(found["temperature"])
            self.log("val/nll_calibrated", found["nll_calibrated"], sync_dist=True)
        self.fitted.reset()
        self.log("val/temperature", self.temperature.clone(), sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self.log("test/temperature", self.temperature.clone(), sync_dist=True)
