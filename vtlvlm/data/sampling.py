"""Which frames of a clip are looked at: arithmetic on frame numbers that never opens a file.

Short clips (``num_frames < num_segments``) repeat frames in proportion: every frame is shown about ``num_segments / num_frames`` times,
in order. Nothing is padded, so the number of repeats does not tell the length of the clip any more than the content does.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError


def _require_positive(num_frames: int, num_segments: int) -> None:
    if num_frames < 1 or num_segments < 1:
        raise ValueError(f"num_frames={num_frames}, num_segments={num_segments}: both must be at least 1")


def segment_centres(*, num_frames: int, num_segments: int) -> NDArray[np.int64]:
    """The middle frame of each of ``num_segments`` equal parts of a clip.

    Args:
        num_frames: Length of the clip, at least 1.
        num_segments: Number of frames wanted (T), at least 1.

    Returns:
        (T,) non-decreasing frame numbers in [0, num_frames).

    Raises:
        ValueError: One of the numbers is below 1.
    """
    _require_positive(num_frames, num_segments)
    return (2 * np.arange(num_segments, dtype=np.int64) + 1) * num_frames // (2 * num_segments)


def random_in_segments(*, num_frames: int, num_segments: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """One frame drawn uniformly from each of ``num_segments`` equal parts of a clip (training views).

    Args:
        num_frames: Length of the clip, at least 1.
        num_segments: Number of frames wanted (T), at least 1.
        generator: Source of the draw; the same state gives the same frames.

    Returns:
        (T,) non-decreasing frame numbers in [0, num_frames).

    Raises:
        ValueError: One of the numbers is below 1.
    """
    _require_positive(num_frames, num_segments)
    places = (np.arange(num_segments) + generator.random(num_segments)) * (num_frames / num_segments)
    return np.minimum(places.astype(np.int64), num_frames - 1)


class View(NamedTuple):
    """How one stored view of a clip is taken."""

    indices: NDArray[np.int64]
    """(T,) frame numbers"""
    flip: bool
    zoom: float
    """side of the cut as a part of the largest one, in (0, 1]"""
    shift: tuple[float, float]
    """place of the cut in the room that is left, each in [-1, 1]"""


@dataclass(frozen=True)
class FrameSampling:
    """How frames are taken from a clip.

    Args:
        frames: T, frames sampled from each clip.
        size: Side of the square pictures in pixels.
        crop: ``center`` cuts the largest centred square; ``pad`` keeps the whole picture and adds black bars, for actors at its edge.
        views: Stored views of each training clip. View 0 is the plain one; the others differ in frames, mirroring and cut.
    """

    frames: int = 32
    size: int = 224
    crop: Literal["center", "pad"] = "center"
    views: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.size, self.views) < 1:
            raise UsageError(f"sampling: frames={self.frames}, size={self.size} and views={self.views} must each be at least 1")
        if self.crop not in ("center", "pad"):
            raise UsageError(f"sampling: crop={self.crop!r} must be center or pad")

    def view(self, number: int, *, num_frames: int, name: str, seed: int) -> View:
        """View ``number`` of the clip ``name``.

        View 0 is the segment centres, uncropped. Views above draw one frame a segment and cut 85 to 100 % of the side at a random place,
        seeded by (seed, name, number); odd ones are mirrored.
        """
        if number == 0:
            return View(segment_centres(num_frames=num_frames, num_segments=self.frames), False, 1.0, (0.0, 0.0))
        digest = blake2b(f"{seed}/{name}/{number}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        indices = random_in_segments(num_frames=num_frames, num_segments=self.frames, generator=generator)
        zoom, x, y = generator.uniform((0.85, -1.0, -1.0), (1.0, 1.0, 1.0)).tolist()
        return View(indices, number % 2 == 1, zoom, (x, y))
