"""From recordings of any length to a network's input, as each method's official code does it. A part of the data module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtlvlm.data.sampling import TEST_VIEWS
from vtlvlm.errors import UsageError
from vtlvlm.skeleton import transforms
from vtlvlm.skeleton.layouts import Layout


class Preparation(ABC):
    """Makes all clips of a batch equally long, on the device."""

    window: int
    """T', frames of the input"""
    test_views: ClassVar[tuple[int, ...]] = (0,)
    """Views whose probabilities a test averages"""
    needs_metres: ClassVar[bool] = True
    """Whether it turns bodies in space, which coordinates in the picture are not"""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"preparation.window={self.window}: at least 1 frame")

    @abstractmethod
    def numbers(self, layout: Layout) -> int:
        """Random numbers that a clip needs."""

    @abstractmethod
    def __call__(self, joints: Tensor, lengths: Tensor, layout: Layout, random: Tensor, training: bool) -> Tensor:
        """Prepare a batch.

        Args:
            joints: (N, 3, T, V, M): metres, or pixels with a confidence. Zeros from a clip's length on, and where a body is absent.
            lengths: (N,) int64 frames of the clips, from 1 to T.
            layout: The joints.
            random: (N, ``numbers``) in [0, 1).
            training: Whether to change the clips at random.

        Returns:
            (N, 3, T', V, M).
        """


@dataclass(frozen=True)
class CropAndResize(Preparation):
    """The way of CTR-GCN, and of InfoGCN, FR-Head, Koopman pooling, GAP and HD-GCN after it.

    The middle of the first body's spine in its first frame becomes the origin. Training takes a random piece of the clip, a test its
    middle; the piece is stretched to the window. Training also turns the clip about all three axes.

    Attributes:
        window: T', frames of the input.
        least_share: Smallest share of the clip that a piece takes in training, in (0, 1].
        least_frames: Frames of a piece, at least, in training; a shorter clip is taken whole. The official 64.
        middle: Share of the clip that a test takes, in (0, 1].
        angle: Largest turn in training, radians.
        bones: Largest relative change of a bone's length in training, in [0, 1). FR-Head's is 0.2.
        align: Turn each body's hips and spine to the axes, as InfoGCN does.
    """

    window: int = 64
    least_share: float = 0.5
    least_frames: int = 64
    middle: float = 0.95
    angle: float = 0.3
    bones: float = 0.0
    align: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least_share <= 1 or not 0 < self.middle <= 1:
            raise UsageError(f"preparation: least_share={self.least_share}, middle={self.middle}: shares of a clip above 0 and up to 1")
        if self.least_frames < 1 or self.angle < 0 or not 0 <= self.bones < 1:
            given = f"least_frames={self.least_frames}, angle={self.angle}, bones={self.bones}"
            raise UsageError(f"preparation: {given}: at least 1 frame, an angle from 0, and a change of bones from 0 to below 1")

    def numbers(self, layout: Layout) -> int:
        return 5 + layout.num_joints

    def __call__(self, joints: Tensor, lengths: Tensor, layout: Layout, random: Tensor, training: bool) -> Tensor:
        joints = transforms.centred(joints, layout)
        if self.align:
            joints = transforms.aligned(joints, layout, "hips")
        if not training:
            return transforms.resampled(joints, *transforms.central(lengths, self.middle), self.window)
        share = self.least_share + (1 - self.least_share) * random[:, 0]
        joints = transforms.resampled(joints, *transforms.crops(lengths, share, random[:, 1], self.least_frames), self.window)
        if self.angle:
            joints = transforms.turned(joints, transforms.rotations((2 * random[:, 2:5] - 1) * self.angle))
        if self.bones:
            joints = transforms.scaled_bones(joints, layout, 1 + (2 * random[:, 5:] - 1) * self.bones)
        return joints


