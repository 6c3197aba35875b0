"""BlazePose: skeletons of the people in ordinary video, without network (Bazarevsky et al., 2020, arXiv 2006.10204).

A detector finds people in a picture. A second network reads 33 landmarks of one person from a square cut around the body, and says where
the body will be in the next picture; the detector runs again only when someone is lost, or might have joined. The networks are those that
the package mediapipe carries as two files (Apache-2.0); what comes before and after them is written here.

Pictures and places in them are those of ``pose_geometry.py``.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layouts import NTU25
from vtlvlm.skeleton.pose_geometry import (
    DETECTOR_SIDE,
    HEAT_SIDE,
    LIKELY,
    Array,
    Detection,
    Letterbox,
    Region,
    anchors,
    detections,
    mended,
    parts,
)

FILES = ("pose_detection/pose_detection.tflite", "pose_landmark/pose_landmark_full.tflite")
"""Detector and landmarks, below the folder ``mediapipe/modules`` of the package."""
CARRIER = "mediapipe==0.10.21"
"""The last release that carries both."""
LARGEST = 2**26
"""Bytes of a weight file in a wheel, at most: ten times those of the landmarks."""
SAME = 0.25
"""Two people are one if both their hips and their shoulders are closer than this share of a body's radius."""
AGAIN = 15
"""Pictures between two searches for a further person, and between two closer looks while nobody is found."""
VIEW = 60.0
"""Degrees that the longer side of a picture is taken to cover. Only the distance of the people depends on it."""
HIPS, SHOULDERS, RADIUS = (23, 24), (11, 12), (33, 34)
"""Landmarks. The last two are no joints: the middle of the circle around the body, and a point on it."""


def _to_ntu25() -> Array:
    weights = np.zeros((25, 33))

    def put(name: str, *landmarks: int) -> None:
        weights[NTU25.index(name), list(landmarks)] = 1 / len(landmarks)

    put("spine_base", *HIPS)
    put("spine_mid", *HIPS, *SHOULDERS)
    put("spine_shoulder", *SHOULDERS)
    put("head", 7, 8)
    head, shoulders = weights[NTU25.index("head")].copy(), weights[NTU25.index("spine_shoulder")]
    weights[NTU25.index("head")] = 1.1 * head - 0.1 * shoulders  # Kinect's head lies a little above the ears
    weights[NTU25.index("neck")] = 0.4 * head + 0.6 * shoulders
    for side, first in (("left", 0), ("right", 1)):
        for name, landmark in (("shoulder", 11), ("elbow", 13), ("wrist", 15), ("hip", 23), ("knee", 25), ("ankle", 27), ("foot", 31)):
            put(f"{name}_{side}", landmark + first)
        put(f"hand_{side}", 15 + first, 17 + first, 19 + first)  # wrist, little finger, forefinger
        put(f"hand_tip_{side}", 19 + first)
        put(f"thumb_{side}", 21 + first)
    return weights


TO_NTU25 = _to_ntu25()
"""(25, 33): each joint of NTU as a weighted sum of landmarks."""


class Weights(NamedTuple):
    """The contents of the two weight files."""

    detector: bytes
    landmarks: bytes

    @property
    def digest(self) -> str:
        """Tells two sets of weights apart."""
        return blake2b(self.detector + self.landmarks, digest_size=8).hexdigest()


def find_weights(place: Path | None) -> Weights:
    """Read the weight files from a folder, from a wheel of mediapipe, or from the installed package. Its code is never imported.

    Args:
        place: The folder or wheel; None for the installed package.

    Raises:
        UsageError: A file is missing.
    """
    advice = f"run: pip install --no-deps {CARRIER}, or name a folder with {' and '.join(Path(f).name for f in FILES)} by --weights"
    if place is None:
        package = importlib.util.find_spec("mediapipe")
        if package is None or not package.submodule_search_locations:
            raise UsageError(f"the weights of BlazePose are not installed; {advice}")
        place = Path(next(iter(package.submodule_search_locations)))
    if place.is_file():
        try:
            with zipfile.ZipFile(place) as wheel:
                members = [wheel.getinfo(f"mediapipe/modules/{name}") for name in FILES]
                if max(member.file_size for member in members) > LARGEST:
                    raise ValueError("larger than any weights")
                return Weights(*map(wheel.read, members))
        except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, OSError) as error:
            raise UsageError(f"{place}: no wheel of {CARRIER}, which carries the weights; {advice}") from error
    contents = []
    for name in FILES:
        files = [place / Path(name).name, place / "modules" / name, place / "mediapipe" / "modules" / name]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise UsageError(f"{place}: lacks {Path(name).name}, the weights of BlazePose; {advice}")
        contents.append(file.read_bytes())
    return Weights(*contents)


