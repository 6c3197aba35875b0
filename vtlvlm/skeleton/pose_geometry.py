"""Where BlazePose looks, and what its numbers mean: the detector's boxes, the square cut around a body, and the heat maps of its landmarks.

Pictures are (height, width, 3) uint8 RGB. Places in them are continuous pixels from the upper left corner, x before y.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DETECTOR_SIDE, CUT_SIDE = 224, 256
GRIDS = ((28, 2), (14, 2), (7, 6))
"""Cells a side, and anchors of each cell, of the detector's three outputs."""
LIKELY = 0.5
"""Least probability of a person, of a followed person's presence, and of a visible landmark."""
OVERLAP = 0.3
"""Intersection over union from which two boxes are one person."""
MARGIN = 1.25
"""Side of the cut relative to the circle around the body."""
HEAT_SIDE, HEAT_REACH = 64, 3
"""Cells of a side of a heat map, and cells around a landmark in which its heat map mends it."""


def anchors() -> Array:
    """(2254, 2) centres of the detector's anchors, in sides of its input: x in the inner order, row by row."""
    parts = []
    for cells, copies in GRIDS:
        centres = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(centres, centres, indexing="ij")
        parts.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), copies, axis=0))
    return np.concatenate(parts)


class Letterbox(NamedTuple):
    """A picture scaled into the middle of a square, with black bars."""

    scale: float
    left: int
    top: int
    width: int
    height: int

    @classmethod
    def of(cls, width: int, height: int, side: int = DETECTOR_SIDE) -> Letterbox:
        scale = side / max(width, height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        return cls(scale, (side - inner[0]) // 2, (side - inner[1]) // 2, *inner)

    def to_picture(self, places: Array) -> Array:
        """Pixels of the square (..., 2) → pixels of the picture."""
        return (places - [self.left, self.top]) / self.scale


def parts(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of the squares in which the detector takes a closer look at a picture that is no square.

    Two squares of the shorter side, at both ends, or three if they hardly overlap. In them people look up to twice as large.
    """
    side, longer = min(width, height), max(width, height)
    if longer < 1.2 * side:
        return []
    starts = np.linspace(0, longer - side, 2 if longer < 1.5 * side else 3).round().astype(int).tolist()
    return [(start, 0, start + side, side) if width > height else (0, start, side, start + side) for start in starts]


class Detection(NamedTuple):
    """A person that the detector found."""

    score: float
    points: Array
    """(4, 2): hips, a point on the circle around the body, shoulders, a point on the circle around the upper body"""

    @property
    def torso(self) -> Array:
        """(2, 2) middle of the hips and of the shoulders."""
        return self.points[[0, 2]]


def detections(boxes: Array, logits: Array) -> list[Detection]:
    """The detector's outputs (2254, 12) and (2254,) → people, in pixels of its input, best first.

    Boxes that overlap the best one are one person with it, and are averaged by their probabilities.
    """
    likely = np.flatnonzero(logits > np.log(LIKELY / (1 - LIKELY)))
    if not len(likely):
        return []
    scores = 1 / (1 + np.exp(-np.clip(logits[likely], -100, 100)))
    centres = anchors()[likely] * DETECTOR_SIDE
    middle, size = boxes[likely, :2] + centres, boxes[likely, 2:4]
    points = boxes[likely, 4:].reshape(-1, 4, 2) + centres[:, None]
    lower, upper = middle - size / 2, middle + size / 2
    area = size.prod(axis=1)
    left, found = np.argsort(-scores, kind="stable"), []
    while len(left):
        best = left[0]
        shared = np.clip(np.minimum(upper[left], upper[best]) - np.maximum(lower[left], lower[best]), 0, None).prod(axis=1)
        together = shared > OVERLAP * (area[left] + area[best] - shared)
        together[0] = True
        own = left[together]
        found.append(Detection(float(scores[best]), np.average(points[own], axis=0, weights=scores[own])))
        left = left[~together]
    return found


class Region(NamedTuple):
    """A square cut around a body, turned so that the body stands upright in it."""

    centre: Array
    """(2,) pixels of the picture"""
    side: float
    """pixels"""
    up: Array
    """(2,) unit vector in the picture"""

    @classmethod
    def around(cls, centre: Array, edge: Array) -> Region:
        """The square with a margin around the circle through ``edge``, which ends above the head."""
        towards = edge - centre
        radius = float(np.hypot(*towards))
        return cls(centre, 2 * MARGIN * radius, towards / max(radius, 1e-6))

    @property
    def axes(self) -> Array:
        """(2, 2): the picture's directions of the cut's x (right) and y (down)."""
        return np.array([[-self.up[1], self.up[0]], -self.up])

    def to_picture(self, places: Array) -> Array:
        """Pixels of the cut (..., 2) → pixels of the picture."""
        return self.centre + (places / CUT_SIDE - 0.5) * self.side @ self.axes

    def cut(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The pixels (side, side, 3) of the cut, between those of the picture (bilinear). Outside the picture its border goes on, as in
        MediaPipe's own cut."""
        step = self.axes.astype(np.float32) * np.float32(self.side / CUT_SIDE)
        origin = (self.to_picture(np.zeros(2)) - 0.5).astype(np.float32)
        steps = np.arange(CUT_SIDE, dtype=np.float32) + np.float32(0.5)
        x, y = (origin[axis] + steps[:, None] * step[1, axis] + steps * step[0, axis] for axis in (0, 1))
        (left, right, across), (top, bottom, down) = (_between(at, size) for at, size in ((x, picture.shape[1]), (y, picture.shape[0])))
        upper = picture[top, left] * (1 - across) + picture[top, right] * across
        lower = picture[bottom, left] * (1 - across) + picture[bottom, right] * across
        found: NDArray[np.float32] = (upper * (1 - down) + lower * down).astype(np.float32)
        return found


def _between(at: NDArray[np.float32], size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The pixels before and after places (S, S) along an axis, and the share (S, S, 1) of the one after."""
    inside = np.clip(at, 0, size - 1)
    before = inside.astype(np.intp)
    return before, np.minimum(before + 1, size - 1), (inside - before)[..., None]


def mended(places: Array, heat: Array) -> Array:
    """Landmarks (n, 2), in pixels of the cut, moved to the middle of their heat maps (64, 64, n) close by, as MediaPipe does it.

    A heat map holds logits. A landmark stays where its heat map is nowhere above one half within three cells.
    """
    number = np.arange(len(places))[:, None, None]
    near = np.arange(-HEAT_REACH, HEAT_REACH + 1)
    column, row = np.trunc(places * HEAT_SIDE / CUT_SIDE).astype(int).T[:, :, None, None]
    columns, rows = np.broadcast_arrays(column + near, row + near[:, None])
    inside = (columns >= 0) & (columns < HEAT_SIDE) & (rows >= 0) & (rows < HEAT_SIDE)
    logits = heat[rows.clip(0, HEAT_SIDE - 1), columns.clip(0, HEAT_SIDE - 1), number]
    weights = np.where(inside, 1 / (1 + np.exp(-np.clip(logits, -100, 100))), 0.0)
    total = np.maximum(weights.sum((1, 2)), 1e-12)
    middle = np.stack([(weights * at).sum((1, 2)) / total for at in (columns, rows)], axis=1) * CUT_SIDE / HEAT_SIDE
    sure = (weights.max((1, 2)) >= LIKELY) & inside[:, HEAT_REACH, HEAT_REACH]
    return np.where(sure[:, None], middle, places)
