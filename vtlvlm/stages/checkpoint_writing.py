"""Writes checkpoints whole or not at all: beside their target, and renamed once they are on the disk.

Lightning writes checkpoints through TMPDIR and reads them unchecked. :class:`CheckpointFiles` and :class:`RunTrainer` replace that.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from vtlvlm.errors import DataError
from vtlvlm.stages.checkpoints import BEFORE, BEST, LAST, LEFTOVER
from vtlvlm.system.files import replacing, sync


class NotWrittenError(DataError):
    """A checkpoint could not be written; the previous one is intact."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, and reads it without running code in it.

    Raises:
        NotWrittenError: The disk is full, or the place cannot be written.
    """

    def __init__(self) -> None:
        self.restoring = False
        """Whether Lightning is restoring a checkpoint"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are for storage that is not a file system")
        path = Path(path)
        try:
            with replacing(path) as temporary:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                if path.is_dir():  # shards of an earlier training on several processes
                    shutil.rmtree(path)
        except Exception as error:
            if (cause := _system_error(error)) is None:
                raise
            raise not_written(path, cause) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        self.restoring = True
        return torch.load(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Restored(Callback):
    """Notes when Lightning has restored a checkpoint: later errors have another cause."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        files = trainer.strategy.checkpoint_io
        if isinstance(files, CheckpointFiles):
            files.restoring = False

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = on_train_start


def not_written(path: Path, error: OSError) -> NotWrittenError:
    """The one-line error for a checkpoint that could not be written."""
    return NotWrittenError(
        f"{path}: the checkpoint cannot be written ({error.strerror}); earlier ones are intact: free space or change permissions, and "
        "continue with --ckpt_path last"
    )


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error that caused another one. torch reports a failed write with an error of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


class RunTrainer(Trainer):
    """A Trainer that writes each checkpoint (a file or a folder of shards) whole or not at all. If one cannot be written, all processes
    stop."""

    def save_checkpoint(self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None) -> None:
        target = Path(filepath)
        sharded = isinstance(self.strategy, ModelParallelStrategy | FSDPStrategy)
        place = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp") if sharded else target
        failed: NotWrittenError | None = None
        try:
            super().save_checkpoint(place, weights_only, storage_options)
            if sharded and self.is_global_zero:
                _take_place(place, target)
        except NotWrittenError as error:
            failed = error
            if not sharded:  # only the first process writes; the others wait here
                self.strategy.barrier("Trainer.save_checkpoint")
        except OSError as error:
            if not sharded:
                raise
            failed = not_written(target, error)
        if not self.strategy.reduce_boolean_decision(failed is None, all=True):
            raise failed or NotWrittenError(f"{target}: the checkpoint cannot be written by another process; earlier ones are intact")


def _take_place(temporary: Path, target: Path) -> None:
    """Replace the previous checkpoint (a folder or a file) with a finished one. The previous one has a name at every moment."""
    before = target.with_name(f"{BEFORE}{target.name}")
    for inner in temporary.iterdir() if temporary.is_dir() else [temporary]:
        sync(inner)
    if temporary.is_file() and not target.is_dir():
        temporary.replace(target)
    else:
        if target.exists():
            if before.is_dir():
                shutil.rmtree(before)
            target.rename(before)
        temporary.rename(target)
        if before.is_dir():
            shutil.rmtree(before)
        else:
            before.unlink(missing_ok=True)
    sync(target.parent)


def clear_leftovers(folder: Path | str) -> None:
    """Remove the half-written checkpoints of dead processes. The caller must hold the run folder's lock."""
    folder = Path(folder)
    for left in (*folder.glob(".*.tmp"), *(folder / "checkpoints").glob(".*.tmp")):
        if LEFTOVER.fullmatch(left.name):
            CheckpointFiles().remove_checkpoint(left)


class RunCheckpoint(ModelCheckpoint):
    """One of the two checkpoints of every run: ``last.ckpt`` and ``best.ckpt``.

    ``best.ckpt`` is chosen by validation alone. ``last.ckpt`` is written at the end of each epoch and of the training; with
    ``check_val_every_n_epoch`` above 1, only after the epochs that validate, so that large checkpoints are written rarely. A class of
    its own keeps Lightning from confusing it with a user's ``ModelCheckpoint``.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs, every = trainer.current_epoch + 1, trainer.check_val_every_n_epoch or 1
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps or epochs == trainer.max_epochs
        if epochs % every == 0 or ends:
            super().on_train_epoch_end(trainer, pl_module)

    @property
    def state_key(self) -> str:
        return f"{type(self).__name__}[{self.filename}]"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score if its checkpoint lies in this run's folder, which may have moved. A new folder has no score."""
        here = Path(self.dirpath or ".") / f"{self.filename}{self.FILE_EXTENSION}"
        if not here.exists():
            self.best_model_path = state_dict["best_model_path"]
            return
        scores = list(state_dict["best_k_models"].values())[:1]
        known = {name: str(here) for name in ("best_model_path", "kth_best_model_path") if state_dict[name]}
        place = {"dirpath": self.dirpath, "last_model_path": "", "best_k_models": {str(here): score for score in scores}}
        super().load_state_dict({**state_dict, **known, **place})


def run_checkpoints(folder: Path | str, monitor: str, mode: str) -> list[ModelCheckpoint]:
    """The two checkpoint callbacks of a run folder. Without validation there is never a best checkpoint.

    Args:
        folder: The run folder.
        monitor: The validation figure that chooses the best one.
        mode: ``min`` or ``max``.
    """
    place = Path(folder) / "checkpoints"
    last = RunCheckpoint(dirpath=place, filename=LAST, save_on_train_epoch_end=True, enable_version_counter=False)
    best = RunCheckpoint(
        dirpath=place, filename=BEST, monitor=monitor, mode=mode, save_on_train_epoch_end=False, enable_version_counter=False
    )
    return [last, best]


def is_default(callback: Any) -> bool:
    """Whether a checkpoint callback is Lightning's own default."""
    told = (getattr(callback, name, True) for name in ("dirpath", "filename", "monitor", "save_last"))
    return type(callback) is ModelCheckpoint and not any(told)