@dataclass(frozen=True)
class UniformFrames(Preparation):
    """PYSKL's way: the clip is cut into equal parts, one frame is drawn from each; a test draws several times.

    Attributes:
        window: T', frames of the input. PYSKL's graph networks take 100, PoseC3D 48.
        views: Draws whose probabilities a test averages; PYSKL's is 10.
        align: Put the middle of the first body's spine at the origin, its spine upright and its shoulders along x. For graph networks; not
            for pixels.
    """

    window: int = 100
    views: int = 1
    align: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 1:
            raise UsageError(f"preparation.views={self.views}: at least 1")

    @property
    def test_views(self) -> tuple[int, ...]:  # type: ignore[override]
        return (0,) if self.views == 1 else tuple(range(TEST_VIEWS, TEST_VIEWS + self.views))

    def numbers(self, layout: Layout) -> int:
        return self.window + 1

    def __call__(self, joints: Tensor, lengths: Tensor, layout: Layout, random: Tensor, training: bool) -> Tensor:
        if self.align:
            joints = transforms.aligned(transforms.centred(joints, layout), layout, "shoulders")
        return transforms.taken(joints, transforms.spread(lengths, self.window, random))

    @property
    def needs_metres(self) -> bool:  # type: ignore[override]
        return self.align


@dataclass(frozen=True)
class WholeClips(Preparation):
    """The ways of ST-GCN (zeros, no alignment) and Shift-GCN (repeated, aligned): all frames of a clip, up to the window.

    Attributes:
        window: T', frames of the input. Both take 300.
        rest: What follows the clip's last frame: zeros, or the clip again.
        align: Turn the first body's spine upright and its shoulders along x, with the middle of its spine at the origin in each frame.
    """

    window: int = 300
    rest: Literal["zeros", "repeat"] = "zeros"
    align: bool = False

    def numbers(self, layout: Layout) -> int:
        return 0

    def __call__(self, joints: Tensor, lengths: Tensor, layout: Layout, random: Tensor, training: bool) -> Tensor:
        if self.align:
            joints = transforms.aligned(transforms.centred(joints, layout, every_frame=True), layout, "shoulders")
        steps = torch.arange(self.window, device=joints.device)[None]
        found = transforms.taken(joints, steps % lengths[:, None])
        return found if self.rest == "repeat" else found * (steps < lengths[:, None])[:, None, :, None, None]

    @property
    def needs_metres(self) -> bool:  # type: ignore[override]
        return self.align


@dataclass(frozen=True)
class BoxedFrames(Preparation):
    """The way of CTR-GCN and its followers on NW-UCLA.

    The middle of the spine in the first frame becomes the origin, training turns the clip about y and x, and each axis is scaled to [-1, 1]
    over the clip. Training draws frames with repetition, in order; a test takes them at equal distances. The official code also scales
    training clips as a whole, which the box undoes.

    Attributes:
        window: T', frames of the input. The official 52.
        degrees: Largest turn in training, in whole degrees.
    """

    window: int = 52
    degrees: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.degrees <= 180:
            raise UsageError(f"preparation.degrees={self.degrees}: from 0 to 180")

    def numbers(self, layout: Layout) -> int:
        return 2 + self.window

    def __call__(self, joints: Tensor, lengths: Tensor, layout: Layout, random: Tensor, training: bool) -> Tensor:
        joints = transforms.centred(joints, layout)
        steps = torch.arange(self.window, device=joints.device)[None]
        frames = (steps * (lengths - 1)[:, None]) // max(1, self.window - 1)
        if training:
            whole = torch.floor(random[:, :2] * (2 * self.degrees + 1)) - self.degrees
            about = torch.deg2rad(torch.cat([whole, torch.zeros_like(whole[:, :1])], dim=1))
            x, y = (about * axis for axis in torch.eye(3, device=about.device)[:2])
            joints = transforms.turned(joints, transforms.rotations(x) @ transforms.rotations(y))
            frames = (random[:, 2:] * lengths[:, None]).floor().long().sort(dim=1).values
        return transforms.taken(transforms.boxed(joints, lengths), frames)
