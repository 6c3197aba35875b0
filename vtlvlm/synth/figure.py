"""Draws people and objects as shaded capsules, from far to near (the painter's algorithm).

A piece is (distance ahead in metres, function that draws it). All coordinates are supersampled pixels of one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

from vtlvlm.synth.body import Array, J, unit
from vtlvlm.synth.people import Colour, Person

Draw = ImageDraw.ImageDraw
Piece = tuple[float, Callable[[Draw], None]]
Point = Sequence[float]
Tones = tuple[Colour, Colour, Colour]

LIMBS = (
    ("hip", "knee", 0.082, 0.060), ("knee", "ankle", 0.060, 0.042), ("ankle", "foot", 0.045, 0.036),
    ("shoulder", "elbow", 0.055, 0.043), ("elbow", "wrist", 0.042, 0.032), ("wrist", "hand_tip", 0.036, 0.034),
)  # fmt: skip
"""Start joint, end joint, and the radii there in metres for a person of girth 1."""


def tones(colour: Sequence[float]) -> Tones:
    """Dark rim, body and highlight of a surface."""

    def shade(factor: float) -> Colour:
        red, green, blue = (min(255, int(c * factor + 3)) for c in colour)
        return red, green, blue

    return shade(0.68), shade(0.96), shade(1.10)


def capsule(draw: Draw, a: Point, b: Point, ra: float, rb: float, paint: Tones) -> None:
    """A tapered, rounded limb from ``a`` to ``b``, lit from the upper left."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy) or 1e-6
    nx, ny = -dy / length, dx / length
    for tone, width, lift in ((paint[0], 1.0, 0.0), (paint[1], 0.80, 0.14), (paint[2], 0.38, 0.34)):
        p, q = ra * width, rb * width
        ax, ay, bx, by = a[0] - lift * ra, a[1] - lift * ra, b[0] - lift * rb, b[1] - lift * rb
        draw.polygon((ax + nx * p, ay + ny * p, bx + nx * q, by + ny * q, bx - nx * q, by - ny * q, ax - nx * p, ay - ny * p), fill=tone)
        draw.ellipse((ax - p, ay - p, ax + p, ay + p), fill=tone)
        draw.ellipse((bx - q, by - q, bx + q, by + q), fill=tone)


def ball(draw: Draw, centre: Point, radius: float, paint: Tones) -> None:
    """A sphere lit from the upper left."""
    for tone, size, lift in ((paint[0], 1.0, 0.0), (paint[1], 0.82, 0.13), (paint[2], 0.40, 0.32)):
        x, y, r = centre[0] - lift * radius, centre[1] - lift * radius, radius * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tone)


def between(a: Point, b: Point, share: float) -> tuple[float, float, float]:
    """The point at a ``share`` of the way from ``a`` to ``b``."""
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share


