"""The rig and its rooms: the positions of the three cameras in each setup, and each camera's view of the empty room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from vtlvlm.synth.body import Array, unit

WIDTH, HEIGHT, FPS = 224, 168, 30
SUPERSAMPLING = 2
ANGLES = {1: 0.0, 2: -45.0, 3: 45.0}
"""Degrees around the performer, seen from above, 0 in front. As in NTU, camera 1 is in the middle, so X-View tests between two views."""
LOOK_AT = 1.05
"""Metres above the floor at which all cameras point."""
SETUPS_PER_SUBJECT = 2
SETUPS = 4
"""Rooms. A subject uses an odd and an even one: X-Set trains and tests on all people, X-Sub trains and tests in all rooms."""
DEPTH_FOCAL, DEPTH_SIZE = 365.0, (512, 424)
"""Kinect v2's depth camera: focal length and size in pixels"""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the middle of the performer."""

    position: Array
    axes: Array
    """(3, 3): rows point right, up and ahead in the image, in world coordinates"""
    focal: float
    """pixels"""

    @classmethod
    def of(cls, setup: Setup, camera: int) -> Camera:
        """Camera 1, 2 or 3 of a setup."""
        angle = math.radians(ANGLES[camera])
        position = np.array([setup.distance * math.sin(angle), setup.camera_height, setup.distance * math.cos(angle)])
        ahead = unit(np.array([0.0, LOOK_AT, 0.0]) - position)
        right = unit(np.cross(ahead, [0.0, 1.0, 0.0]))
        return cls(position, np.stack([right, np.cross(right, ahead), ahead]), 1.42 * HEIGHT)

    def see(self, points: Array) -> Array:
        """World points (..., 3) in camera coordinates, as in NTU: right, up, distance ahead, in metres."""
        return (points - self.position) @ self.axes.T

    def project(self, points: Array, scale: float = 1.0) -> Array:
        """World points (..., 3) -> (..., 3): x and y in pixels times ``scale`` from the upper left corner, distance ahead in metres."""
        seen = self.see(points)
        ahead = np.maximum(seen[..., 2], 0.05)
        x = scale * (WIDTH / 2 + self.focal * seen[..., 0] / ahead)
        y = scale * (HEIGHT / 2 - self.focal * seen[..., 1] / ahead)
        return np.stack([x, y, seen[..., 2]], axis=-1)


@dataclass(frozen=True)
class Setup:
    """One arrangement of room and rig, determined by the seed and the setup's number."""

    number: int
    distance: float
    """metres from the cameras to the performer"""
    camera_height: float
    """metres"""
    wall: tuple[float, float, float]
    floor: tuple[float, float, float]
    planks: bool
    light: tuple[float, float]
    """offset of a shadow on the floor, in metres per metre of height"""
    chair: tuple[float, float, float]
    furniture: tuple[tuple[float, float, float, float, float, float, float, float], ...]
    """flat panels at the back: x, y, z of the lower left, width, height, red, green, blue"""

    @classmethod
    def of(cls, seed: int, number: int) -> Setup:
        """Setup ``number``, from 1."""
        rng = np.random.default_rng([seed, 3, number])

        def colour(base: Array, spread: float) -> tuple[float, float, float]:
            red, green, blue = np.clip(base + rng.uniform(-spread, spread, 3), 20, 245).tolist()
            return red, green, blue

        wall = colour(np.full(3, rng.uniform(170, 195)), 8)
        furniture = []
        for left in (-3.2, -1.7, 1.0, 2.3):
            kind = rng.integers(4)
            x = left + rng.uniform(0, 0.4)
            if kind == 0:  # poster
                furniture.append(
                    (x, rng.uniform(1.3, 1.6), -1.99, rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.8), *colour(np.full(3, 150.0), 35))
                )
            elif kind == 1:  # door
                furniture.append((x, 0.0, -1.99, 0.85, 2.05, *colour(np.array([140.0, 108.0, 80.0]), 25)))
            elif kind == 2:  # cabinet
                furniture.append((x, 0.0, -1.80, rng.uniform(0.7, 1.1), rng.uniform(0.6, 1.2), *colour(np.full(3, 150.0), 20)))
        return cls(
            number=number,
            distance=round(float(rng.uniform(3.0, 3.35)), 3),
            camera_height=round(float(rng.uniform(1.2, 1.5)), 3),
            wall=wall,
            floor=colour(np.array([140.0, 128.0, 114.0]), 10),
            planks=bool(rng.random() < 0.5),
            light=(round(float(rng.uniform(-0.35, 0.35)), 3), round(float(rng.uniform(-0.3, 0.1)), 3)),
            chair=colour(np.array([96.0, 74.0, 58.0]), 24),
            furniture=tuple(furniture),
        )


