"""NTU's own ``.skeleton`` text format.

The lines are: the number of frames; for each frame the number of bodies; for each body a line ``bodyID clipedEdges handLeftConfidence
handLeftState handRightConfidence handRightState isResticted leanX leanY trackingState`` (NTU's own spelling), the number of joints
(25), and for each joint a line ``x y z depthX depthY colorX colorY orientationW orientationX orientationY orientationZ trackingState``.
x, y, z are metres in the camera's frame (right, up, ahead); depthX/Y are pixels of a 512 x 424 depth camera in the same place;
colorX/Y are pixels of the clip's own video.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vtlvlm.synth.body import PARENTS, Array, J, unit
from vtlvlm.synth.performance import Performance
from vtlvlm.synth.scene import DEPTH_FOCAL, DEPTH_SIZE, Camera

BODY_ID = 72057594037900000
"""Base of body ids, as large as NTU's. The subject's number is added."""
TRACKED = 2


class BodyLines(NamedTuple):
    """One body in one frame."""

    number: int
    """Added to ``BODY_ID``"""
    lean: tuple[float, float]
    """Kinect's lean: -1 to 1 to the side, and forwards"""
    values: Sequence[Sequence[float]]
    """[25][11]: x y z, depth pixels, pixels of the video, orientation"""
    states: Sequence[int]
    """[25]: 0 not tracked, 1 inferred, 2 tracked"""


def text_of(frames: Sequence[Sequence[BodyLines]]) -> str:
    """The text of a file: the bodies of each frame."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body in bodies:
            lines.append(f"{BODY_ID + body.number} 0 1 0 1 0 0 {body.lean[0]:.7g} {body.lean[1]:.7g} {TRACKED}")
            lines.append(str(len(PARENTS)))
            lines.extend(
                " ".join([*(f"{value:.7g}" for value in row), str(state)]) for row, state in zip(body.values, body.states, strict=True)
            )
    return "\n".join(lines) + "\n"


def skeleton_text(performance: Performance, camera: Camera) -> str:
    """The text of the file for one camera's view of a performance."""
    seen = camera.see(performance.joints)
    ahead = np.maximum(seen[..., 2:], 0.05)
    depth = np.array(DEPTH_SIZE) / 2 + DEPTH_FOCAL * seen[..., :2] * [1, -1] / ahead
    colour = camera.project(performance.joints)[..., :2]
    rows = np.concatenate([seen, depth, colour, orientations(seen)], axis=-1)
    trunk = unit(seen[:, :, J["spine_shoulder"]] - seen[:, :, J["spine_base"]])
    lean = trunk[..., [0, 2]] * [1, -1]  # forwards is towards the camera
    tracked = [TRACKED] * len(PARENTS)
    return text_of(
        [
            [
                BodyLines(person.number, tuple(lean[body, frame]), rows[body, frame].tolist(), tracked)
                for body, person in enumerate(performance.people)
            ]
            for frame in range(performance.timing.frames)
        ]
    )


def orientations(joints: Array) -> Array:
    """Unit quaternions (..., 25, 4), w first: the shortest rotation from straight up to the bone that ends in the joint; identity at the
    root."""
    bones = unit(joints - joints[..., list(PARENTS), :])
    x, y, z = np.moveaxis(bones, -1, 0)
    quaternions = np.stack([1 + y, z, np.zeros_like(y), -x], axis=-1)
    quaternions[..., 0, :] = [1.0, 0.0, 0.0, 0.0]
    down = np.linalg.norm(quaternions, axis=-1, keepdims=True) < 1e-6
    quaternions = np.where(down, [0.0, 1.0, 0.0, 0.0], quaternions)
    return quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)
