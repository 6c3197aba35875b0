"""The data module of both stages: an index, a split, and loaders over videos, features or events."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from vtlvlm.batches import VideoBatch
from vtlvlm.data.augment import ClipAugmentation
from vtlvlm.data.batching import DECODED, micro_batch, passes, share_of
from vtlvlm.data.cache import EventCache, FeatureCache, Key
from vtlvlm.data.cache_rows import StoredViews, rows_in, stored_views, target_rows
from vtlvlm.data.datasets import ClipDataset, ClipLoader, FeatureDataset, Targets, VideoDataset, loader
from vtlvlm.data.hidden_cache import HiddenCache, open_sentences, sentences
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.samplers import EpochProgress, ExactSampler, Item, TrainSampler
from vtlvlm.data.sampling import TEST_VIEWS, FrameSampling
from vtlvlm.data.sharing import on_first
from vtlvlm.data.source import ClipSource
from vtlvlm.data.split import Split, group_numbers
from vtlvlm.data.twins import refuse_leak
from vtlvlm.errors import UsageError
from vtlvlm.system.seeds import require_seed

_SIDES = {"fit": "train", "validate": "val", "test": "test"}


class NTUDataModule(LightningDataModule):
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
        super().__init__()
        self.prepare_data_per_node = False  # Lightning reads this
        if batch_size < 1 or (micro_batch_size is not None and micro_batch_size < 1) or (num_workers or 0) < 0:
            sizes = f"batch_size={batch_size}, micro_batch_size={micro_batch_size}, num_workers={num_workers}"
            raise UsageError(f"{sizes}: sizes from 1, workers from 0")
        require_seed(seed, "data.seed")
        if augmentation is not None and sampling.views < 2:
            raise UsageError("augmentation changes the training views from 1 up: set sampling.views to 2 or more")
        if target_features is not None and (features is None or events is not None):
            raise UsageError("data.target_features needs a feature cache to rebuild it from: give data.features, and no data.events")
        self.source, self.features, self.events, self.target_features = source, features, events, target_features
        self.sampling, self.batch_size, self.num_workers = sampling, batch_size, num_workers
        self.seed, self.augmentation = seed, augmentation
        self._most, self._whole = micro_batch_size, False
        self.features_cache: FeatureCache | None = None
        self.events_cache: EventCache | HiddenCache | None = None
        self.targets_cache: FeatureCache | None = None
        self._prepared: ClipIndex | Exception | None = None
        self._index: ClipIndex | None = None
        self._split: Split | None = None
        self._stored: StoredViews | None = None
        self._target_rows: NDArray[np.int64] | None = None
        self._skipped: frozenset[Key] = frozenset()
        self._progress: EpochProgress | None = None
        self._sampler: TrainSampler | None = None

    # -- setting up --------------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Open new and changed videos, on the first process alone; ``setup`` gives the index to the others."""
        try:
            self._prepared = self.source.index(self._read, progress=True)
        except Exception as error:
            if self._world() == 1:
                raise
            self._prepared = error  # the others are waiting: setup tells them

    def setup(self, stage: str | None = None) -> None:
        """Take the index from the first process, split it and open the caches.

        Args:
            stage: fit, validate, test or predict. The side of the split that it reads must not be empty.
        """
        if self._split is None:
            self._index = on_first(self.trainer, self._clips)
            self._split = self.source.split(self._index, self.seed)
            if not self.source.allow_duplicates:
                refuse_leak(self._index, self._split)
            if self.events is not None:
                self.events_cache = open_sentences(self.events)
            elif self.features is not None:
                self.features_cache = FeatureCache.open(self.features)
            if self._cache is not None:
                self._stored = stored_views(self._cache, self._index, self._split)
            if self.target_features is not None:
                assert self.features_cache is not None
                assert self._stored is not None
                self.targets_cache = FeatureCache.open(self.target_features)
                clips = self._index, self._split, self._stored
                self._target_rows = target_rows(self.targets_cache, self.features_cache, *clips, *self._predicted())
            if not self._rank():
                self._index.warn_excluded()
        if stage in _SIDES:
            self._split.require(_SIDES[stage])  # type: ignore[arg-type]
        if stage == "fit" and self.trainer is not None:
            self._whole = getattr(self.trainer.lightning_module, "whole_batch", False)
            derived = passes(self.batch_size, self._train_batch, self._world(), len(self._split.train))
            if (given := self.trainer.accumulate_grad_batches) not in (1, derived):
                raise UsageError(
                    f"trainer.accumulate_grad_batches={given}, but data.batch_size={self.batch_size} makes it {derived}: leave it out, and "
                    "set data.batch_size"
                )
            self.trainer.accumulate_grad_batches = derived
            self._progress = self._sampler = None

    @property
    def _read(self) -> str | None:
        """The cache that is read."""
        return self.events if self.events is not None else self.features

    def _clips(self) -> ClipIndex:
        """The index, on the first process."""
        prepared, self._prepared = self._prepared, None
        if isinstance(prepared, Exception):
            raise prepared
        index = self.source.index(self._read, progress=False) if prepared is None else prepared
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
    def index(self) -> ClipIndex:
        """All clips. Batches refer to its rows."""
        if self._index is None:
            raise RuntimeError("call setup() first")
        return self._index

    @property
    def split(self) -> Split:
        """The training, validation and test clips."""
        if self._split is None:
            raise RuntimeError("call setup() first")
        return self._split

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.split.classes

    @property
    def num_classes(self) -> int:
        """A, the number of classes."""
        return len(self.classes)

    @property
    def split_description(self) -> dict[str, Any]:
        """Protocol, seed, counts and groups of each side, in plain values, for the metrics."""
        return {key: value for key, value in self.split.description.items() if key != "present"}

    @property
    def train_hash(self) -> str:
        """Hash of the names of all clips outside the test side. A model trained here may have seen them."""
        return self.split.train_hash

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

    def clip_names(self, clips: Tensor | NDArray[np.int64] | Sequence[int]) -> list[str]:
        """Names of rows of the index, such as a batch's ``clips``."""
        return [str(name) for name in self.index.name[np.asarray(clips)]]

    def identities(self, clips: Tensor | NDArray[np.int64] | Sequence[int]) -> list[str]:
        """Content identities of the clips' files, for the caches; "" if unknown."""
        return [str(text) for text in self.index.identity[np.asarray(clips)]]

    def groups(self, clips: Tensor) -> Tensor:
        """(n,) rows of the index -> (n,) int64 number of each clip's group (person, source); see ``group_numbers``."""
        return torch.from_numpy(group_numbers(self.index, self.split)[clips.cpu().numpy()]).to(clips.device)

    def keys(self, clips: Tensor | NDArray[np.int64] | Sequence[int], views: Tensor | NDArray[np.int64] | Sequence[int]) -> list[Key]:
        """Name and view of each clip of a batch."""
        return list(zip(self.clip_names(clips), np.asarray(views).tolist(), strict=True))

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

    def train_dataloader(self) -> ClipLoader:
        """Whole batches of training clips, shuffled by (seed, epoch). Each epoch draws one view of each clip. After a checkpoint from
        within an epoch, training continues with the rest of that epoch."""
        clips = self.split.require("train")
        views, rank, world = self._stored_views(clips), self._rank(), self._world()
        sampler = TrainSampler(clips, views, seed=self.seed, rank=rank, world=world, batch=self.batch_size)
        if self._sampler is None and self._progress is not None:
            sampler.done = self._progress.clips
        self._sampler = sampler
        return self._loader(sampler, self._train_batch)

    @property
    def micro_batch_size(self) -> int:
        """Clips that one process takes at once; a stage that gets its whole share in training divides it into parts of this size."""
        return micro_batch(self.batch_size, self._most, self._world())

    @property
    def _train_batch(self) -> int:
        """Clips of a training batch of one process."""
        return share_of(self.batch_size, self._world()) if self._whole else self.micro_batch_size

    @property
    def _evaluated(self) -> int:
        """Clips that one process evaluates at once."""
        decodes = self._cache is None and self._most is None
        return min(self.micro_batch_size, DECODED) if decodes else self.micro_batch_size

    @property
    def global_micro_batch(self) -> int:
        """Training clips in one pass of all processes together."""
        return self._train_batch * self._world()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: clips of the epoch consumed up to the last optimiser step. Later ones are replayed."""
        progress: Any = None if self.trainer is None else self.trainer.fit_loop.epoch_loop.batch_progress
        if progress is None or progress.is_last_batch:
            return EpochProgress(0, self.global_micro_batch)._asdict()
        clips = progress.current.processed * self.global_micro_batch
        return EpochProgress(clips - clips % self.batch_size, self.global_micro_batch)._asdict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint.

        Raises:
            UsageError: The clips consumed are no multiple of the clips that all processes now take at once.
        """
        if self.trainer is None or not self.trainer.training:
            return
        self._progress = EpochProgress(**state_dict)
        if self._progress.clips % self.global_micro_batch:
            raise UsageError(
                f"the checkpoint was written {self._progress.clips} clips into an epoch, not a multiple of {self.global_micro_batch} "
                "(the clips of one pass of all processes); keep data.batch_size, or continue from the end of an epoch"
            )
        if self._sampler is not None:  # a model split over processes makes the loader before this call
            self._sampler.done = self._progress.clips

    def val_dataloader(self) -> ClipLoader | list[Any]:
        """Validation clips, view 0, each exactly once over all ranks; [] without validation clips."""
        return self._plain_loader(self.split.val) if len(self.split.val) else []

    def test_dataloader(self) -> ClipLoader:
        """Test clips, each exactly once over all ranks. Several test views of a clip follow each other."""
        return self._plain_loader(self.split.require("test"), self.test_views)

    def predict_dataloader(self) -> ClipLoader:
        """The clips and views of ``predict_keys`` without the skipped ones, each exactly once over all ranks."""
        clips, views = self._predicted()
        if self._skipped:
            keep = np.array([key not in self._skipped for key in self.keys(clips, views)], dtype=np.bool_)
            clips, views = clips[keep], views[keep]
        if not self.allow_zero_length_dataloader_with_multiple_devices:
            self._require_enough(len(clips))
        return self._loader(ExactSampler(clips, views, rank=self._rank(), world=self._world()), self._evaluated, targets=False)

    def predict_keys(self) -> list[Key]:
        """Clips and views to predict: training and validation clips in all training views, test clips in view 0 and all test views."""
        return self.keys(*self._predicted())

    def skip(self, done: Collection[Key], idle: bool = False) -> None:
        """Leave clips and views that a cache already holds out of ``predict_dataloader``.

        Args:
            done: Names and views to leave out.
            idle: Allow processes without work when fewer clips than processes are left.
        """
        self._skipped = frozenset(done)
        self.allow_zero_length_dataloader_with_multiple_devices = idle  # Lightning reads this

    def _predicted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sides = self.split
        learning = np.union1d(sides.train, sides.val)
        counts = self._stored_views(learning)
        extra = np.array([view for view in self.test_views if view], dtype=np.int64)
        first = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        clips = np.concatenate([np.repeat(learning, counts), sides.test, np.repeat(sides.test, len(extra))])
        views = np.concatenate([first, np.zeros_like(sides.test), np.tile(extra, len(sides.test))])
        order = np.lexsort((views, clips))
        return clips[order], views[order]

    def _stored_views(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) number of views of each clip: ``sampling.views``, or the cache's views from 0 up without a gap."""
        if self._stored is None:
            return np.full(len(clips), self.sampling.views, dtype=np.int64)
        return self._stored.counts(clips)

    def _require_enough(self, clips: int) -> None:
        if clips < self._world():
            raise UsageError(f"{clips} clips are too few for {self._world()} processes; start {max(1, clips)} or fewer")

    def _plain_loader(self, clips: NDArray[np.int64], views: tuple[int, ...] = (0,)) -> ClipLoader:
        self._require_enough(len(clips))
        count = len(views)
        items = np.repeat(clips, count), np.tile(np.asarray(views, dtype=np.int64), len(clips))
        sampler = ExactSampler(*items, together=count, rank=self._rank(), world=self._world())
        return self._loader(sampler, max(1, self._evaluated // count) * count)

    def _loader(self, sampler: Sampler[Item], batch_size: int, targets: bool = True) -> ClipLoader:
        processes = 1 if self.trainer is None else getattr(self.trainer, "num_devices", 1)  # of the job on this machine
        return loader(self._dataset(targets), sampler, batch_size, self.num_workers, processes)

    def _dataset(self, targets: bool) -> ClipDataset:
        if self._stored is not None and self.events_cache is not None:
            return sentences(self.index.label, self.events_cache, *self._stored)
        if self._stored is not None and self.features_cache is not None:
            wanted = None
            if targets and self.targets_cache is not None and self._target_rows is not None:
                wanted = Targets(self.targets_cache, self._target_rows)
            return FeatureDataset(self.index.label, self.features_cache, *self._stored, wanted)
        return VideoDataset(self.index, self.sampling, self.seed, self.source.decoder)

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _world(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size
