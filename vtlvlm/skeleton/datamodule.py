"""The data module of the skeleton networks: recordings, prepared on the device as a method's official code does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.batches import RecordingBatch, SkeletonBatch
from vtlvlm.data.clip_module import ClipDataModule, Purpose
from vtlvlm.data.datasets import ClipDataset, Failure
from vtlvlm.data.index import ClipIndex
from vtlvlm.data.samplers import Item
from vtlvlm.data.sampling import TEST_VIEWS
from vtlvlm.errors import DataError, UsageError
from vtlvlm.skeleton.layouts import Layout
from vtlvlm.skeleton.packed import Recordings, open_recordings
from vtlvlm.skeleton.preparing import CropAndResize, Preparation
from vtlvlm.skeleton.source import SkeletonSource, rows_of
from vtlvlm.skeleton.streams import Stream
from vtlvlm.skeleton.transforms import draws

MOST_FRAMES = 1000
"""Frames of a recording in a batch; of a longer one, as many at equal distances. NTU's longest has 300"""
Coordinates = Literal["metres", "pixels"]


class SkeletonDataModule(ClipDataModule):
    """Recordings of bodies, as batches of one stream.

    Training draws anew for each clip in each epoch. The draws depend on the seed, the clip and the epoch, not on the batch or the number of
    processes.

    Args:
        source: The recordings, their labels and their split.
        preparation: Makes all clips equally long.
        stream: joint, bone, joint_motion, bone_motion, ancestor:k or ancestor_motion:k; see ``Stream``.
        coordinates: ``metres`` in space, or ``pixels`` of the video with a confidence, for PoseC3D.
        bodies: M; None for the largest number in the recordings. Of more bodies, the first are taken.
        repeats: Times that an epoch has each training clip, each time drawn anew. NW-UCLA's official recipe has 5.
        batch_size: Clips for each optimiser step, over all processes and passes. A multiple of the number of processes.
        micro_batch_size: Most clips that one process takes at once; None for its whole share of a batch.
        num_workers: Loading processes for each rank; None for one per core, at most 16. An ``.npz`` file uses none: it lies in memory.
        seed: Seed of the validation split, the order of clips, and the draws.

    Raises:
        UsageError: The layout lacks the stream, the recordings lack pixels, the preparation needs metres, or a number is out of range.
        DataError: No recording is usable, or a side of the split is empty.
    """

    def __init__(
        self,
        source: SkeletonSource,
        preparation: Preparation = CropAndResize(),  # noqa: B008 - frozen
        stream: str = "joint",
        coordinates: Coordinates = "metres",
        bodies: int | None = None,
        repeats: int = 1,
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(source, batch_size, micro_batch_size, num_workers, seed)
        if coordinates not in ("metres", "pixels"):
            raise UsageError(f"data.coordinates={coordinates}: choose metres or pixels")
        if bodies not in (None, 1, 2) or repeats < 1:
            raise UsageError(f"data.bodies={bodies}, data.repeats={repeats}: one or two bodies, repeats from 1")
        if coordinates == "pixels" and preparation.needs_metres:
            remedy = "use data.coordinates metres, or UniformFrames or WholeClips with align false"
            raise UsageError(f"preparation {type(preparation).__name__} turns bodies in space, which pixels are not: {remedy}")
        self.preparation, self.stream, self.coordinates = preparation, stream, coordinates
        self.repeats, self._bodies = repeats, bodies
        self._recordings: Recordings | None = None
        self._rows: NDArray[np.int64] | None = None
        self._stream: Stream | None = None

    # -- setting up --------------------------------------------------------------------------------------------------------------

    def _find(self, progress: bool) -> ClipIndex:
        recordings = self.source.prepared(progress)
        self._stream = Stream(self.stream, recordings.layout)  # refused before the clips are split
        index: ClipIndex = self.source.index(recordings)
        return index

    def _open(self) -> None:
        self._recordings = open_recordings(self.source.packed)
        if self.coordinates == "pixels" and self._recordings.parts[0].shape[-1] == 3:
            raise UsageError(f"{self._recordings.source}: holds no pixels; use data.coordinates metres, or .skeleton files")
        self._rows = rows_of(self.index, self._recordings)
        self._stream = Stream(self.stream, self.layout)

    # -- facts -------------------------------------------------------------------------------------------------------------------

    @property
    def recordings(self) -> Recordings:
        """The recordings."""
        if self._recordings is None:
            raise RuntimeError("call setup() first")
        return self._recordings

    @property
    def layout(self) -> Layout:
        """The joints."""
        return self.recordings.layout

    @property
    def bodies(self) -> int:
        """M of every batch."""
        return int(self.recordings.bodies.max()) if self._bodies is None else self._bodies

    @property
    def window(self) -> int:
        """T of every batch."""
        return self.preparation.window

    @property
    def num_views(self) -> int:
        """1: training draws in each epoch, and stores no views."""
        return 1

    @property
    def test_views(self) -> tuple[int, ...]:
        """Views whose probabilities a test averages; (0,) is the plain view alone."""
        return self.preparation.test_views

    @property
    def sampling_settings(self) -> dict[str, Any]:
        """The preparation as class_path and init_args, with the stream and the coordinates."""
        kind = type(self.preparation)
        made = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(vars(self.preparation))}
        return {**made, "stream": self.stream, "coordinates": self.coordinates}

    # -- batches -----------------------------------------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Draw each clip's random numbers, here, where its number and view are: a look at them on a GPU would wait for it."""
        if not isinstance(batch, RecordingBatch):
            return batch
        epoch = f"/{self.trainer.current_epoch}" if batch.training and self.trainer is not None else ""
        seeds = [f"{self.seed}/{name}/{view}{epoch}" for name, view in self.keys(batch.clips, batch.views)]
        return batch._replace(random=draws(seeds, self.preparation.numbers(self.layout)))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Prepare recordings on the device: (B, 3, T, V, M) of different lengths -> (B, 3, T', V, M) of the stream."""
        if not isinstance(batch, RecordingBatch):
            return batch
        assert self._stream is not None
        assert batch.random is not None, "on_before_batch_transfer() first"
        joints = self.preparation(batch.joints, batch.lengths, self.layout, batch.random, batch.training)
        return SkeletonBatch(self._stream(joints), batch.labels, batch.clips, batch.views)

    def _stored_views(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.ones(len(clips), dtype=np.int64)

    def _learning(self, clips: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every clip as often as an epoch has it. Its view is the number of a draw, from 0; see :class:`RecordingDataset`."""
        repeated = np.repeat(clips, self.repeats)
        return repeated, np.full(len(repeated), TEST_VIEWS - 1)

    def _dataset(self, purpose: Purpose) -> ClipDataset:
        assert self._rows is not None
        return RecordingDataset(self.index.label, self.recordings, self._rows, self.coordinates, self.bodies, purpose == "train")


class RecordingDataset(ClipDataset):
    """Reads recordings, and pads those of a batch to the longest.

    Args:
        labels: (n,) labels of all clips of the index.
        recordings: The recordings.
        rows: (n,) recording of each clip.
        coordinates: ``metres`` or ``pixels``.
        bodies: M.
        training: Training draws have the views from 1 up: the sampler's number and one more.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        recordings: Recordings,
        rows: NDArray[np.int64],
        coordinates: Coordinates,
        bodies: int,
        training: bool,
    ) -> None:
        super().__init__(labels)
        self.recordings, self.rows, self.coordinates, self.bodies, self.training = recordings, rows, coordinates, bodies, training
        self.in_memory = recordings.source.is_file()
        longest = min(MOST_FRAMES, int(recordings.frames.max()))
        self.clip_bytes = 12 * longest * recordings.layout.num_joints * bodies

    def __getitems__(self, items: Sequence[Item]) -> Any:
        """A ``RecordingBatch``, or the failure of a shard that is gone."""
        labels, clips, views = self.columns(items)
        try:
            found = [self._clip(int(self.rows[clip])) for clip, _ in items]
        except DataError as error:
            return Failure(error)
        lengths = [one.shape[1] for one in found]
        joints = np.zeros((len(found), self.bodies, max(lengths), self.recordings.layout.num_joints, 3), dtype=np.float32)
        for place, one in enumerate(found):
            joints[place, : len(one), : one.shape[1]] = one
        moved = torch.from_numpy(joints).permute(0, 4, 2, 3, 1).contiguous()
        return RecordingBatch(moved, torch.tensor(lengths), labels, clips, views + 1 if self.training else views, self.training)

    def _clip(self, row: int) -> NDArray[np.float32]:
        """(at most M, T, V, 3) of a recording."""
        return coordinates_of(self.recordings.values(row)[: self.bodies], self.coordinates)


def coordinates_of(values: NDArray[np.float32], coordinates: Coordinates) -> NDArray[np.float32]:
    """What a network reads of a recording: (M, T, V, 3 or 6) -> (M, at most ``MOST_FRAMES``, V, 3).

    Args:
        values: x, y, z in metres; for pixels also the two pixels and the tracking state.
        coordinates: metres, or pixels, which become x, y and a confidence in [0, 1]: zeros where the pixels are unknown.
    """
    if values.shape[1] > MOST_FRAMES:
        values = values[:, np.arange(MOST_FRAMES) * values.shape[1] // MOST_FRAMES]
    if coordinates == "metres":
        return values[..., :3]
    pixels, state = values[..., 3:5], values[..., 5]
    seen = np.isfinite(pixels[..., 0]) & np.isfinite(pixels[..., 1])
    confidence = np.where(seen, state / 2, 0)  # tracked 1, inferred a half
    return np.concatenate([np.where(seen[..., None], pixels, 0), confidence[..., None]], axis=-1)