@dataclass(frozen=True)
class DrawnPerson:
    """One person of a performance in the view of one camera: projected once, drawn frame by frame."""

    person: Person
    points: list[list[list[float]]]
    """[F][25][3]: x, y in pixels, distance in metres"""
    extras: dict[str, list[list[float]]]
    """[F][3] each, points that are no joints: face, hair, eyes, jacket hems"""
    front: list[bool]
    """[F] whether the chest faces the camera"""
    jacket: list[list[float]]
    working: str
    focal: float
    """supersampled pixels"""
    paints: dict[str, Tones]

    @classmethod
    def of(
        cls, person: Person, joints: Array, jacket: Array, working: str, project: Callable[[Array], Array], eye: Array, focal: float
    ) -> DrawnPerson:
        """From world joints (F, 25, 3) and jacket states (F, 3). ``project`` gives pixels and distance; ``eye`` is the camera's
        position."""
        head, neck = joints[:, J["head"]], joints[:, J["neck"]]
        across = unit(joints[:, J["shoulder_left"]] - joints[:, J["shoulder_right"]])
        up = unit(head - neck)
        face = unit(np.cross(across, up))
        trunk = unit(joints[:, J["spine_shoulder"]] - joints[:, J["spine_base"]])
        chest = np.cross(across, trunk)
        size = person.height / 1.72
        places = {
            "face": head + size * (0.030 * face),
            "hair": head + size * (0.040 * up - 0.040 * face),
            "nape": neck + size * (-0.03 * up - 0.075 * face),
            "eye_left": head + size * (0.115 * face + 0.036 * across + 0.015 * up),
            "eye_right": head + size * (0.115 * face - 0.036 * across + 0.015 * up),
            "hem_left": joints[:, J["hip_left"]] - 0.05 * trunk + 0.06 * across,
            "hem_right": joints[:, J["hip_right"]] - 0.05 * trunk - 0.06 * across,
        }
        materials = ("skin", "hair", "shirt", "trousers", "jacket", "shoes")
        return cls(
            person=person,
            points=project(joints).tolist(),
            extras={name: project(place).tolist() for name, place in places.items()},
            front=(np.sum(chest * (eye - joints[:, J["spine_shoulder"]]), axis=1) > 0).tolist(),
            jacket=jacket.tolist(),
            working=working,
            focal=focal,
            paints={name: tones(getattr(person, name)) for name in materials},
        )

    def pieces(self, frame: int) -> list[Piece]:
        """The pieces of one frame."""
        points, girth, paints = self.points[frame], self.person.girth, self.paints
        hanging, trunk, sleeves = self.jacket[frame]
        pieces: list[Piece] = []
        for side in ("left", "right"):
            for start, end, ra, rb in LIMBS:
                a, b = points[J[f"{start}_{side}"]], points[J[f"{end}_{side}"]]
                if min(a[2], b[2]) < 0.3:
                    continue
                material = {"hip": "trousers", "knee": "trousers", "ankle": "shoes", "shoulder": "shirt"}.get(start, "skin")
                cover = 0.0
                if start in ("shoulder", "elbow"):
                    cover = min(1.0, max(0.0, 2 * sleeves - (start == "elbow")))
                radii = ra * girth * self.focal / a[2], rb * girth * self.focal / b[2]

                def limb(
                    draw: Draw,
                    a: Point = a,
                    b: Point = b,
                    radii: tuple[float, float] = radii,
                    material: str = material,
                    cover: float = cover,
                ) -> None:
                    if cover < 1.0:
                        capsule(draw, a, b, *radii, paints[material])
                    if cover > 0.0:
                        capsule(draw, a, between(a, b, cover), 1.22 * radii[0], 1.22 * radii[1], paints["jacket"])

                # an arm beside the trunk is drawn in front of it
                pieces.append(((a[2] + b[2]) / 2 - (0.06 if start in ("shoulder", "elbow", "wrist") else 0.0), limb))
        middle = points[J["spine_mid"]]
        if middle[2] > 0.3:
            pieces.append((middle[2], lambda draw: self._trunk(draw, frame, trunk)))
            pieces.append((points[J["head"]][2] - 0.02, lambda draw: self._head(draw, frame)))
            if self.person.long_hair:
                # in front of the trunk of a person who looks away, behind the trunk of a person who faces the camera
                away = 0.20 if self._faces_camera(frame) else -0.20
                pieces.append((points[J["head"]][2] + away, lambda draw: self._long_hair(draw, frame)))
        hand = points[J[f"hand_{self.working}"]]
        if hanging > 0.05 and hand[2] > 0.3:
            pieces.append((hand[2] - 0.15, lambda draw: self._cloth(draw, hand, hanging)))
        return pieces

    def _trunk(self, draw: Draw, frame: int, cover: float) -> None:
        points, pixels = self.points[frame], self.person.girth * self.focal / self.points[frame][J["spine_mid"]][2]
        left, right = points[J["shoulder_left"]], points[J["shoulder_right"]]
        low_left, low_right = points[J["hip_left"]], points[J["hip_right"]]
        base, top = points[J["spine_base"]], points[J["spine_shoulder"]]
        capsule(draw, low_left, low_right, 0.088 * pixels, 0.088 * pixels, self.paints["trousers"])
        capsule(draw, points[J["neck"]], top, 0.045 * pixels, 0.055 * pixels, self.paints["skin"])
        waist_left, waist_right = between(low_left, left, 0.12), between(low_right, right, 0.12)

        def cloth(paint: Tones, size: float) -> None:
            capsule(draw, left, right, 0.062 * pixels * size, 0.062 * pixels * size, paint)
            capsule(draw, waist_left, left, 0.080 * pixels * size, 0.066 * pixels * size, paint)
            capsule(draw, waist_right, right, 0.080 * pixels * size, 0.066 * pixels * size, paint)
            capsule(draw, between(base, top, 0.1), between(base, top, 0.85), 0.112 * pixels * size, 0.118 * pixels * size, paint)
            draw.polygon([p[:2] for p in (left, right, waist_right, waist_left)], fill=paint[1])

        cloth(self.paints["shirt"], 1.0)
        if cover <= 0.0:
            return
        jacket = self.paints["jacket"]
        if not self.front[frame]:
            cloth(jacket, 1.0 + 0.1 * cover)
            return
        for shoulder, hem in ((left, self.extras["hem_left"][frame]), (right, self.extras["hem_right"][frame])):
            inner_top, inner_low = between(shoulder, top, 0.80 * cover), between(hem, base, 0.80 * cover)
            capsule(draw, shoulder, hem, 0.075 * pixels, 0.085 * pixels, jacket)
            capsule(draw, between(shoulder, top, 0.5 * cover), between(hem, base, 0.5 * cover), 0.07 * pixels, 0.07 * pixels, jacket)
            draw.polygon([p[:2] for p in (shoulder, inner_top, inner_low, hem)], fill=jacket[1])

    def _faces_camera(self, frame: int) -> bool:
        return self.extras["face"][frame][2] < self.extras["hair"][frame][2]

    def _head_pixels(self, frame: int) -> float:
        """Pixels per metre at the head, scaled by the person's height over 1.72 m."""
        return self.focal / self.points[frame][J["head"]][2] * self.person.height / 1.72

    def _long_hair(self, draw: Draw, frame: int) -> None:
        pixels = self._head_pixels(frame)
        capsule(draw, self.extras["hair"][frame], self.extras["nape"][frame], 0.105 * pixels, 0.085 * pixels, self.paints["hair"])

    def _head(self, draw: Draw, frame: int) -> None:
        pixels = self._head_pixels(frame)
        face, hair = self.extras["face"][frame], self.extras["hair"][frame]
        if self._faces_camera(frame):
            ball(draw, hair, 0.112 * pixels, self.paints["hair"])
            ball(draw, face, 0.100 * pixels, self.paints["skin"])
            for name in ("eye_left", "eye_right"):
                (x, y, _), r = self.extras[name][frame], 0.014 * pixels
                draw.ellipse((x - r, y - r, x + r, y + r), fill=(40, 32, 30))
        else:
            ball(draw, face, 0.100 * pixels, self.paints["skin"])
            ball(draw, hair, 0.112 * pixels, self.paints["hair"])

    def _cloth(self, draw: Draw, hand: Point, size: float) -> None:
        """A jacket held by its collar."""
        pixels = self.focal / hand[2] * size
        x, y = hand[0], hand[1]
        dark, body, light = self.paints["jacket"]
        for tone, width in ((dark, 1.0), (body, 0.84)):
            top, low, length = 0.13 * pixels * width, 0.24 * pixels * width, 0.62 * pixels * (0.5 + 0.5 * width)
            draw.polygon((x - top, y - 0.04 * pixels, x + top, y - 0.04 * pixels, x + low, y + length, x - low, y + length), fill=tone)
        draw.line((x, y, x - 0.03 * pixels, y + 0.55 * pixels), fill=dark, width=2)
        draw.line((x - 0.08 * pixels, y, x - 0.14 * pixels, y + 0.5 * pixels), fill=light, width=3)
