"""A kinematic body with the 25 joints of Kinect v2 and NTU RGB+D: poses in, joint positions out, every bone rigid.

World frame: metres, y up. The performer faces +z, with the left hand at +x. The floor is y = 0. F is the number of frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

JOINTS = (
    *("spine_base", "spine_mid", "neck", "head"),
    *("shoulder_left", "elbow_left", "wrist_left", "hand_left"),
    *("shoulder_right", "elbow_right", "wrist_right", "hand_right"),
    *("hip_left", "knee_left", "ankle_left", "foot_left"),
    *("hip_right", "knee_right", "ankle_right", "foot_right"),
    *("spine_shoulder", "hand_tip_left", "thumb_left", "hand_tip_right", "thumb_right"),
)
"""In NTU's order (its joints 1 to 25)."""

PARENTS = (-1, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 6, 11, 10)
"""Parent of each joint in Kinect v2's hierarchy; -1 marks the root. A thumb's parent is its wrist, a hand tip's parent its hand."""

J = {name: position for position, name in enumerate(JOINTS)}

CHANNELS: dict[str, slice] = {}
"""Position of each part in a pose vector; see `pose`."""
for _name, _width in (
    ("pelvis", 3), ("turn", 3), ("spine", 3), ("head", 3), ("hand_left", 3), ("hand_right", 3), ("foot_left", 3), ("foot_right", 3),
):  # fmt: skip
    _start = max((s.stop for s in CHANNELS.values()), default=0)
    CHANNELS[_name] = slice(_start, _start + _width)
POSE_SIZE = 24

REST: dict[str, tuple[float, float, float]] = {
    "hand_left": (0.14, -0.95, 0.06),
    "hand_right": (-0.14, -0.95, 0.06),
}
"""The pose of standing at ease. Other parts rest at zero."""


def pose(**parts: tuple[float, float, float]) -> Array:
    """A pose vector (POSE_SIZE,). Parts that are not named are at rest.

    Args:
        parts: ``pelvis`` and ``foot_*``: offset from standing, in leg lengths. ``hand_*``: position relative to the shoulder, upright
            axes, in arm lengths. ``turn`` (of the whole body), ``spine`` and ``head``: angles (pitch forwards, yaw to the left,
            roll to the right) in radians.
    """
    vector = np.zeros(POSE_SIZE)
    for name, value in {**REST, **parts}.items():
        vector[CHANNELS[name]] = value
    return vector


def mirror(poses: Array) -> Array:
    """Exchange left and right: poses (F, POSE_SIZE) in and out."""
    out = poses.copy()
    for left, right in (("hand_left", "hand_right"), ("foot_left", "foot_right")):
        out[:, CHANNELS[left]], out[:, CHANNELS[right]] = poses[:, CHANNELS[right]], poses[:, CHANNELS[left]]
    for name in ("pelvis", "hand_left", "hand_right", "foot_left", "foot_right"):
        out[:, CHANNELS[name].start] *= -1
    for name in ("turn", "spine", "head"):
        out[:, CHANNELS[name].start + 1 : CHANNELS[name].stop] *= -1
    return out


