"""Callbacks for runs that tests look into: what every rank ended with, and a checkpoint from the middle."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer


class RankDump(Callback):
    """Saves ``rank<r>.pt``, the module's state after training, into the run folder."""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        torch.save(module.state_dict(), Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


class WithinEpoch(Callback):
    """Saves ``first.ckpt``, a checkpoint after the second step, into the run folder."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "first.ckpt")


class FirstEpoch(Callback):
    """Saves ``first.ckpt``, a checkpoint after the first epoch, into the run folder."""

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "first.ckpt")
