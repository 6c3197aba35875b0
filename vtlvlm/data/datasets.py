"""Makes batches from videos, a feature cache or an event cache. ``__getitems__`` turns (clip, view) pairs into a named batch."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from vtlvlm.batches import EventBatch, FeatureBatch, HiddenBatch, VideoBatch
from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.data.cuda_video import require_gpu_decoding
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.samplers import Item
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Decoder, VideoError, decode_sampled
from vtlvlm.errors import DataError
from vtlvlm.system import signals
from vtlvlm.system.cpu import cores_of_a_process

Batch = VideoBatch | FeatureBatch | EventBatch | HiddenBatch


PATIENCE = 1800
"""Seconds without a batch from any loading process; after them, one process counts as hanging"""


class Failure(NamedTuple):
    """A worker's error without its traceback, sent instead of a batch."""

    error: DataError | OSError | MemoryError


class Piped(NamedTuple):
    """A batch whose tensors go through a pipe, because shared memory has no room."""

    kind: type
    columns: list[NDArray[Any] | None]


class ClipLoader(DataLoader[Any]):
    """A DataLoader that raises its workers' errors unchanged, in one line, and also works without shared memory."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                raise batch.error
            yield _unpiped(batch) if isinstance(batch, Piped) else batch


MOST_WORKERS = 16
"""Loading processes of a rank at most, unless a setting asks for more"""
SHARED_MEMORY = Path("/dev/shm")
"""The file system through which loading processes hand over their batches"""


def batches_ahead(workers: int, batch_bytes: int, processes: int, free: int) -> int:
    """Batches that each loading process makes ahead: two, or one if two would fill half of the shared memory.

    64 frames of 224 x 224 pixels are 10 MB. 8 processes that each have 8 workers with two batches of 8 clips ahead ask for 10 GB; a
    container has 64 MB. What does not fit goes through a pipe, see :func:`passed_on`.

    Args:
        workers: Loading processes of this process.
        batch_bytes: Bytes of a batch.
        processes: Processes of the job on this machine, which share the memory.
        free: Bytes free there.
    """
    return 2 if 2 * workers * batch_bytes * processes <= free // 2 else 1


def loader(dataset: ClipDataset, sampler: Sampler[Item], batch_size: int, workers: int | None, processes: int = 1) -> ClipLoader:
    """A loader of a dataset's batches. Batches that are made on a GPU are made in this process, because CUDA does not survive a fork.

    Args:
        dataset: Makes the batches.
        sampler: Orders clips and views.
        batch_size: Clips in a batch; the last one may be smaller.
        workers: Number of loading processes; 0 loads in this process, None takes one per core of this process, at most ``MOST_WORKERS``.
        processes: Processes of the job on this machine. They share its memory.
    """
    if workers is None:
        workers = min(MOST_WORKERS, cores_of_a_process(processes))
    workers = 0 if dataset.on_gpu or dataset.in_memory else workers
    ahead = None
    if workers:
        free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else sys.maxsize
        ahead = batches_ahead(workers, batch_size * dataset.clip_bytes, processes, free)
    return ClipLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=passed_on,
        pin_memory=torch.cuda.is_available() and not dataset.on_gpu,
        persistent_workers=workers > 0,
        timeout=PATIENCE if workers else 0,
        worker_init_fn=left_alone,
    )


def left_alone(worker: int) -> None:
    """Slurm sends its signals to all processes of a job. In a loading process they have no effect: the training ends it."""
    signals.ignore()


def passed_on(batch: Any) -> Any:
    """The collate function, for datasets that return whole batches. In a loading process it moves tensors to shared memory, or, without
    room there, sends them through the pipe."""
    if isinstance(batch, Failure) or get_worker_info() is None:
        return batch
    try:
        for column in batch:
            if column is not None:
                column.share_memory_()
    except (RuntimeError, OSError):
        return Piped(type(batch), [None if column is None else column.numpy() for column in batch])
    return batch


def _unpiped(batch: Piped) -> Any:
    """Rebuild the batch, and warn that shared memory would be faster."""
    warnings.warn(
        "no room in /dev/shm for the batches of the loading processes: they go through a slower pipe; give it more (docker run "
        "--shm-size=2g), or use fewer workers (--data.num_workers) or a smaller --data.micro_batch_size",
        stacklevel=3,
    )
    return batch.kind(*(None if column is None else torch.from_numpy(column) for column in batch.columns))


class ClipDataset(Dataset[Any]):
    """Base class: labels, clips and views of a batch.

    Args:
        labels: (n,) labels of all clips of the index.
    """

    on_gpu = False
    """whether the batches' frames are on the GPU"""
    clip_bytes = 0
    """bytes of one clip in a batch, about"""
    in_memory = False
    """whether the clips lie in memory, so that loading processes would only cost time"""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.labels = torch.from_numpy(labels)

    def __getitem__(self, item: Item) -> Any:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[Item]) -> Batch | Failure:
        raise NotImplementedError

    def columns(self, items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor]:
        """labels, clips, views: each (B,) int64."""
        clips, views = torch.tensor(list(items), dtype=torch.int64).reshape(-1, 2).unbind(1)
        return self.labels[clips], clips.contiguous(), views.contiguous()


