"""Writes predicted batches into a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from vtlvlm.batches import EventTokens, FeatureBatch
from vtlvlm.data.cache_format import Key
from vtlvlm.data.carried import carry_index
from vtlvlm.data.sharing import on_first
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.disk import require_space

NAME_BYTES = 100
"""Bytes of a row's name, view and identity"""


class Held(NamedTuple):
    """A predicted batch on its way to main memory."""

    clips: Tensor
    views: Tensor
    columns: tuple[Tensor | None, ...]
    arrived: torch.cuda.Event | None
    """set once the copies from the GPU have arrived; None on a CPU"""


class CacheWriting(BasePredictionWriter):
    """Base of the callbacks that write the batches of ``trainer.predict`` into a cache. Each process writes its own shards.

    Args:
        make: Opens the cache's writer, given the data module and the number of this process. Refuses a cache of other settings.
        row_bytes: Bytes on disk of one clip and view.
    """

    def __init__(self, make: Callable[[Any, int], Any], row_bytes: int) -> None:
        super().__init__("batch")
        self._held: Held | None = None
        self.make, self.row_bytes = make, row_bytes
        self.writer: Any = None
        self.wanted: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the writer on every process, and leave out the rows that the cache already holds. The processes wait for each other after
        this hook, so that none writes before all know the missing rows."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        refused: DataError | UsageError | OSError | None = None
        try:
            self.writer = self.make(data, trainer.global_rank)
        except (DataError, UsageError, OSError) as error:
            refused = error
        if trainer.strategy.reduce_boolean_decision(refused is not None, all=False):  # otherwise the others would wait for this process
            raise refused or DataError("another process cannot open the cache; its line says why")
        self.wanted = self.keys_of(data)
        done = on_first(trainer, self.writer.done)  # one process reads the names of all rows
        data.skip(done | (set(data.predict_keys()) - set(self.wanted)), idle=True)
        left = len(set(self.wanted) - done)
        of = f"{len(self.wanted):,} clips and views"
        room = on_first(trainer, lambda: require_space(self.writer.folder, left * (self.row_bytes + NAME_BYTES), f"{left:,} of {of}"))
        if trainer.is_global_zero:
            print(room if left else f"{self.writer.folder}: all {of} are already there", flush=True)

    def finish(self, trainer: Trainer) -> None:
        """Once all processes have written their rows, the first one marks the cache as complete and adds the index of its clips.

        Raises:
            DataError: Rows are missing, or the index cannot be written.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.close()
        trainer.strategy.barrier("the cache is written")
        if trainer.is_global_zero:
            carry_index(self.writer.folder, data.index)
            self.writer.finish(self.wanted)

    def close(self) -> None:
        """Write the remaining rows and release the folder."""
        if self.writer is not None:
            self.writer.close()

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
        """Start copying a batch to main memory, and meanwhile pass the batch before it to the writer. So a GPU computes this batch while
        that one is written, and the host waits for neither."""
        columns = tuple(None if one is None else one.to("cpu", non_blocking=True) for one in self.columns(prediction))
        clips, views = (one.to("cpu", non_blocking=True) for one in (batch.clips, batch.views))
        event = torch.cuda.Event() if batch.clips.is_cuda else None
        if event is not None:
            event.record()
        self._write_held(trainer, Held(clips, views, columns, event))

    def _write_held(self, trainer: Trainer, then: Held | None = None) -> None:
        """Pass the held batch to the writer, with its clips' names and content identities, and hold the next one."""
        held, self._held = self._held, then
        if held is None:
            return
        if held.arrived is not None:
            held.arrived.synchronize()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.writer.add(data.keys(held.clips, held.views), *held.columns, identities=data.identities(held.clips))

    def keys_of(self, data: Any) -> list[Key]:
        """The clips and views that the cache must hold."""
        keys: list[Key] = data.predict_keys()
        return keys

    def columns(self, prediction: Any) -> tuple[Tensor | None, ...]:
        """The arguments of the writer's ``add`` between keys and identities."""
        raise NotImplementedError

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the remaining rows."""
        self._write_held(trainer)
        self.writer.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the finished rows, after which the next run continues."""
        self._write_held(trainer)
        if self.writer is not None:
            self.writer.flush()


class FeatureWriter(CacheWriting):
    """Writes predicted ``FeatureBatch`` es with a ``FeatureCacheWriter``."""

    def columns(self, prediction: FeatureBatch) -> tuple[Tensor, ...]:
        """Features and times."""
        return prediction.features, prediction.times


class EventWriter(CacheWriting):
    """Writes predicted ``EventTokens`` with an ``EventCacheWriter``."""

    def columns(self, prediction: EventTokens) -> tuple[Tensor | None, ...]:
        """Code numbers, vectors and spans. Vectors stay on the device if the cache has a table of them."""
        return prediction.ids, None if self.writer.codes else prediction.vectors, prediction.spans


class HiddenWriter(CacheWriting):
    """Writes predicted ``HiddenStates`` with a ``HiddenCacheWriter``: training clips in all training views, validation clips in view 0.

    Args:
        make: As in the base class; it also gives the bytes of a row, which are known once the data are.
    """

    def __init__(self, make: Callable[[Any, int], tuple[Any, int]]) -> None:
        def opened(data: Any, rank: int) -> Any:
            writer, self.row_bytes = make(data, rank)
            return writer

        super().__init__(opened, 0)

    def keys_of(self, data: Any) -> list[Key]:
        train, val = (set(data.clip_names(side)) for side in (data.split.train, data.split.val))
        return [(name, view) for name, view in data.predict_keys() if name in train or (name in val and view == 0)]

    def columns(self, prediction: Any) -> tuple[Tensor, ...]:
        """States and spans."""
        return prediction.states, prediction.spans
