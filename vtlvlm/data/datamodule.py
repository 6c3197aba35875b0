"""The data module of both stages: an index, a split, and loaders over videos, features or events."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from vtlvlm.batches import VideoBatch
from vtlvlm.data.augment import ClipAugmentation
from vtlvlm.data.batching import DECODED
from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.data.cache_rows import StoredViews, rows_in, stored_views, target_rows
from vtlvlm.data.captions import Captions, read_captions
from vtlvlm.data.clip_module import ClipDataModule, Purpose
from vtlvlm.data.datasets import ClipDataset, FeatureDataset, Targets, VideoDataset
from vtlvlm.data.hidden_cache import HiddenCache, open_sentences, sentences
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.sampling import TEST_VIEWS, FrameSampling
from vtlvlm.data.source import ClipSource
from vtlvlm.data.twins import refuse_leak
from vtlvlm.errors import UsageError


class NTUDataModule(ClipDataModule):
    """Clips of NTU RGB+D or of your own folder, as batches of events (if given), else features (if given), else frames.

    Args:
        source: The folder of clips, its labels and its split.
        features: Feature cache to read instead of videos (``vtlvlm extract``).
        events: Event cache to read instead (``vtlvlm tokenize``); or hidden states to train from (``vtlvlm extract-hidden``).
        target_features: Feature cache of the same clips and views by another extractor. With ``target: llava``, stage 1 rebuilds these
            features from ``features``. Only the picture size may differ between the two samplings.
        sampling: Frames to take from videos. Caches have a sampling of their own.
        batch_size: Clips for each optimiser step, over all processes and passes. A multiple of the number of processes.
        micro_batch_size: Most clips that one process takes at once. A process uses the largest number up to it that divides its share of a
            batch; the number of passes for an optimiser step follows. None: the whole share; evaluations decode at most 8 videos at once.
            A stage that must see its whole share (stage 1) gets it in training, and divides it itself.
        num_workers: Loading processes for each rank; None for one per core that the rank has, at most 16. Event caches with a codebook use
            none: their code numbers lie in memory.
        seed: Seed of the validation split, the order of clips, and the views.
        augmentation: Changes of training views from 1 up, on the device. Training from videos draws them in each epoch, ``extract`` once.

    Raises:
        UsageError: ``batch_size`` is not a multiple of the processes; fewer clips train than a batch of several passes holds; the protocol
            does not fit the data; augmentation has no view to change; targets come without features; or numpy does not take the seed.
        DataError: No clip is usable, a side of the split is empty, a cache lacks clips, or the targets show other frames.
    """

    def __init__(
        self,
        source: ClipSource,
        features: str | None = None,
        events: str | None = None,
        target_features: str | None = None,
        sampling: FrameSampling = FrameSampling(),  # noqa: B008 - frozen
        batch_size: int = 128,
        micro_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        augmentation: ClipAugmentation | None = None,
    ) -> None:
        super().__init__(source, batch_size, micro_batch_size, num_workers, seed)
        if augmentation is not None and sampling.views < 2:
            raise UsageError("augmentation changes the training views from 1 up: set sampling.views to 2 or more")
        if target_features is not None and (features is None or events is not None):
            raise UsageError("data.target_features needs a feature cache to rebuild it from: give data.features, and no data.events")
        self.features, self.events, self.target_features = features, events, target_features
        self.sampling, self.augmentation = sampling, augmentation
        self.captions_table: Captions | None = None
        self.features_cache: FeatureCache | None = None
        self.events_cache: EventCache | HiddenCache | None = None
        self.targets_cache: FeatureCache | None = None
        self._stored: StoredViews | None = None
        self._target_rows: NDArray[np.int64] | None = None

    # -- setting up --------------------------------------------------------------------------------------------------------------

    def _find(self, progress: bool) -> ClipIndex:
        index: ClipIndex = self.source.index(self._read, progress=progress)
        return index

    def _open(self) -> None:
        if not self.source.allow_duplicates:
            refuse_leak(self.index, self.split)
        if self.events is not None:
            self.events_cache = open_sentences(self.events)
        elif self.features is not None:
            self.features_cache = FeatureCache.open(self.features)
        if self._cache is not None:
            self._stored = stored_views(self._cache, self.index, self.split)
        if self.source.captions is not None:
            self.captions_table = read_captions(Path(self.source.captions), self.index, np.concatenate([self.split.train, self.split.val]))
        if self.target_features is not None:
            assert self.features_cache is not None
            assert self._stored is not None
            self.targets_cache = FeatureCache.open(self.target_features)
            clips = self.index, self.split, self._stored
            self._target_rows = target_rows(self.targets_cache, self.features_cache, *clips, *self._predicted())

    @property
    def _read(self) -> str | None:
        """The cache that is read."""
        return self.events if self.events is not None else self.features

    def _clips(self) -> ClipIndex:
        index = super()._clips()
        if not self.source.has_videos:
            rank_zero_info(f"{self._read}: the clips are those of the cache's index; no videos are here")
        return index

    def plain_rows(self, cache: FeatureCache) -> NDArray[np.int64]:
        """(n,) the row of each clip's plain view in any feature cache.

        Raises:
            DataError: The cache lacks clips, or their videos have changed since.
        """
        rows: NDArray[np.int64] = rows_in(cache, np.zeros(1, dtype=np.int64), self.index, self.split)[0]
        return rows

    # -- facts -------------------------------------------------------------------------------------------------------------------

    @property
    def num_views(self) -> int:
        """Number of views that training draws from: the cache's views from 0 up without a gap, else ``sampling.views``."""
        return self.sampling.views if self._stored is None else self._stored.training

    @property
    def test_views(self) -> tuple[int, ...]:
        """Views whose probabilities a test averages: the views that the cache holds for every test clip, else ``sampling.test_views``.

        (0,) is the plain view alone.
        """
        return self.sampling.test_views if self._stored is None else self._stored.testing(self.split.test)

    @property
    def sampling_settings(self) -> dict[str, Any]:
        """The sampling of the batches, as class_path and init_args. A cache's own sampling comes first."""
        own = {"class_path": f"{FrameSampling.__module__}.{FrameSampling.__qualname__}", "init_args": asdict(self.sampling)}
        cache = self._cache
        return own if cache is None else cache.provenance.get("sampling", own)

    @property
    def _cache(self) -> FeatureCache | EventCache | HiddenCache | None:
        return self.events_cache if self.events_cache is not None else self.features_cache

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment the training views of videos."""
        if self.augmentation is None or not isinstance(batch, VideoBatch):
            return batch
        training = (batch.views > 0) & (batch.views < TEST_VIEWS)
        epoch = self.trainer.current_epoch if self.trainer is not None and self.trainer.training else 0
        seeds = [f"{self.seed}/{name}/{view}/{epoch}" for name, view in self.keys(batch.clips[training].cpu(), batch.views[training].cpu())]
        frames = batch.frames.clone()
        if seeds:
            frames[training] = self.augmentation(frames[training], seeds)
        return batch._replace(frames=frames)

    # -- loaders -----------------------------------------------------------------------------------------------------------------

    @property
    def _evaluated(self) -> int:
        """Clips that one process evaluates at once."""
        decodes = self._cache is None and self._most is None
        return min(self.micro_batch_size, DECODED) if decodes else self.micro_batch_size

    def _stored_views(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) number of views of each clip: ``sampling.views``, or the cache's views from 0 up without a gap."""
        if self._stored is None:
            return np.full(len(clips), self.sampling.views, dtype=np.int64)
        return self._stored.counts(clips)

    def _dataset(self, purpose: Purpose) -> ClipDataset:
        if self._stored is not None and self.events_cache is not None:
            return sentences(self.index.label, self.events_cache, *self._stored)
        if self._stored is not None and self.features_cache is not None:
            wanted = None
            if purpose != "predict" and self.targets_cache is not None and self._target_rows is not None:
                wanted = Targets(self.targets_cache, self._target_rows)
            return FeatureDataset(self.index.label, self.features_cache, *self._stored, wanted)
        return VideoDataset(self.index, self.sampling, self.seed, self.source.decoder)
