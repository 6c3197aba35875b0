"""Faults on purpose: ``fail_at(rank, step, kind, mark)`` makes a command fail once, on one process, after one step."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGKILL")
KINDS = ("exception", "full disk", *SIGNALS)


class InjectedError(RuntimeError):
    """The exception of ``fail_at``."""


class FailAt(Callback):
    """Fails once. The file ``mark`` says that it has.

    Args:
        rank: The process that fails.
        step: The optimiser step after which it fails; without training, the batch.
        kind: One of ``KINDS``. On a full disk, no file can be longer than a kilobyte from here on.
        mark: The file. It is made before the failure.
    """

    def __init__(self, rank: int, step: int, kind: str, mark: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind}: no fault; there are {', '.join(KINDS)}")
        self.rank, self.step, self.kind, self.mark = rank, step, kind, Path(mark)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._fail(trainer, trainer.global_step)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._fail(trainer, batch_idx + 1)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._fail(trainer, batch_idx + 1)

    def _fail(self, trainer: Trainer, step: int) -> None:
        if (trainer.global_rank, step) != (self.rank, self.step) or self.mark.exists():
            return
        self.mark.touch()
        if self.kind == "exception":
            raise InjectedError(f"process {self.rank} fails after step {self.step}")
        if self.kind == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        else:
            os.kill(os.getpid(), signal.Signals[self.kind])


def fail_at(rank: int, step: int, kind: str, mark: Path) -> list[object]:
    """The options that make a command fail so; see :class:`FailAt`."""
    settings = {"rank": rank, "step": step, "kind": kind, "mark": mark}
    more = [part for name, value in settings.items() for part in (f"--trainer.callbacks.{name}", value)]
    return ["--trainer.callbacks+", "faults.FailAt", *more]