def setup_of(subject: int, coin: int) -> int:
    """The setup number of a subject's clip. Subjects alternate between the two pairs (odd, even) of setups."""
    return 1 + SETUPS_PER_SUBJECT * ((subject - 1) % (SETUPS // SETUPS_PER_SUBJECT)) + coin


def backdrop(setup: Setup, camera: Camera) -> Image.Image:
    """The empty room, in supersampled size."""
    scale = SUPERSAMPLING
    image = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), _rgb(setup.wall))
    draw = ImageDraw.Draw(image)

    def panel(corners: list[list[float]], colour: Array, outline: Array | None = None) -> None:
        flat = _clip_near(camera.see(np.array(corners, float)))
        if len(flat) >= 3:
            x = scale * (WIDTH / 2 + camera.focal * flat[:, 0] / flat[:, 2])
            y = scale * (HEIGHT / 2 - camera.focal * flat[:, 1] / flat[:, 2])
            draw.polygon(
                list(zip(x.tolist(), y.tolist(), strict=True)), fill=_rgb(colour), outline=None if outline is None else _rgb(outline)
            )

    wall, floor = np.array(setup.wall), np.array(setup.floor)
    far, near, half, top = -2.0, 6.0, 3.6, 3.2
    for side, shade in ((-1, 0.88), (1, 0.94)):
        panel([[side * half, 0, far], [side * half, 0, near], [side * half, top, near], [side * half, top, far]], wall * shade)
    panel([[-half, 0, far], [half, 0, far], [half, top, far], [-half, top, far]], wall)
    panel([[-half, 0, far], [half, 0, far], [half, 0, near], [-half, 0, near]], floor)
    edges = np.arange(-half, half + 0.01, 0.4)
    for position, (left, right) in enumerate(pairwise(edges)):
        if position % 2 == 0:
            panel([[left, 0, far], [right, 0, far], [right, 0, near], [left, 0, near]], floor * (0.94 if setup.planks else 0.98))
    panel([[-half, 0, far], [half, 0, far], [half, 0.1, far], [-half, 0.1, far]], wall * 0.72)
    for x, y, z, width, height, *paint in setup.furniture:
        colour = np.array(paint)
        corners = [[x, y, z], [x + width, y, z], [x + width, y + height, z], [x, y + height, z]]
        panel(corners, colour, outline=colour * 0.6)
        if z > -1.9:  # a cabinet has a top
            panel([corners[3], corners[2], [x + width, y + height, far], [x, y + height, far]], colour * 1.15)
    return image


def _clip_near(polygon: Array, near: float = 0.15) -> Array:
    """A polygon (n, 3) in camera coordinates without the part behind the image plane."""
    kept = []
    for here, following in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if here[2] >= near:
            kept.append(here)
        if (here[2] >= near) != (following[2] >= near):
            kept.append(here + (following - here) * (near - here[2]) / (following[2] - here[2]))
    return np.array(kept).reshape(-1, 3)


def _rgb(colour: Array | tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in np.clip(colour, 0, 255))
    return red, green, blue