class VideoDataset(ClipDataset):
    """Decodes videos.

    Args:
        index: The clips.
        sampling: Frames to take from each clip.
        seed: Seed of the training views.
        decoder: ``cuda`` decodes the clips of a batch side by side on the current GPU.

    Raises:
        UsageError: The GPU cannot be used for decoding.
        VideoError: It cannot decode the first video.
    """

    def __init__(self, index: ClipIndex, sampling: FrameSampling, seed: int, decoder: Decoder = "cpu") -> None:
        super().__init__(index.label)
        self.index, self.sampling, self.seed, self.decoder = index, sampling, seed, decoder
        self.clip_bytes = 3 * sampling.frames * sampling.size**2
        if self.on_gpu:
            require_gpu_decoding(index.file(int(index.usable[0])))

    @property
    def on_gpu(self) -> bool:  # type: ignore[override]
        return self.decoder == "cuda"

    def __getitems__(self, items: Sequence[Item]) -> VideoBatch | Failure:
        labels, clips, views = self.columns(items)
        try:
            decoded = self._on_gpu(items) if self.on_gpu else [self._decode(clip, view) for clip, view in items]
        except VideoError as error:
            advice = f"`vtlvlm prepare {self.index.root} --verify` finds all such clips and leaves them out"
            return Failure(DataError(f"{error}. {advice}"))
        except MemoryError as error:
            return Failure(error)
        except OSError as error:  # from plain values: a library's own error may not pickle
            return Failure(OSError(error.errno, error.strerror, error.filename) if error.errno else DataError(str(error)))
        frames, times = (torch.stack(column) for column in zip(*decoded, strict=True))
        return VideoBatch(frames, times, labels, clips, views)

    def _decode(self, clip: int, view: int) -> tuple[Tensor, Tensor]:
        name, length, rate = str(self.index.name[clip]), int(self.index.frames[clip]), float(self.index.fps[clip])
        file = self.index.file(clip)
        return decode_sampled(file, self.sampling, view=view, name=name, seed=self.seed, num_frames=length, rate=rate, decoder=self.decoder)

    def _on_gpu(self, items: Sequence[Item]) -> list[tuple[Tensor, Tensor]]:
        """Decode clips side by side: a GPU has several decoders."""
        place = torch.cuda.current_device()  # new threads begin at GPU 0

        def decode(item: Item) -> tuple[Tensor, Tensor]:
            with torch.cuda.device(place):
                return self._decode(*item)

        with ThreadPoolExecutor(len(items)) as pool:
            return list(pool.map(decode, items))


class CachedDataset(ClipDataset):
    """Base class of the datasets that read a cache.

    Args:
        labels: (n,) labels of all clips of the index.
        views: (V,) numbers of the cache's views, rising.
        rows: (V, n) cache row of each view and clip, -1 if missing.
    """

    def __init__(self, labels: NDArray[np.int64], views: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        super().__init__(labels)
        self.views, self.rows = views, rows

    def rows_of(self, clips: Tensor, views: Tensor) -> NDArray[np.int64]:
        """Clips (B,) and view numbers (B,) -> cache rows (B,)."""
        return rows_at(self.rows, self.views, clips, views)


def rows_at(rows: NDArray[np.int64], held: NDArray[np.int64], clips: Tensor, views: Tensor) -> NDArray[np.int64]:
    """Clips (B,) and view numbers (B,) -> the entries (B,) of ``rows`` (V, n); ``held`` (V,) are the view numbers of its V rows."""
    return rows[np.searchsorted(held, views.numpy()), clips.numpy()]


class Targets(NamedTuple):
    """The features that stage 1 rebuilds from its input."""

    cache: FeatureCache
    rows: NDArray[np.int64]
    """(V, n) row of ``cache`` for each view and clip, -1 if missing. The V views are the features' views"""


class FeatureDataset(CachedDataset):
    """Reads features, and their targets if there are any."""

    def __init__(
        self,
        labels: NDArray[np.int64],
        cache: FeatureCache,
        views: NDArray[np.int64],
        rows: NDArray[np.int64],
        targets: Targets | None = None,
    ) -> None:
        super().__init__(labels, views, rows)
        self.cache, self.targets = cache, targets
        self.clip_bytes = cache.row_bytes + (0 if targets is None else targets.cache.row_bytes)

    def __getitems__(self, items: Sequence[Item]) -> FeatureBatch:
        labels, clips, views = self.columns(items)
        rows = self.rows_of(clips, views)
        wanted = self.targets
        targets = None if wanted is None else wanted.cache.features(rows_at(wanted.rows, self.views, clips, views))
        return FeatureBatch(self.cache.features(rows), self.cache.times(rows), targets, labels, clips, views)


class EventDataset(CachedDataset):
    """Reads event sentences."""

    def __init__(self, labels: NDArray[np.int64], cache: EventCache, views: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        super().__init__(labels, views, rows)
        self.cache = cache
        self.clip_bytes, self.in_memory = cache.row_bytes, cache.table is not None

    def __getitems__(self, items: Sequence[Item]) -> EventBatch:
        labels, clips, views = self.columns(items)
        rows = self.rows_of(clips, views)
        return EventBatch(self.cache.ids(rows), self.cache.vectors(rows), self.cache.spans(rows), labels, clips, views)
