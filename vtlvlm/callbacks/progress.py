"""The progress bar of training and evaluation: one bar for all optimiser steps, with rate and remaining time."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class PacedBar(Tqdm):
    """A progress bar on stderr. A terminal shows one moving line; a file gets a line every ten seconds."""

    _drawn = float("-inf")

    def __init__(self, **settings: Any) -> None:
        pace = 0.5 if sys.stderr.isatty() else 10.0
        super().__init__(file=sys.stderr, mininterval=pace, dynamic_ncols=True, **settings)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last drawing."""
        return not self.disable and time.monotonic() - self._drawn >= self.mininterval

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        """Draw if enough time has passed. Lightning calls this at every batch."""
        if self.due:
            self._drawn = time.monotonic()
            super().refresh(*args, **kwargs)

    def set_description(self, *_: Any, **__: Any) -> None:
        """Keep the title of the bar. Lightning would add the number of the data loader."""


class StepProgress(TQDMProgressBar):
    """Shows one bar for the whole training, counted in optimiser steps, and one per evaluation, counted in batches."""

    def _bar(self, title: str, length: Any, unit: str = "batch", leave: bool = True, first: int = 0) -> PacedBar:
        total = sum(length) if isinstance(length, list) else length  # before an evaluation; Lightning then sets each loader's own
        known = int(total) if total not in (float("inf"), -1) else None
        return PacedBar(desc=title, total=known, unit=unit, leave=leave, initial=first, disable=self.is_disabled)

    def init_train_tqdm(self) -> Tqdm:
        """The bar of a training. In a resumed training, it starts at the step that was reached."""
        return self._bar("training", self.trainer.estimated_stepping_batches, "step", first=self.trainer.global_step)

    def init_validation_tqdm(self) -> Tqdm:
        """The bar of a validation. In a training, it vanishes when it is full."""
        return self._bar("validation", self.trainer.num_val_batches, leave=self.trainer.state.fn == "validate")

    def init_sanity_tqdm(self) -> Tqdm:
        """The bar of the sanity check, a validation of a few batches."""
        return self._bar("validation", self.trainer.num_sanity_val_batches, leave=False)

    def init_test_tqdm(self) -> Tqdm:
        """The bar of a test."""
        return self._bar("test", self.trainer.num_test_batches)

    def init_predict_tqdm(self) -> Tqdm:
        """The bar of a prediction."""
        return self._bar("predicting", self.trainer.num_predict_batches)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics logged for the bar, by the last part of their names."""
        found = {name.split("/")[-1]: value for name, value in super().get_metrics(trainer, pl_module).items()}
        return {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in found.items() if name != "v_num"}

    def on_train_epoch_start(self, *_: Any) -> None:
        """Keep the same bar."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move to the trainer's step. Show the logged metrics only when the bar is drawn: reading them makes the host wait for the GPU."""
        bar = self.train_progress_bar
        if not isinstance(bar, PacedBar) or bar.due or trainer.global_step == bar.total:
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
        bar.update(trainer.global_step - bar.n)

    def on_exception(self, *_: Any) -> None:
        """Close the bars."""
        for bar in (self._train_progress_bar, self._val_progress_bar, self._test_progress_bar, self._predict_progress_bar):
            if bar is not None:
                bar.close()
