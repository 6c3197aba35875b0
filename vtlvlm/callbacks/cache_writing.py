"""Writes predicted batches into a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from vtlvlm.batches import EventTokens, FeatureBatch


class CacheWriting(BasePredictionWriter):
    """Base of the callbacks that write the batches of ``trainer.predict`` into a cache. Each process writes its own shards.

    Args:
        writer: This process's cache writer. It is already open, so no other process changed the cache since the missing rows were listed.
    """

    def __init__(self, writer: Any) -> None:
        super().__init__("batch")
        self.writer = writer

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Pass a batch to the writer, with its clips' names and content identities."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        clips = batch.clips.cpu()
        self.writer.add(data.keys(clips, batch.views.cpu()), *self.columns(prediction), identities=data.identities(clips))

    def columns(self, prediction: Any) -> tuple[Tensor, ...]:
        """The arguments of the writer's ``add`` between keys and identities."""
        raise NotImplementedError

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the remaining rows."""
        self.writer.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the finished rows, after which the next run continues."""
        self.writer.flush()


class FeatureWriter(CacheWriting):
    """Writes predicted ``FeatureBatch`` es with a ``FeatureCacheWriter``."""

    def columns(self, prediction: FeatureBatch) -> tuple[Tensor, ...]:
        """Features and times."""
        return prediction.features, prediction.times


class EventWriter(CacheWriting):
    """Writes predicted ``EventTokens`` with an ``EventCacheWriter``."""

    def columns(self, prediction: EventTokens) -> tuple[Tensor, ...]:
        """Code numbers, vectors and spans."""
        return prediction.ids, prediction.vectors, prediction.spans
