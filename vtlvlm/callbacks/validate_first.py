"""Validates before the first step."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class ValidateFirst(Callback):
    """Also validates before the first step, so that the initial model can become the best checkpoint.

    With few clips, training may only worsen a projector that starts in closed form (``EventReasoner.init_projector``). The callback does
    nothing without validation clips, or in a resumed run.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step or not trainer.enable_validation:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = -1  # otherwise it treats the initial model as saved
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
