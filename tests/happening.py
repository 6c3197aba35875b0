"""Callbacks for the command line's ``--trainer.callbacks+``: things that happen to a command while it runs."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from vtlvlm.cli import main


class _Kill:
    """Kills the process that writes it down."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        return str, ()


class KillOnce(Callback):
    """Sends the process a signal once; a mark says that it was sent.

    Args:
        place: ``batch`` (the first), ``validation`` (of the second epoch), ``epoch`` (the start of that one), ``writing`` (in the middle
            of writing its end), or ``predict`` (the first batch).
        mark: The file that says so.
        name: Of the signal; ``SIGINT`` is what Ctrl-C sends. Only ``SIGKILL`` goes with ``writing``.
    """

    def __init__(self, place: str, mark: str, name: str = "SIGKILL") -> None:
        self.place, self.mark, self.signal = place, Path(mark), signal.Signals[name]
        self.now = False

    def _here(self, place: str, trainer: Trainer, epoch: int) -> bool:
        here = place == self.place and trainer.current_epoch == epoch and not trainer.sanity_checking and not self.mark.exists()
        if here:
            self.mark.touch()
        return here

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._here("batch", trainer, 0):
            os.kill(os.getpid(), self.signal)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._here("validation", trainer, 1):
            os.kill(os.getpid(), self.signal)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._here("epoch", trainer, 1):
            os.kill(os.getpid(), self.signal)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.now = self._here("writing", trainer, 1)

    def on_predict_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._here("predict", trainer, trainer.current_epoch):
            os.kill(os.getpid(), self.signal)

    def state_dict(self) -> dict[str, Any]:
        return {"kill": _Kill()} if self.now else {}


class FullGpu(Callback):
    """Fails in the second step as CUDA does when its memory is full."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Meanwhile(Callback):
    """Runs commands of ours in the midst of another one, and keeps their exit codes.

    Args:
        commands: A file with a list of command lines, as JSON.
        codes: The file for the codes.
    """

    def __init__(self, commands: str, codes: str) -> None:
        self.commands, self.codes = Path(commands), Path(codes)

    def _run(self) -> None:
        if not self.codes.exists():
            self.codes.write_text(json.dumps([main(command) for command in json.loads(self.commands.read_text())]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self._run()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run()
