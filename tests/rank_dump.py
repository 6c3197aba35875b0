"""A callback for runs of several processes: every rank writes what it ended with."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer


class RankDump(Callback):
    """Saves ``rank<r>.pt``, the module's state after training, into the run folder."""

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        torch.save(module.state_dict(), Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")