class Pose(NamedTuple):
    """A person in one picture."""

    person: int
    """Number of the person, the same in all pictures in which the person is followed"""
    pixels: Array
    """(35, 2) landmarks in the picture"""
    metres: Array
    """(33, 3) landmarks around the middle of the hips: right and down in the picture, and away from the camera"""
    visible: NDArray[np.bool_]
    """(33,)"""

    @property
    def torso(self) -> Array:
        """(2, 2) middle of the hips and of the shoulders."""
        return np.stack([self.pixels[list(HIPS)].mean(0), self.pixels[list(SHOULDERS)].mean(0)])

    @property
    def radius(self) -> float:
        """Pixels of the circle around the body."""
        return float(np.hypot(*(self.pixels[RADIUS[1]] - self.pixels[RADIUS[0]])))

    def joints(self, width: int, height: int) -> tuple[Array, Array, NDArray[np.bool_]]:
        """NTU's 25 joints: (25, 3) metres in the camera's frame, (25, 2) pixels, (25,) whether they are visible.

        The frame is that of NTU's files: y points up, z ahead, and x so that the left hand of a person who faces the camera has the smaller
        x. The distance is the one at which a body of this size has this many pixels, for a lens of ``VIEW``.
        """
        flat, seen = self.metres[:, :2] - self.metres[:, :2].mean(0), self.pixels[:33] - self.pixels[:33].mean(0)
        scale = max(float((flat * seen).sum() / max((flat**2).sum(), 1e-9)), 1e-3)  # pixels a metre
        focal = max(width, height) / 2 / np.tan(np.radians(VIEW / 2))
        hips = self.pixels[:33].mean(0) - scale * self.metres[:, :2].mean(0)
        place = np.array([*(hips - [width / 2, height / 2]) / scale, focal / scale])
        return (
            TO_NTU25 @ (self.metres + place) * [-1.0, -1.0, 1.0],
            TO_NTU25 @ self.pixels[:33],
            (TO_NTU25 != 0) @ ~self.visible == 0,
        )


def same_person(one: Array, other: Array, radius: float) -> bool:
    """Whether two torsos (2, 2) are one person's."""
    return bool((np.hypot(*(one - other).T) < SAME * radius).all())


# -- networks -------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _unsaid() -> Iterator[None]:
    """Drop what the library writes to the process's standard error: a note for each network that it opens."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Network:
    """A network of one input, whose outputs are told apart by their sizes."""

    def __init__(self, content: bytes) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UsageError("poses needs ai-edge-litert; run: pip install 'vtlvlm[poses]'") from error
        try:
            with _unsaid():
                self._interpreter = Interpreter(model_content=content, num_threads=1)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"a weight file of BlazePose is damaged; take it again from {CARRIER}") from error
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = {int(np.prod(out["shape"])): out["index"] for out in self._interpreter.get_output_details()}

    def __call__(self, pixels: Array, sizes: Sequence[int]) -> list[Array]:
        """(side, side, 3) → the outputs of these sizes, flat."""
        self._interpreter.set_tensor(self._input, pixels[None].astype(np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[size]).ravel().astype(np.float64) for size in sizes]


class BlazePose:
    """Follows the people of one video, picture by picture.

    Args:
        weights: The weight files.
        people: The most people to follow.

    Raises:
        UsageError: ai-edge-litert is not installed, or the weights are damaged.
    """

    def __init__(self, weights: Weights, people: int = 2) -> None:
        self._detector, self._landmarks = Network(weights.detector), Network(weights.landmarks)
        self._people = people
        self.restart()

    def restart(self) -> None:
        """Forget the people: the next picture is another video's first."""
        self._regions: dict[int, Region] = {}
        self._pictures = self._named = 0

    def __call__(self, picture: NDArray[np.uint8]) -> list[Pose]:
        """The people in the next picture, the first found first."""
        image = Image.fromarray(picture)
        found: list[Pose] = []
        for person, region in self._regions.items():
            self._take(found, self._read(picture, region, person))
        closer = self._pictures % AGAIN == 0
        if len(found) < self._people and (closer or not found):
            for one in self._find(image, closer):
                if len(found) < self._people and not any(same_person(one.torso, pose.torso, pose.radius) for pose in found):
                    self._named += self._take(found, self._read(picture, Region.around(*one.points[:2]), self._named))
        self._pictures += 1
        self._regions = {pose.person: Region.around(*pose.pixels[list(RADIUS)]) for pose in found}
        return found

    @staticmethod
    def _take(found: list[Pose], pose: Pose | None) -> bool:
        """Add a pose, unless it is that of a person who was found before."""
        if pose is None or any(same_person(pose.torso, other.torso, other.radius) for other in found):
            return False
        found.append(pose)
        return True

    def _find(self, image: Image.Image, closer: bool) -> list[Detection]:
        """The people in the whole picture, then those in its parts if asked for a closer look."""
        found = self._detect(image)
        for part in parts(*image.size) if closer else ():
            found += [Detection(one.score, one.points + part[:2]) for one in self._detect(image.crop(part))]
        return found

    def _detect(self, image: Image.Image) -> list[Detection]:
        box = Letterbox.of(*image.size)
        square = Image.new("RGB", (DETECTOR_SIDE, DETECTOR_SIDE))
        square.paste(image.resize((box.width, box.height), Image.Resampling.BILINEAR), (box.left, box.top))
        count = len(anchors())
        boxes, logits = self._detector(np.asarray(square) / 127.5 - 1, (count * 12, count))
        return [Detection(one.score, box.to_picture(one.points)) for one in detections(boxes.reshape(-1, 12), logits)]

    def _read(self, picture: NDArray[np.uint8], region: Region, person: int) -> Pose | None:
        """The landmarks within a region; None if nobody is there."""
        values, presence, world, heat = self._landmarks(region.cut(picture) / 255, (195, 1, 117, HEAT_SIDE**2 * 39))
        if presence[0] < LIKELY or not np.isfinite(values).all():
            return None
        landmarks, metres = values.reshape(39, 5), world.reshape(39, 3)[:33].copy()
        metres[:, :2] = metres[:, :2] @ region.axes
        places = mended(landmarks[:, :2], heat.reshape(HEAT_SIDE, HEAT_SIDE, 39))[:35]
        return Pose(person, region.to_picture(places), metres, landmarks[:33, 3:].min(axis=1) > 0)
