"""A validation before the first step."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class ValidateFirst(Callback):
    """Validates before the first step too, so that the model as it starts can be the best one: where clips are few, training may only take
    away from a start in closed form (``EventReasoner.init_projector``). Does nothing without validation clips, or where a run goes on."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step or not trainer.enable_validation:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = -1  # else it takes the start for saved
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
