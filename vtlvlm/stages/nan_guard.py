"""Stops training on all processes when a batch, its loss or the weights are not finite; one line says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.distributed.tensor import DTensor

from vtlvlm.errors import DataError

NAMED = 4
"""Number of clips that the message names"""


class NotFiniteError(DataError):
    """Training cannot continue, because a batch, its loss or the weights are not finite."""


class StopOnNonFinite(Callback):
    """Stops ``fit`` at the first value that is not finite, before it reaches a checkpoint.

    Checks the batch before the step, the loss before the backward pass, and the weights before a checkpoint replaces the last good one. All
    processes agree on the result by a reduction of one number, so that none waits for one that stopped. Names are exchanged only then.
    Lightning's ``detect_anomaly`` instead checks every operation, is slow, and stops one process alone.

    Raises:
        NotFiniteError: Raised on every process, with step, epoch, process, batch and clips, and the checkpoint to continue from.
    """

    def __init__(self) -> None:
        self._clips: Tensor | None = None
        self._views: Tensor | None = None
        self._index = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check the batch."""
        self._clips, self._views, self._index = batch.clips, batch.views, batch_idx
        self._require(trainer, all_finite(batch), "features or events are NaN or infinite")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        good = all_finite([loss])
        self._require(trainer, good, "" if good else f"the loss is {float(loss.detach())}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the weights, before the file is opened."""
        bad = [name for name, tensor in checkpoint["state_dict"].items() if not all_finite([tensor])]
        self._require(trainer, not bad, f"{bad[0]} is NaN or infinite" if bad else "")

    def _require(self, trainer: Trainer, good: bool, what: str) -> None:
        if trainer.strategy.reduce_boolean_decision(good, all=True):
            return
        texts: list[Any] = ["" if good else f"{what} on rank {trainer.global_rank}, batch {self._index} ({self._named(trainer)})"]
        if trainer.world_size > 1:
            texts = texts * trainer.world_size
            torch.distributed.all_gather_object(texts, texts[0])
        callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        kept = [
            callback.best_model_path for callback in callbacks if callback.best_model_path and Path(callback.best_model_path).exists()
        ]  # a folder for sharded models
        advice = f"continue from {kept[0]}" if kept else "no checkpoint was written yet: start again"
        raise NotFiniteError(
            f"training stopped at step {trainer.global_step} of epoch {trainer.current_epoch}: {'; '.join(filter(None, texts))}; "
            f"{advice} with a lower learning rate, or look at these clips"
        )

    def _named(self, trainer: Trainer) -> str:
        """Names of the batch's clips."""
        if self._clips is None or self._views is None:
            return "no batch yet"
        data: Any = getattr(trainer, "datamodule", None)
        clips, views = self._clips.cpu(), self._views.cpu()
        keys = data.keys(clips, views) if data is not None else list(zip(clips.tolist(), views.tolist(), strict=True))
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        return ", ".join(f"{name} view {view}" for name, view in keys[:NAMED]) + more


def all_finite(tensors: Any) -> bool:
    """Whether all floating-point tensors among these are free of NaN and infinity."""
    found = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in found)
