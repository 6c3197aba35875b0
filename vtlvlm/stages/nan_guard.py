"""Stops training on all processes when a batch, its loss or the weights are not finite; one line says where."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass
class Seen:
    """A micro-batch of the present optimiser step."""

    clips: Tensor
    views: Tensor
    number: int
    """of the micro-batch in its epoch"""
    finite: Tensor
    """Scalar bool on the device, whether the batch is finite"""
    loss: Tensor | None = None

    @property
    def bad(self) -> Tensor:
        """Scalar bool on the device."""
        return ~self.finite if self.loss is None else ~(self.finite & torch.isfinite(self.loss).all())


class StopOnNonFinite(Callback):
    """Stops ``fit`` at the first value that is not finite, before it reaches the weights or a checkpoint.

    Checks the batches and losses of an optimiser step before the weights change, and the weights before a checkpoint replaces the last good
    one. The flags stay on the device until then: the host waits for them once in each optimiser step. All processes agree by one reduction,
    so that none waits for one that stopped. Names are exchanged only then. Lightning's ``detect_anomaly`` instead checks every operation,
    is slow, and stops one process alone.

    Raises:
        NotFiniteError: Raised on every process, with step, epoch, process, batch and clips, and the checkpoint to continue from.
    """

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._stepped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the batches of an interrupted step."""
        self._seen = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check the batch."""
        if self._stepped:
            self._seen, self._stepped = [], False
        self._seen.append(Seen(batch.clips, batch.views, batch_idx, finite_flag(batch, batch.clips.device)))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        self._seen[-1].loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Stop if a batch or a loss of the step was not finite."""
        self._stepped = True
        bad = torch.stack([seen.bad for seen in self._seen]).any().float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        if bad.item() == 0:
            return
        mine = next((seen for seen in self._seen if bool(seen.bad)), None)
        what = "" if mine is None else "features or events are NaN or infinite"
        if mine is not None and bool(mine.finite) and mine.loss is not None:
            what = f"the loss is {float(mine.loss)}"
        self._stop(trainer, what, mine)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the weights, before the file is opened."""
        bad = [name for name, tensor in checkpoint["state_dict"].items() if not all_finite([tensor])]
        if not trainer.strategy.reduce_boolean_decision(not bad, all=True):
            self._stop(trainer, f"{bad[0]} is NaN or infinite" if bad else "", self._seen[-1] if self._seen else None)

    def _stop(self, trainer: Trainer, what: str, seen: Seen | None) -> None:
        """Raise the error with the texts of all processes; ``what`` is empty on those without a fault."""
        where = "no batch yet" if seen is None else f"batch {seen.number} ({self._named(trainer, seen)})"
        text = what and f"{what} on rank {trainer.global_rank}, {where}"
        texts: list[Any] = [text]
        if trainer.world_size > 1:
            texts = texts * trainer.world_size
            torch.distributed.all_gather_object(texts, text)
        callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        kept = [
            callback.best_model_path for callback in callbacks if callback.best_model_path and Path(callback.best_model_path).exists()
        ]  # a folder for sharded models
        advice = f"continue from {kept[0]}" if kept else "no checkpoint was written yet: start again"
        raise NotFiniteError(
            f"training stopped at step {trainer.global_step} of epoch {trainer.current_epoch}: {'; '.join(filter(None, texts))}; "
            f"{advice} with a lower learning rate, or look at these clips"
        )

    def _named(self, trainer: Trainer, seen: Seen) -> str:
        """Names of the batch's clips."""
        data: Any = getattr(trainer, "datamodule", None)
        clips, views = seen.clips.cpu(), seen.views.cpu()
        keys = data.keys(clips, views) if data is not None else list(zip(clips.tolist(), views.tolist(), strict=True))
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        return ", ".join(f"{name} view {view}" for name, view in keys[:NAMED]) + more


def finite_flag(tensors: Any, device: torch.device) -> Tensor:
    """Whether all floating-point tensors among these are free of NaN and infinity, as a scalar bool on the device."""
    found = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
    flags = [torch.isfinite(tensor).all() for tensor in found]
    return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool, device=device)


def all_finite(tensors: Any) -> bool:
    """As :func:`finite_flag`; the host waits for the device."""
    return bool(finite_flag(tensors, torch.device("cpu")))