@dataclass(frozen=True)
class Body:
    """Bone lengths in metres."""

    spine: float
    neck: float
    head: float
    shoulder: float
    upper_arm: float
    forearm: float
    hand: float
    hip: float
    thigh: float
    shin: float
    foot: float

    @classmethod
    def of(cls, height: float, legs: float = 1.0, arms: float = 1.0, breadth: float = 1.0) -> Body:
        """A body of ``height`` metres. The other numbers are proportions around 1."""
        return cls(
            spine=0.278 * height * (2 - legs),
            neck=0.042 * height,
            head=0.085 * height,
            shoulder=0.108 * height * breadth,
            upper_arm=0.172 * height * arms,
            forearm=0.152 * height * arms,
            hand=0.050 * height,
            hip=0.050 * height * breadth,
            thigh=0.245 * height * legs,
            shin=0.235 * height * legs,
            foot=0.085 * height,
        )

    @property
    def leg(self) -> float:
        """Leg length, the unit of ``pelvis`` and ``foot_*``."""
        return self.thigh + self.shin

    @property
    def arm(self) -> float:
        """Arm length, the unit of ``hand_*``."""
        return self.upper_arm + self.forearm

    @property
    def ankle(self) -> float:
        """Height of the ankle joint of a planted foot."""
        return 0.45 * self.foot

    @property
    def pelvis_height(self) -> float:
        """Height of the spine base when standing, with slightly bent knees."""
        return self.ankle + 0.985 * self.leg + 0.4 * self.hip

    def joints(self, poses: Array) -> Array:
        """Forward kinematics with two-bone inverse kinematics for arms and legs.

        Args:
            poses: (F, POSE_SIZE).

        Returns:
            (F, 25, 3) world positions of a performer who stands at the origin and faces +z.
        """
        part = {name: poses[:, where] for name, where in CHANNELS.items()}
        out = np.zeros((len(poses), len(JOINTS), 3))
        pelvis = part["pelvis"] * self.leg + [0.0, self.pelvis_height, 0.0]
        turn = rotation(part["turn"])
        facing = rotation(part["turn"] * [0.0, 1.0, 0.0])
        lower, chest = turn @ rotation(part["spine"] / 2), turn @ rotation(part["spine"])
        middle = pelvis + lower @ [0.0, 0.48 * self.spine, 0.0]
        shoulders = middle + chest @ [0.0, 0.52 * self.spine, 0.0]
        neck = shoulders + chest @ [0.0, self.neck, 0.0]
        out[:, [0, 1, 20, 2]] = np.stack([pelvis, middle, shoulders, neck], axis=1)
        out[:, 3] = neck + (chest @ rotation(part["head"])) @ [0.0, self.head, 0.15 * self.head]
        for side, sign in (("left", 1.0), ("right", -1.0)):
            root = shoulders + chest @ [sign * self.shoulder, -0.10 * self.neck, 0.0]
            target = root + apply(facing, part[f"hand_{side}"]) * self.arm
            elbow, wrist = two_bones(root, target, self.upper_arm, self.forearm, facing @ [sign * 0.7, -0.35, -0.6])
            along = unit(wrist - elbow)
            hand = wrist + along * 0.45 * self.hand
            thumb = wrist + 0.6 * self.hand * unit(along + 0.8 * (facing @ [-sign * 0.3, 0.2, 0.9]))
            for name, value in (
                ("shoulder", root), ("elbow", elbow), ("wrist", wrist), ("hand", hand), ("thumb", thumb),
                ("hand_tip", hand + along * 0.55 * self.hand),
            ):  # fmt: skip
                out[:, J[f"{name}_{side}"]] = value
            root = pelvis + turn @ [sign * self.hip, -0.4 * self.hip, 0.0]
            target = part[f"foot_{side}"] * self.leg + [sign * 1.15 * self.hip, self.ankle, 0.0]
            knee, ankle = two_bones(root, target, self.thigh, self.shin, turn @ [sign * 0.15, 0.0, 1.0])
            # a planted foot points forwards; a lifted foot hangs at a right angle to the shin
            lifted = np.clip((ankle[:, 1:2] - self.ankle) / 0.25, 0.0, 1.0)
            shin = unit(ankle - knee)
            forward = turn @ [sign * 0.15, 0.0, 1.0]
            toes = unit(
                (1 - lifted) * (facing @ [sign * 0.2, -0.3, 1.0])
                + lifted * unit(forward - shin * np.sum(forward * shin, -1, keepdims=True))
            )
            for name, value in (("hip", root), ("knee", knee), ("ankle", ankle), ("foot", ankle + toes * self.foot)):
                out[:, J[f"{name}_{side}"]] = value
        return out


def rotation(angles: Array) -> Array:
    """Rotation matrices (F, 3, 3) of (pitch, yaw, roll) angles (F, 3): roll first, then pitch, then yaw."""
    pitch, yaw, roll = np.moveaxis(np.asarray(angles), -1, 0)
    one, zero = np.ones_like(pitch), np.zeros_like(pitch)

    def matrix(*rows: Array) -> Array:
        return np.stack(rows, axis=-1).reshape(*pitch.shape, 3, 3)

    about_x = matrix(one, zero, zero, zero, np.cos(pitch), -np.sin(pitch), zero, np.sin(pitch), np.cos(pitch))
    about_y = matrix(np.cos(yaw), zero, np.sin(yaw), zero, one, zero, -np.sin(yaw), zero, np.cos(yaw))
    about_z = matrix(np.cos(roll), -np.sin(roll), zero, np.sin(roll), np.cos(roll), zero, zero, zero, one)
    return about_y @ about_x @ about_z


def apply(matrices: Array, vectors: Array) -> Array:
    """(F, 3, 3) applied to (F, 3)."""
    return np.einsum("fij,fj->fi", matrices, vectors)


def unit(vectors: Array) -> Array:
    """Vectors (..., 3) scaled to length one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def two_bones(root: Array, target: Array, first: float, second: float, pole: Array) -> tuple[Array, Array]:
    """Inverse kinematics of a chain of two bones that bends towards ``pole``. It approaches a target out of reach.

    Returns:
        Middle and end positions, (F, 3) each. The bones are exactly ``first`` and ``second`` metres long.
    """
    towards = target - root
    reach = np.clip(np.linalg.norm(towards, axis=-1, keepdims=True), abs(first - second) + 0.02, 0.999 * (first + second))
    along = unit(towards)
    across = unit(pole - along * np.sum(pole * along, axis=-1, keepdims=True))
    cosine = np.clip((first**2 + reach**2 - second**2) / (2 * first * reach), -1.0, 1.0)
    return root + first * (along * cosine + across * np.sqrt(1 - cosine**2)), root + along * reach
