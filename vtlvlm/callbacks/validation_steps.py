"""Counts ``val_check_interval`` in optimiser steps."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer


class ValidationSteps(Callback):
    """Counts a whole ``val_check_interval`` over epochs (``check_val_every_n_epoch: null``) in optimiser steps.

    Lightning counts the passes of one process. Their number for an optimiser step follows from the number of processes
    (``data.batch_size``), so that the same configuration would validate more often on fewer GPUs.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interval = trainer.val_check_interval
        if trainer.check_val_every_n_epoch is None and isinstance(interval, int):
            trainer.val_check_batch = interval * trainer.accumulate_grad_batches
