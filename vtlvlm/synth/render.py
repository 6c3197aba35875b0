"""Renders a performance as the frames of one camera, and encodes frames as an H.264 file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from vtlvlm.synth.body import PARENTS, Array
from vtlvlm.synth.figure import Draw, DrawnPerson, Piece, ball, tones
from vtlvlm.synth.people import Colour
from vtlvlm.synth.performance import Performance
from vtlvlm.synth.scene import FPS, HEIGHT, SUPERSAMPLING, WIDTH, Camera, Setup, backdrop

Frame = npt.NDArray[np.uint8]

NOISE = 2.0
"""Standard deviation of the sensor's noise, in grey levels."""
BOX_SIZE, BALL_RADIUS = 0.18, 0.12
BOX_COLOUR, BALL_COLOUR = (206, 160, 70), (206, 74, 54)
CRF, GOP = 23, 30


def frames(performance: Performance, setup: Setup, camera: Camera, rng: np.random.Generator) -> Iterator[Frame]:
    """Yield (HEIGHT, WIDTH, 3) uint8 RGB frames.

    Args:
        performance: the performance.
        setup: the room.
        camera: the camera.
        rng: draws the sensor's noise and exposure.
    """
    scale = SUPERSAMPLING
    focal = camera.focal * scale

    def project(points: Array) -> Array:
        return camera.project(points, scale)

    figures = [
        DrawnPerson.of(person, joints, jacket, working, project, camera.position, focal)
        for person, joints, jacket, working in zip(
            performance.people, performance.joints, performance.jacket, performance.working, strict=True
        )
    ]
    room = backdrop(setup, camera)
    dim = room.point([int(v * 0.55) for v in range(256)] * 3)
    chair = [] if performance.chair is None else chair_pieces(performance.chair, setup.chair, camera)
    shadows = shadow_lines(performance, setup, camera)
    ball_pieces = None if performance.ball is None else ball_track(performance.ball, camera)
    box = None if performance.box is None else box_faces(performance.box, camera)
    gain = rng.uniform(0.92, 1.06)
    noise = rng.normal(0.0, NOISE, (HEIGHT + 64, WIDTH + 64, 3)).astype(np.float32)
    for number in range(performance.timing.frames):
        image = room.copy()
        cast_shadow(image, dim, shadows[number])
        pieces = [*chair]
        for figure in figures:
            pieces += figure.pieces(number)
        if ball_pieces is not None:
            pieces.append(ball_pieces[number])
        if box is not None:
            pieces.append(box[number])
        draw = ImageDraw.Draw(image)
        for _, paint_piece in sorted(pieces, key=lambda piece: -piece[0]):
            paint_piece(draw)
        y, x = rng.integers(0, 65, 2)
        picture = np.asarray(image.reduce(scale), dtype=np.float32) * np.float32(gain) + noise[y : y + HEIGHT, x : x + WIDTH]
        yield np.clip(picture, 0, 255).astype(np.uint8)


def shadow_lines(performance: Performance, setup: Setup, camera: Camera) -> list[list[tuple[float, ...]]]:
    """The bones' shadows on the floor for every frame, as (x, y, x, y, width) in pixels of the mask (a quarter of the supersampled
    size)."""
    joints = performance.joints
    flat = joints * [1.0, 0.0, 1.0] + joints[..., 1:2] * [setup.light[0], 0.0, setup.light[1]]
    spots = camera.project(flat, 0.5)
    bones = [(joint, parent) for joint, parent in enumerate(PARENTS) if parent >= 0]
    ends = np.concatenate([spots[:, :, [j for j, _ in bones], :2], spots[:, :, [p for _, p in bones], :2]], axis=-1)
    width = np.full((*ends.shape[:3], 1), 0.15) * 0.5 * camera.focal / np.maximum(spots[:, :, [j for j, _ in bones], 2:], 0.5)
    return [
        [tuple(line) for person in frame for line in person] for frame in np.moveaxis(np.concatenate([ends, width], axis=-1), 1, 0).tolist()
    ]


