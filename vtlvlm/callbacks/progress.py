"""The progress bar of training and evaluation: one bar for all optimiser steps, with rate and time left."""

from __future__ import annotations

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepProgress(ProgressBar):
    """One bar over the whole training, counted in optimiser steps; evaluations have one of their own, counted in batches.

    Written to stderr: a line that moves on a terminal, a line every ten seconds in a file.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._train: tqdm[Any] | None = None
        self._other: tqdm[Any] | None = None

    def disable(self) -> None:
        """Ranks other than zero are silent."""
        self._enabled = False

    def enable(self) -> None:
        """Show bars again."""
        self._enabled = True

    def _bar(self, title: str, total: int | float, first: int = 0, unit: str = "batch") -> tqdm[Any]:
        length = int(total) if total not in (float("inf"), -1) else None
        pace = 0.5 if sys.stderr.isatty() else 10.0
        return tqdm(
            total=length, initial=first, desc=title, unit=unit, disable=not self._enabled, mininterval=pace, dynamic_ncols=True, leave=True
        )

    # -- training ----------------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step that a resumed training has reached."""
        self._train = self._bar("training", trainer.estimated_stepping_batches, trainer.global_step, "step")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move to the trainer's step and show the logged figures."""
        if self._train is not None:
            shown = {k.split("/")[-1]: f"{v:.3f}" if isinstance(v, float) else v for k, v in self.get_metrics(trainer, pl_module).items()}
            shown.pop("v_num", None)
            self._train.set_postfix(shown, refresh=False)
            self._train.update(trainer.global_step - self._train.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._train is not None:
            self._train.close()
            self._train = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self.on_train_end(trainer, pl_module)
        self._close()

    # -- evaluation --------------------------------------------------------------------------------------------------------------

    def _open(self, title: str, batches: Any, leave: bool) -> None:
        total = sum(batches) if isinstance(batches, list) else batches
        self._other = self._bar(title, total)
        self._other.leave = leave

    def _advance(self) -> None:
        if self._other is not None:
            self._other.update(1)

    def _close(self) -> None:
        if self._other is not None:
            self._other.close()
            self._other = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Within a training the bar vanishes when it is full."""
        self._open("validation", trainer.num_val_batches, leave=self._train is None)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """One batch further."""
        self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._open("test", trainer.num_test_batches, leave=True)

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        """One batch further."""
        self._advance()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._open("predicting", trainer.num_predict_batches, leave=True)

    def on_predict_batch_end(self, *_: Any, **__: Any) -> None:
        """One batch further."""
        self._advance()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()
