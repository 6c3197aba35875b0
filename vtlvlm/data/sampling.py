"""Chooses the frames of a clip: arithmetic on frame numbers that never opens a file.

Short clips (``num_frames < num_segments``) repeat every frame about ``num_segments / num_frames`` times, in order. Nothing is padded, so
padding cannot leak the clip's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError

TEST_VIEWS = 1000
"""Views from this number on are test views; views from 1 up to it are training views."""
Short = Literal["stretch", "hold"]


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


def spaced(*, num_frames: int, num_segments: int, stride: float, start: float, short: Short = "stretch") -> NDArray[np.int64]:
    """``num_segments`` frames, ``stride`` frames apart: a piece of the clip, at its own speed.

    Args:
        num_frames: Length of the clip, at least 1.
        num_segments: Number of frames wanted (T), at least 1.
        stride: Frames from one to the next, above 0; need not be whole.
        start: Position of the piece in the clip, in [0, 1]: 0 at the beginning, 1 at the end.
        short: For clips shorter than the piece: ``stretch`` spreads the frames over the whole clip, ``hold`` repeats the last frame.

    Returns:
        (T,) non-decreasing frame numbers in [0, num_frames).

    Raises:
        ValueError: One of the numbers is out of range.
    """
    _require_positive(num_frames, num_segments)
    if not stride > 0 or not 0 <= start <= 1:
        raise ValueError(f"stride={stride}, start={start}: need a stride above 0 and a start in [0, 1]")
    steps = np.arange(num_segments) * stride
    room = num_frames - 1 - int(steps[-1])
    if room >= 0:
        return (np.floor(start * (room + 1)).clip(max=room) + steps).astype(np.int64)
    if short == "stretch":
        return segment_centres(num_frames=num_frames, num_segments=num_segments)
    return steps.astype(np.int64).clip(max=num_frames - 1)


class View(NamedTuple):
    """Frames and cut of one view of a clip."""

    indices: NDArray[np.int64]
    """(T,) frame numbers"""
    flip: bool
    zoom: float
    """side of the cut relative to the largest possible one, in (0, 1]"""
    shift: tuple[float, float]
    """position of the cut in the picture, each in [-1, 1]; 0 is the centre"""


@dataclass(frozen=True)
class FrameSampling:
    """Settings for sampling frames from a clip.

    Args:
        frames: T, frames sampled from each clip.
        size: Side of the square pictures in pixels.
        crop: ``center`` cuts the largest centred square; ``pad`` keeps the whole picture and adds black bars, for actors at its edge.
        views: Stored views of each training clip. View 0 is the plain one; the others differ in frames, mirroring and cut.
        mode: ``uniform`` spreads the frames over the whole clip. ``dense`` takes a piece of the clip, one frame every ``stride``. ``fps``
            takes a piece at ``fps`` frames per second, whatever the clip's own rate.
        stride: Frames from one to the next in ``dense`` mode.
        fps: Frames per second in ``fps`` mode.
        short: For clips shorter than the piece: ``stretch`` spreads the frames over the whole clip, ``hold`` repeats the last frame.
        test_clips: Test views of each test clip along time, evenly spread. ``vtlvlm test`` averages the probabilities of all test views,
            and so does ``classify`` with a video network. Validation, ``classify`` with other models and the linear probes use the plain
            view.
        test_crops: Crops for each of the ``test_clips``: 1 (centre) or 3 (both ends and the middle of the longer side).
    """

    frames: int = 32
    size: int = 224
    crop: Literal["center", "pad"] = "center"
    views: int = 1
    mode: Literal["uniform", "dense", "fps"] = "uniform"
    stride: int = 2
    fps: float = 8.0
    short: Short = "stretch"
    test_clips: int = 1
    test_crops: Literal[1, 3] = 1

    def __post_init__(self) -> None:
        for name in ("frames", "size", "views", "stride", "test_clips"):
            if getattr(self, name) < 1:
                raise UsageError(f"sampling: {name}={getattr(self, name)} must be at least 1")
        if self.views > TEST_VIEWS:
            raise UsageError(f"sampling: views={self.views}: at most {TEST_VIEWS}")
        for name, known in (
            ("crop", ("center", "pad")),
            ("mode", ("uniform", "dense", "fps")),
            ("short", ("stretch", "hold")),
            ("test_crops", (1, 3)),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"sampling: {name}={getattr(self, name)!r} must be {', '.join(map(str, known[:-1]))} or {known[-1]}")
        if self.fps <= 0:
            raise UsageError(f"sampling: fps={self.fps} must be above 0")
        if self.crop == "pad" and self.test_crops > 1:
            raise UsageError("sampling: crop=pad keeps the whole picture and has one crop only: set test_crops=1 or crop=center")

    @property
    def test_views(self) -> tuple[int, ...]:
        """Views that a test averages: (0,), or numbers from ``TEST_VIEWS`` up."""
        count = self.test_clips * self.test_crops
        return (0,) if count == 1 else tuple(range(TEST_VIEWS, TEST_VIEWS + count))

    def view(self, number: int, *, num_frames: int, name: str, seed: int, rate: float = float("nan")) -> View:
        """View ``number`` of the clip ``name``.

        View 0 is the plain one: segment centres or the middle piece, uncropped. Training views (1 and up) draw their frames, and cut 85 to
        100 % of the side at a random position; (seed, name, number) seeds the draw. Odd views are mirrored. Test views (``TEST_VIEWS`` and
        up) run through the ``test_clips``, each with all its crops, and draw nothing.

        Args:
            number: Number of the view.
            num_frames: Length of the clip.
            name: Name of the clip; seeds the draw.
            seed: Seed of the draw.
            rate: The clip's own frames per second, above 0; only ``fps`` mode needs it.

        Raises:
            ValueError: The clip has no frames, or ``fps`` mode has no rate.
        """
        if number == 0:
            return View(self._indices(num_frames, rate, 0.5), False, 1.0, (0.0, 0.0))
        if number >= TEST_VIEWS:
            clip, crop = divmod(number - TEST_VIEWS, self.test_crops)
            place = 0.0 if self.test_crops == 1 else crop - 1.0
            return View(self._indices(num_frames, rate, (clip + 0.5) / self.test_clips), False, 1.0, (place, place))
        digest = blake2b(f"{seed}/{name}/{number}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        indices = self._indices(num_frames, rate, generator)
        zoom, x, y = generator.uniform((0.85, -1.0, -1.0), (1.0, 1.0, 1.0)).tolist()
        return View(indices, number % 2 == 1, zoom, (x, y))

    def _indices(self, num_frames: int, rate: float, place: float | np.random.Generator) -> NDArray[np.int64]:
        """(T,) frame numbers at a position in [0, 1], or at a drawn one."""
        stride = rate / self.fps if self.mode == "fps" else float(self.stride)
        if self.mode == "uniform":
            if isinstance(place, np.random.Generator):
                return random_in_segments(num_frames=num_frames, num_segments=self.frames, generator=place)
            _require_positive(num_frames, self.frames)
            return np.floor((np.arange(self.frames) + place) * num_frames / self.frames + 1e-9).astype(np.int64)
        start = place.random() if isinstance(place, np.random.Generator) else place
        return spaced(num_frames=num_frames, num_segments=self.frames, stride=stride, start=start, short=self.short)
