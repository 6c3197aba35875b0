"""Pictures of codes: the frame cells in which the most used codes occur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import VideoError, decode, probe

CELL_PIXELS = 96
"""Pixels of a picture's side."""
KEPT = 256
"""Clips whose codes are kept, at most; more clips are thinned evenly."""


class Place(NamedTuple):
    """A place where a code occurs."""

    code: int
    row: int
    """row of the kept clips"""
    window: int
    cell: int


@dataclass
class KeptEvents:
    """The event sentences of some clips of an epoch, spread evenly over it. They stay on their device until they are asked for.

    Attributes:
        stride: one batch in ``stride`` is kept.
        batches: the columns of each kept batch, see :meth:`add`.
    """

    stride: int = 1
    batches: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, number: int, *columns: Tensor) -> None:
        """Keep a batch, if :meth:`wants` says so.

        Args:
            number: position of the batch in the epoch.
            columns: (B, W, S) codes, (B, W) the feature step in the middle of each window, (B,) rows of the index, (B,) views.
        """
        if self.wants(number):
            self.batches.append(columns)
            if sum(len(batch[0]) for batch in self.batches) > KEPT and len(self.batches) > 1:
                self.batches, self.stride = self.batches[::2], 2 * self.stride

    def wants(self, number: int) -> bool:
        """Whether the batch at this position is kept."""
        return number % self.stride == 0

    def __bool__(self) -> bool:
        return bool(self.batches)

    def column(self, number: int) -> NDArray[np.int64]:
        """One column of all kept batches, by its position in :meth:`add`."""
        found: NDArray[np.int64] = torch.cat([batch[number] for batch in self.batches]).cpu().numpy()
        return found


def select_crops(
    ids: NDArray[np.int64], clips: NDArray[np.int64], codes: Sequence[int], each: int = 3, most_clips: int = 12
) -> dict[int, list[Place]]:
    """Find places of codes, each in a different clip, using few clips, since each has to be decoded.

    The choice is greedy: the next clip contains the most codes that still lack places.

    Args:
        ids: (n, W, S) codes, one row per clip and view.
        clips: (n,) rows of the index; equal for views of one clip.
        codes: codes to find.
        each: places per code.
        most_clips: rows to use, at most.

    Returns:
        The places of each code: the middle one of its occurrences in a clip.
    """
    flat = ids.reshape(len(ids), -1)
    occurs = np.zeros((len(ids), max(*codes, int(flat.max()), 0) + 2), dtype=bool)
    occurs[np.arange(len(ids))[:, None], flat] = True  # -1 falls into the last column, which no code has
    has = occurs[:, list(codes)]  # (n, codes)
    found: dict[int, list[Place]] = {code: [] for code in codes}
    free = np.ones(len(ids), dtype=bool)
    for _ in range(most_clips):
        lacking = np.array([len(found[code]) < each for code in codes])
        served = (has & lacking).sum(1) * free
        if not served.any():
            break
        row = int(served.argmax())
        free &= clips != clips[row]
        for code in np.asarray(codes)[has[row] & lacking].tolist():
            occurrences = np.flatnonzero(flat[row] == code)
            window, cell = divmod(int(occurrences[len(occurrences) // 2]), ids.shape[2])
            found[code].append(Place(code, row, window, cell))
    return found


class Exemplars(NamedTuple):
    """Pictures of codes."""

    pictures: dict[int, list[tuple[NDArray[np.uint8], int]]]
    """code -> cells (CELL_PIXELS, CELL_PIXELS, 3) RGB, each with its clip's row in the index"""
    note: str
    """one line that says why pictures are missing; "" if none is"""


def decode_crops(places: dict[int, list[Place]], kept: KeptEvents, data: Any, grid: int, frame_stride: int) -> Exemplars:
    """Decode the cells at given places, each clip once.

    The frame is the middle sampled frame of the feature step. Crop, flip and grid are those of the extractor's input. Clips
    that cannot be decoded are left out.

    Args:
        places: from :func:`select_crops`.
        kept: the clips whose rows ``places`` name.
        data: the data module, for its index, sampling and seed.
        grid: g, cells along a side.
        frame_stride: sampled frames per feature step.
    """
    steps, clips, views = (kept.column(number) for number in (1, 2, 3))
    sampling = FrameSampling(**data.sampling_settings["init_args"])
    pictures: dict[int, list[tuple[NDArray[np.uint8], int]]] = {code: [] for code in places}
    failures: list[str] = []
    rows = sorted({place.row for found in places.values() for place in found})
    for row in rows:
        here = [place for found in places.values() for place in found if place.row == row]
        clip = int(clips[row])
        positions = [int(steps[row, place.window]) * frame_stride + frame_stride // 2 for place in here]
        try:
            frames = _frames(data, clip, int(views[row]), sampling, positions, grid * CELL_PIXELS)
        except VideoError as error:
            failures.append(str(error))
            continue
        for place, frame in zip(here, frames, strict=True):
            top, left = (CELL_PIXELS * number for number in divmod(place.cell, grid))
            pictures[place.code].append((frame[top : top + CELL_PIXELS, left : left + CELL_PIXELS], clip))
    note = f"{len(failures)} of {len(rows)} videos cannot be decoded: {failures[0]}" if failures else ""
    return Exemplars(pictures, note)


def _frames(data: Any, clip: int, view: int, sampling: FrameSampling, positions: Sequence[int], size: int) -> NDArray[np.uint8]:
    """Frames (n, size, size, 3) of a view of a clip, by their positions in the sample."""
    index = data.index
    file, length, rate = index.file(clip), int(index.frames[clip]), float(index.fps[clip])
    if length < 1 or (sampling.mode == "fps" and not rate > 0):
        info = probe(file)
        length, rate = info.frames, info.fps
    plan = sampling.view(view, num_frames=length, name=str(index.name[clip]), seed=data.seed, rate=rate)
    numbers = plan.indices[np.minimum(positions, len(plan.indices) - 1)]
    frames = decode(file, numbers, size=size, crop=sampling.crop, flip=plan.flip, zoom=plan.zoom, shift=plan.shift).frames
    pictures: NDArray[np.uint8] = frames.permute(0, 2, 3, 1).numpy()
    return pictures