def cast_shadow(image: Image.Image, dim: Image.Image, lines: Iterable[tuple[float, ...]]) -> None:
    """Blend the darker room ``dim`` into ``image`` along softened lines. Without lines, nothing changes."""
    mask = Image.new("L", (WIDTH // 2, HEIGHT // 2))
    draw = ImageDraw.Draw(mask)
    for *ends, width in lines:
        draw.line(ends, fill=190, width=max(1, round(width)))
    mask = mask.filter(ImageFilter.BoxBlur(2))
    bounds = mask.getbbox()
    if bounds is not None:
        left, upper, right, lower = (2 * SUPERSAMPLING * side for side in bounds)
        soft = mask.crop(bounds).resize((right - left, lower - upper), Image.Resampling.BILINEAR)
        image.paste(dim.crop((left, upper, right, lower)), (left, upper), soft)


def chair_pieces(chair: tuple[float, float, float, float], colour: tuple[float, float, float], camera: Camera) -> list[Piece]:
    """Seat, back and legs, placed a little farther away, so that a sitting person is drawn over them."""
    x, z, yaw, seat = chair
    side, ahead = np.array([np.cos(yaw), 0.0, -np.sin(yaw)]), np.array([np.sin(yaw), 0.0, np.cos(yaw)])
    dark, body, light = tones(colour)

    def panel(fill: Colour, bias: float, *corners: tuple[float, float, float]) -> Piece:
        world = np.array([[x, 0.0, z] + side * across + ahead * along + [0.0, up, 0.0] for across, up, along in corners])
        seen = camera.project(world, SUPERSAMPLING)
        outline = [(px, py) for px, py, _ in seen.tolist()]
        return float(seen[:, 2].mean()) + bias, lambda draw: draw.polygon(outline, fill=fill)

    w, d, leg = 0.21, 0.21, 0.035
    return [
        panel(body, 0.35, (-w, seat, -d), (w, seat, -d), (w, seat + 0.48, -d - 0.06), (-w, seat + 0.48, -d - 0.06)),
        panel(light, 0.25, (-w, seat, -d), (w, seat, -d), (w, seat, d), (-w, seat, d)),
        panel(dark, 0.25, (-w, seat, d), (w, seat, d), (w, seat - 0.05, d), (-w, seat - 0.05, d)),
        *(panel(dark, 0.30, (a, 0, c), (a + leg, 0, c), (a + leg, seat, c), (a, seat, c)) for a in (-w, w - leg) for c in (-d, d)),
    ]


def ball_track(track: Array, camera: Camera) -> list[Piece]:
    """The ball of every frame."""
    paint = tones(BALL_COLOUR)

    def piece(centre: list[float]) -> Piece:
        radius = BALL_RADIUS * SUPERSAMPLING * camera.focal / max(centre[2], 0.4)
        return centre[2], lambda draw: ball(draw, centre, radius, paint)

    # a ball beside or behind the camera is moved out of the frame
    return [piece([x if z > 0.4 else -9999.0, y, z]) for x, y, z in camera.project(track, SUPERSAMPLING).tolist()]


def box_faces(track: Array, camera: Camera) -> list[Piece]:
    """The box in every frame: its top and the faces towards the camera."""
    h = BOX_SIZE / 2
    corners = np.array([[a, b, c] for a in (-h, h) for b in (-h, h) for c in (-h, h)])
    seen = camera.project(track[:, None] + corners, SUPERSAMPLING).tolist()
    dark, body, light = tones(BOX_COLOUR)
    # the camera sees a face if the face's outward normal points to it
    faces = (
        ((0, 1, 3, 2), (-1, 0, 0), body),
        ((4, 5, 7, 6), (1, 0, 0), body),
        ((1, 5, 7, 3), (0, 0, 1), dark),
        ((2, 3, 7, 6), (0, 1, 0), light),
    )
    pieces: list[Piece] = []
    for frame, points in enumerate(seen):
        eye = camera.position - track[frame]
        visible = [(face, fill) for face, normal, fill in faces if float(np.dot(eye, normal)) > h]

        def paint(draw: Draw, points: list[list[float]] = points, visible: list = visible) -> None:
            for face, fill in visible:
                draw.polygon([tuple(points[corner][:2]) for corner in face], fill=fill)

        pieces.append((float(np.mean([point[2] for point in points])) - 0.1, paint))
    return pieces


def encode(path: Path, pictures: Iterable[Frame], container: Literal["avi", "mp4"] = "avi", rate: Fraction | int = FPS) -> int:
    """Write an H.264 video. Equal frames give equal bytes.

    Args:
        path: File to write; its name may end in anything.
        pictures: The frames, of one size with even sides.
        container: Kind of file.
        rate: Frames per second.

    Returns:
        The number of frames.
    """
    count = 0
    with av.open(str(path), "w", format=container, options={"fflags": "+bitexact"}) as out:
        # no B-frames, since AVI cannot store their times; one thread, so that the bytes do not depend on the number of cores
        stream = out.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"preset": "superfast", "crf": str(CRF), "g": str(GOP), "bf": "0", "flags": "+bitexact"}
        for picture in pictures:
            if not count:
                stream.height, stream.width = picture.shape[:2]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            count += 1
        out.mux(stream.encode(None))
    return count
