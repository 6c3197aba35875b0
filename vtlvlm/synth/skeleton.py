"""NTU's own ``.skeleton`` text format.

The lines are: the number of frames; for each frame the number of bodies; for each body a line ``bodyID clipedEdges handLeftConfidence
handLeftState handRightConfidence handRightState isResticted leanX leanY trackingState`` (NTU's own spelling), the number of joints
(25), and for each joint a line ``x y z depthX depthY colorX colorY orientationW orientationX orientationY orientationZ trackingState``.
x, y, z are metres in the camera's frame (right, up, ahead); depthX/Y are pixels of a 512 x 424 depth camera in the same place;
colorX/Y are pixels of the clip's own video.
"""

from __future__ import annotations

import numpy as np

from vtlvlm.synth.body import PARENTS, Array, J, unit
from vtlvlm.synth.performance import Performance
from vtlvlm.synth.scene import DEPTH_FOCAL, DEPTH_SIZE, Camera

BODY_ID = 72057594037900000
"""Base of body ids, as large as NTU's. The subject's number is added."""
TRACKED = 2


def skeleton_text(performance: Performance, camera: Camera) -> str:
    """The text of the file for one camera's view of a performance."""
    seen = camera.see(performance.joints)
    ahead = np.maximum(seen[..., 2:], 0.05)
    depth = np.array(DEPTH_SIZE) / 2 + DEPTH_FOCAL * seen[..., :2] * [1, -1] / ahead
    colour = camera.project(performance.joints)[..., :2]
    rows = np.concatenate([seen, depth, colour, orientations(seen)], axis=-1)
    trunk = unit(seen[:, :, J["spine_shoulder"]] - seen[:, :, J["spine_base"]])
    lines = [str(performance.timing.frames)]
    for frame in range(performance.timing.frames):
        lines.append(str(len(performance.people)))
        for body, person in enumerate(performance.people):
            # Kinect's lean: -1 to 1 to the side and forwards (towards the camera)
            lean = trunk[body, frame, [0, 2]] * [1, -1]
            lines.append(f"{BODY_ID + person.number} 0 1 0 1 0 0 {lean[0]:.7g} {lean[1]:.7g} {TRACKED}")
            lines.append(str(len(PARENTS)))
            lines.extend(" ".join([*(f"{value:.7g}" for value in row), str(TRACKED)]) for row in rows[body, frame].tolist())
    return "\n".join(lines) + "\n"


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
