"""Stops a command in good order when a signal asks for it: a training writes a checkpoint first."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from vtlvlm.stages.checkpoint_writing import RunCheckpoint
from vtlvlm.stages.checkpoints import LAST
from vtlvlm.system import signals


class Stopped(SystemExit):
    """A signal has stopped the command, which has kept what it had."""


class StopOnSignal(Callback):
    """Stops at SIGTERM, and in a Slurm job also at SIGUSR1.

    A training first finishes its optimiser step, and the validation or the epoch's end that follows it. All processes stop after the same
    step, whichever of them got the signal. The first one writes ``last.ckpt``, from which the training continues to the bit. An extraction
    keeps its finished rows. The exit code is 143 after SIGTERM, and 75 after SIGUSR1, after which the batch scripts requeue the job.

    A training without checkpoints (``enable_checkpointing: false``) only stops; one with checkpoints has :class:`StopWithCheckpoint`.
    Lightning itself would write a checkpoint within a step, each process at a different batch, and end with exit code 0.
    """

    def __init__(self) -> None:
        self._step = 0
        self._leaving: tuple[signal.Signals, str] | None = None

    def _listen(self) -> None:
        """Replace the handlers that Lightning has just installed."""
        signals.listen(signals.STOP, *([signals.REQUEUE] if signals.in_slurm() else []))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._leaving = trainer.global_step, None
        self._listen()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    on_predict_start = on_sanity_check_start = on_test_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()

    # -- trainings -------------------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after an optimiser step. If a validation or the end of the epoch follows, the hooks below stop after it."""
        loop = trainer.fit_loop.epoch_loop
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if not loop.batch_progress.is_last_batch and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            self._stop_training(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation within an epoch. Lightning calls this after the callbacks that choose the best checkpoint."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if trainer.state.fn == "fit" and not trainer.sanity_checking and progress.current.ready and not progress.is_last_batch:
            self._stop_training(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_training(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave with a checkpoint on the disk, once Lightning has logged the step before."""
        if self._leaving is not None:
            found, then = self._leaving
            self._leave(trainer, found, f"after step {trainer.global_step}", then)

    def _stop_training(self, trainer: Trainer) -> None:
        found = signals.asked()
        if trainer.world_size > 1:  # all stop, or none
            if not trainer.strategy.reduce_boolean_decision(found is not None, all=False):
                return
            requeue = trainer.strategy.reduce_boolean_decision(found == signals.REQUEUE, all=False)
            found = signals.REQUEUE if requeue else signals.STOP
        if found is None or _ends(trainer):
            return
        place = next((Path(str(one.dirpath)) for one in trainer.checkpoint_callbacks if isinstance(one, RunCheckpoint)), None)
        if place is not None:
            trainer.save_checkpoint(place / f"{LAST}.ckpt")
        self._leaving = found, "add --ckpt_path last to continue" if place else ""

    # -- other commands --------------------------------------------------------------------------------------------------------------

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_reading(trainer)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_reading(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn != "fit":
            self._stop_reading(trainer)

    def _stop_reading(self, trainer: Trainer) -> None:
        """Stop this process alone: the processes write nothing together."""
        if (found := signals.asked()) is None:
            return
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:  # processes that this one has started get no signal of their own
            launcher.kill(signals.STOP)
        self._leave(trainer, found, "", "the same command continues" if trainer.state.fn == "predict" else "give the same command again")

    def _leave(self, trainer: Trainer, found: signal.Signals, when: str, then: str) -> None:
        if trainer.is_global_zero:
            ending = "Slurm starts the job again" if found == signals.REQUEUE else then
            sys.stderr.write(f"vtlvlm: stopped by {found.name}{when and ' '}{when}{'; ' if ending else ''}{ending}\n")
        raise Stopped(signals.exit_code(found))


class StopWithCheckpoint(StopOnSignal, Checkpoint):
    """Stops after the callbacks that choose the best checkpoint. Lightning calls checkpoint callbacks last, in the order in which they were
    added."""


def _ends(trainer: Trainer) -> bool:
    """Whether a training is at its end by itself."""
    epochs = trainer.current_epoch + trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    return bool(
        trainer.should_stop
        or trainer.global_step == trainer.max_steps
        or (trainer.max_epochs not in (None, -1) and epochs >= trainer.max_epochs)
    )
