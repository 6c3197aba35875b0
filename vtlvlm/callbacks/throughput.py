"""Logs the speed of a training."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs the speed over the optimiser steps since the last log, every ``log_every_n_steps`` steps.

    The curves are ``speed/clips_per_second`` (sum over processes), ``speed/seconds_per_step`` (without validation), and
    ``speed/data_wait_share``, the share of that time spent waiting for the data loader, in [0, 1].
    """

    def __init__(self) -> None:
        self._batch_end = self._elapsed = self._waited = 0.0
        self._clips = self._logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._logged_step = trainer.global_step
        self._elapsed = self._waited = 0.0
        self._clips = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the wait for the first batch of an epoch."""
        self._batch_end = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude validation from the time."""
        self._batch_end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the time since the last batch as waiting for this one."""
        waited = time.perf_counter() - self._batch_end
        self._waited += waited
        self._elapsed += waited
        self._batch_end += waited

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up the time, and log it if this step is logged."""
        now = time.perf_counter()
        self._elapsed += now - self._batch_end
        self._batch_end = now
        self._clips += len(batch.labels)
        steps = trainer.global_step - self._logged_step
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if steps and trainer.global_step % every == 0:
            speed = {
                "speed/clips_per_second": self._clips * trainer.world_size / self._elapsed,
                "speed/seconds_per_step": self._elapsed / steps,
                "speed/data_wait_share": self._waited / self._elapsed,
            }
            for logger in trainer.loggers:
                logger.log_metrics(speed, step=trainer.global_step - 1)  # Lightning counts the steps of curves from zero
            self.on_train_start(trainer, pl_module)
