"""What the data modules share: an index, a split, and loaders that give each clip once, on any number of processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from vtlvlm.data.batching import micro_batch, passes, share_of
from vtlvlm.data.cache_format import Key
from vtlvlm.data.datasets import ClipDataset, ClipLoader, loader
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.samplers import EpochProgress, ExactSampler, Item, TrainSampler
from vtlvlm.data.sharing import on_first
from vtlvlm.data.split import Split, group_numbers
from vtlvlm.errors import UsageError
from vtlvlm.system.seeds import require_seed

_SIDES = {"fit": "train", "validate": "val", "test": "test"}
Purpose = Literal["train", "evaluate", "predict"]


class Splitting(Protocol):
    """Where the clips come from, and how they are split."""

    @property
    def protocol(self) -> str:
        """Name of the split's protocol."""

    def split(self, index: ClipIndex, seed: int) -> Split:
        """Split an index into training, validation and test clips."""


class ClipDataModule(LightningDataModule, ABC):
    """Base class of the data modules.

    Args:
        source: The clips and their split.
        batch_size: Clips for each optimiser step, over all processes and passes. A multiple of the number of processes.
        micro_batch_size: Most clips that one process takes at once; None for its whole share of a batch.
        num_workers: Loading processes for each rank; None for one per core that the rank has, at most 16.
        seed: Seed of the validation split, the order of clips, and the views.
    """

    def __init__(self, source: Splitting, batch_size: int, micro_batch_size: int | None, num_workers: int | None, seed: int) -> None:
        super().__init__()
        self.prepare_data_per_node = False  # Lightning reads this
        if batch_size < 1 or (micro_batch_size is not None and micro_batch_size < 1) or (num_workers or 0) < 0:
            sizes = f"batch_size={batch_size}, micro_batch_size={micro_batch_size}, num_workers={num_workers}"
            raise UsageError(f"{sizes}: sizes from 1, workers from 0")
        require_seed(seed, "data.seed")
        self.source: Any = source
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._most, self._whole = micro_batch_size, False
        self._prepared: ClipIndex | Exception | None = None
        self._index: ClipIndex | None = None
        self._split: Split | None = None
        self._skipped: frozenset[Key] = frozenset()
        self._progress: EpochProgress | None = None
        self._sampler: TrainSampler | None = None

    # -- setting up --------------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _find(self, progress: bool) -> ClipIndex:
        """The index of all clips, on the first process."""

    @abstractmethod
    def _open(self) -> None:
        """Open what the batches are made from, on every process, once the split is known."""

    def prepare_data(self) -> None:
        """Open new and changed files, on the first process alone; ``setup`` gives the index to the others."""
        try:
            self._prepared = self._find(progress=True)
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
            self._open()
            if not self._rank():
                self._index.warn_excluded()
        if stage in _SIDES:
            self._split.require(_SIDES[stage])  # type: ignore[arg-type]
        if stage == "fit" and self.trainer is not None:
            self._whole = getattr(self.trainer.lightning_module, "whole_batch", False)
            derived = passes(self.batch_size, self._train_batch, self._world(), len(self._learning(self._split.train)[0]))
            if (given := self.trainer.accumulate_grad_batches) not in (1, derived):
                raise UsageError(
                    f"trainer.accumulate_grad_batches={given}, but data.batch_size={self.batch_size} makes it {derived}: leave it out, and "
                    "set data.batch_size"
                )
            self.trainer.accumulate_grad_batches = derived
            self._progress = self._sampler = None

    def _clips(self) -> ClipIndex:
        """The index, on the first process."""
        prepared, self._prepared = self._prepared, None
        if isinstance(prepared, Exception):
            raise prepared
        return self._find(progress=False) if prepared is None else prepared

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
    @abstractmethod
    def num_views(self) -> int:
        """Number of views that training draws from."""

    @property
    @abstractmethod
    def test_views(self) -> tuple[int, ...]:
        """Views whose probabilities a test averages; (0,) is the plain view alone."""

    @property
    @abstractmethod
    def sampling_settings(self) -> dict[str, Any]:
        """What makes the batches of the clips, as class_path and init_args."""

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

    # -- loaders -----------------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> ClipLoader:
        """Whole batches of training clips, shuffled by (seed, epoch). Each epoch draws one view of each clip. After a checkpoint from
        within an epoch, training continues with the rest of that epoch."""
        clips, views = self._learning(self.split.require("train"))
        rank, world = self._rank(), self._world()
        sampler = TrainSampler(clips, views, seed=self.seed, rank=rank, world=world, batch=self.batch_size)
        if self._sampler is None and self._progress is not None:
            sampler.done = self._progress.clips
        self._sampler = sampler
        return self._loader(sampler, self._train_batch, "train")

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
        return self.micro_batch_size

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
        return self._loader(ExactSampler(clips, views, rank=self._rank(), world=self._world()), self._evaluated, "predict")

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

    @abstractmethod
    def _stored_views(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) number of views of each clip."""

    def _learning(self, clips: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The clips of an epoch, and the number of views that each is drawn from: both (n,)."""
        return clips, self._stored_views(clips)

    def _require_enough(self, clips: int) -> None:
        if clips < self._world():
            raise UsageError(f"{clips} clips are too few for {self._world()} processes; start {max(1, clips)} or fewer")

    def _plain_loader(self, clips: NDArray[np.int64], views: tuple[int, ...] = (0,)) -> ClipLoader:
        self._require_enough(len(clips))
        count = len(views)
        items = np.repeat(clips, count), np.tile(np.asarray(views, dtype=np.int64), len(clips))
        sampler = ExactSampler(*items, together=count, rank=self._rank(), world=self._world())
        return self._loader(sampler, max(1, self._evaluated // count) * count, "evaluate")

    def _loader(self, sampler: Sampler[Item], batch_size: int, purpose: Purpose) -> ClipLoader:
        processes = 1 if self.trainer is None else getattr(self.trainer, "num_devices", 1)  # of the job on this machine
        return loader(self._dataset(purpose), sampler, batch_size, self.num_workers, processes)

    @abstractmethod
    def _dataset(self, purpose: Purpose) -> ClipDataset:
        """Makes the batches."""

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _world(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size
