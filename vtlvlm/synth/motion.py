"""Real movement for drawn bodies: turns a recorded skeleton into a performance that the cameras of this room can film.

The movement is a real person's: arms, legs, trunk and head point where those of the recording point. Everything else is drawn. In order:
gaps and spikes are closed, jitter is smoothed, the recording is set upright, its bones become rigid, its feet stand on the ground, and it
moves to the middle of the room; a long path is shortened. Feet may still slide. No object and no chair is drawn, since a recording holds
none.

F is the number of frames, V the number of joints, M the number of bodies. The world frame is that of :mod:`vtlvlm.synth.body`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d, median_filter, percentile_filter
from scipy.signal import savgol_filter

from vtlvlm.data.ntu import ClipName
from vtlvlm.errors import DataError
from vtlvlm.skeleton.layouts import KINECT20, NTU25
from vtlvlm.synth.body import JOINTS, PARENTS, Array, J, unit
from vtlvlm.synth.people import Person
from vtlvlm.synth.performance import Performance, Timing

SPIKE = 0.3
"""Metres off the median of five frames from which a joint counts as lost in that frame."""
JUMP = 0.4
"""Metres between two frames, for half of the joints, from which the person has left the recording's picture and come back elsewhere."""
SMOOTHING = 7
"""Frames of the Savitzky-Golay filter of order 2, which keeps a movement of constant acceleration as it is."""
CLEARANCE = np.array([{"ankle": 0.075, "foot": -1.0, "spine": 0.10, "head": 0.10}.get(name.split("_")[0], 0.05) for name in JOINTS])
"""(25,) metres from a joint to the floor on which its part of the body lies. Toes do not count: Kinect loses them in the floor."""
AFLOAT = 15
"""Frames to either side within which the floor is looked for: half a second of NTU's."""
SLOPE, FOOT_NOISE = 0.3, 0.03
"""Expected slope of the floor in the frame of a recording camera, and metres by which the lowest foot scatters around the floor."""
STANDING = 0.05
"""Metres by which a foot may seem to be above the floor, or above the other foot, and still carry the body."""
STEADY = 2.0
"""Standard deviation, in frames, of the average over the body's moves onto the floor."""
REACH = 1.0
"""Metres that a person may walk away from the middle of the rig."""
FOOT = 0.085
"""Least length of a foot, in heights of the person. Kinect v1 loses the toes."""

_ORDER = [0, 1, 20, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24]  # parents first
_PARENTS = [max(parent, 0) for parent in PARENTS]
_SIDE = list(NTU25.mirror)
_FEET = [J[f"{part}_{side}"] for part in ("ankle", "foot") for side in ("left", "right")]


def _spread() -> Array:
    """(25, 20): each joint of Kinect v2 as a weighted sum of Kinect v1's."""
    weights = np.zeros((25, 20))

    def put(name: str, **parts: float) -> None:
        for part, weight in parts.items():
            weights[J[name], KINECT20.index(part)] = weight

    put("spine_base", hip_center=1.0)
    put("spine_mid", hip_center=0.5, shoulder_center=0.5)  # v1's spine lies close to the hips
    put("spine_shoulder", shoulder_center=1.0)
    put("neck", shoulder_center=0.6, head=0.4)
    put("head", head=1.0)
    for side in ("left", "right"):
        for part in ("shoulder", "elbow", "wrist", "hand", "hip", "knee", "ankle", "foot"):
            put(f"{part}_{side}", **{f"{part}_{side}": 1.0})
        put(f"hand_tip_{side}", **{f"hand_{side}": 1.6, f"wrist_{side}": -0.6})
        put(f"thumb_{side}", **{f"hand_{side}": 0.5, f"wrist_{side}": 0.5})  # not recorded
    return weights


SPREAD = _spread()


@dataclass(frozen=True)
class Recording:
    """One recording of a skeleton, as its camera saw it.

    Attributes:
        name: The recording's numbers.
        joints: (M, F, V, 3) metres in the camera's frame: sideways, up, ahead. V is 25 or 20. NaN where a joint is not known.
    """

    name: ClipName
    joints: Array

    def require_joints(self) -> None:
        """Refuse a recording that lacks a joint in all frames.

        Raises:
            DataError: The message names the joint.
        """
        layout = KINECT20 if self.joints.shape[2] == KINECT20.num_joints else NTU25
        never = ~np.isfinite(self.joints.sum(axis=-1)).any(axis=1).all(axis=0)
        if never.any():
            raise DataError(f"the joint {layout.joints[int(never.argmax())]} is in no frame of the recording; leave it out")

    def world(self, mirrored: bool) -> Array:
        """(M, F, 25, 3) in a frame with x to the camera's right, y up and z towards the camera."""
        joints = self.joints * [-1.0 if mirrored else 1.0, 1.0, -1.0]
        if joints.shape[2] == 20:
            joints = np.einsum("jv,mfvc->mfjc", SPREAD, joints)
        return joints


class Rig(NamedTuple):
    """What holds for all recordings of one camera."""

    mirrored: bool
    """Whether x points to the camera's left, as Kinect's does"""
    upright: Array
    """(3, 3) rotation that makes the recording's floor horizontal"""

    @classmethod
    def of(cls, recordings: Iterable[Recording], mirrored: bool) -> Rig:
        """Find the floor of a camera's recordings: the plane that the lower foot seldom goes below.

        The plane is the 30 % quantile of the lower foot's height over its place (iteratively reweighted least squares). A prior keeps the
        floor level where people do not walk around. Every recording weighs the same.
        """
        points, weights = [], []
        for recording in recordings:
            feet = recording.world(mirrored)[0][:, _FEET]
            low = np.take_along_axis(feet, np.where(np.isfinite(feet[..., 1]), feet[..., 1], np.inf).argmin(1)[:, None, None], 1)[:, 0]
            low = low[np.isfinite(low).all(1)]
            points.append(low)
            weights.append(np.full(len(low), 1 / max(len(low), 1)))
        if not sum(map(len, points)):
            return cls(mirrored, np.eye(3))
        place, share = np.concatenate(points), np.concatenate(weights)
        middle = np.average(place, axis=0, weights=share)
        x, y, z = (place - middle).T
        design, prior = np.stack([np.ones_like(x), x, z], axis=1), np.diag([0.0, 1.0, 1.0]) * (FOOT_NOISE / SLOPE) ** 2
        pull, plane = share.copy(), np.zeros(3)
        for _ in range(30):
            weighted = design * pull[:, None]
            plane = np.linalg.solve(weighted.T @ design + prior * max(1.0, pull.sum() / len(points)), weighted.T @ y)
            beside = y - design @ plane
            pull = share * np.where(beside > 0, 0.3, 0.7) * FOOT_NOISE / np.maximum(np.abs(beside), FOOT_NOISE / 10)
        return cls(mirrored, _turning(unit(np.array([-plane[1], 1.0, -plane[2]]))))


def _turning(normal: Array) -> Array:
    """The smallest rotation (3, 3) that turns a unit vector upwards."""
    x, y, z = normal
    cross = np.array([[0.0, -x, 0.0], [x, 0.0, z], [0.0, -z, 0.0]])
    return np.eye(3) + cross + cross @ cross / (1 + y)


def is_mirrored(recordings: Iterable[Recording]) -> bool:
    """Whether x points to the left of the recording camera: toes point forwards only if left and right are what they say."""
    ahead = 0.0
    for recording in recordings:
        joints = recording.world(mirrored=False)[0]
        front = np.cross(joints[:, J["hip_left"]] - joints[:, J["hip_right"]], joints[:, J["spine_shoulder"]] - joints[:, J["spine_base"]])
        toes = sum(joints[:, J[f"foot_{side}"]] - joints[:, J[f"ankle_{side}"]] for side in ("left", "right"))
        forwards = np.sum(unit(front) * toes, axis=-1)
        ahead += float(np.mean(forwards[np.isfinite(forwards)])) if np.isfinite(forwards).any() else 0.0
    return ahead < 0


def performed(recording: Recording, rig: Rig, people: tuple[Person, ...], lengths: Array | None = None) -> Performance:
    """Let people perform a recording in which every joint is known at some time, one for each of its bodies.

    Args:
        recording: the recording.
        rig: its camera's.
        people: who performs it.
        lengths: (25,) metres of the first person's bones; None for those of the recording.
    """
    world = recording.world(rig.mirrored) @ rig.upright.T
    bodies, cast = [], []
    for person, joints, known in zip(people, world, [lengths, None], strict=False):
        whole = closed(joints)
        steady = smoothed(joined(whole) if len(world) == 1 else whole)  # two bodies keep their places
        rigid = with_rigid_bones(steady, bone_lengths(steady) if known is None else known)
        cast.append(replace(person, height=round(stature(rigid), 4)))
        bodies.append(with_feet(grounded(rigid, steady), cast[-1].height))
    joints = in_the_middle(np.stack(bodies))
    frames = joints.shape[1]
    return Performance(
        timing=Timing(frames, 0, frames),
        people=tuple(cast),
        joints=joints,
        jacket=np.zeros((len(people), frames, 3)),
        working=("right",) * len(people),
        box=None,
        ball=None,
        chair=None,
    )


def in_the_middle(joints: Array) -> Array:
    """Bodies (M, F, 25, 3) around the middle of the rig. A path that would lead out of the pictures is shortened, for all bodies alike."""
    pelvis = joints[:, :, 0].mean(axis=0) * [1.0, 0.0, 1.0]
    middle = (pelvis.min(0) + pelvis.max(0)) / 2
    farthest = float(np.linalg.norm(pelvis - middle, axis=-1).max())
    shorter = min(1.0, REACH / max(farthest, 1e-9))
    return joints - (middle + (1 - shorter) * (pelvis - middle))[None, :, None]


def closed(joints: Array) -> Array:
    """Close gaps and spikes in time: linearly between the frames around them, and with the nearest frame at both ends.

    Args:
        joints: (F, V, 3), NaN where a joint is not known. Each joint is known in some frame.
    """
    whole = _between(joints, np.isfinite(joints.sum(axis=-1)))
    if len(whole) < 3:
        return whole
    off = np.linalg.norm(whole - median_filter(whole, size=(min(5, len(whole) - 1 + len(whole) % 2), 1, 1), mode="nearest"), axis=-1)
    kept = off < SPIKE
    return _between(whole, kept | ~kept.any(0))


def _between(joints: Array, known: npt.NDArray[np.bool_]) -> Array:
    """(F, V, 3) with the values of unknown joints (F, V) taken from the frames around them."""
    if known.all():
        return joints
    frames = np.arange(len(joints))[:, None]
    before = np.maximum.accumulate(np.where(known, frames, -1), axis=0)
    after = np.minimum.accumulate(np.where(known, frames, len(joints))[::-1], axis=0)[::-1]
    first, last = np.where(before < 0, after, before), np.where(after == len(joints), before, after)
    share = ((frames - first) / np.maximum(last - first, 1))[..., None]
    start, end = (np.take_along_axis(joints, index[..., None], axis=0) for index in (first, last))
    return start + share * (end - start)


def joined(joints: Array) -> Array:
    """(F, 25, 3) in which the person goes on from the same place after a jump."""
    steps = np.diff(joints, axis=0)
    jump = np.median(np.linalg.norm(steps, axis=-1), axis=1) > JUMP
    return joints - np.insert(np.cumsum(steps[:, 0] * jump[:, None] * [1.0, 0.0, 1.0], axis=0), 0, 0.0, axis=0)[:, None]


def smoothed(joints: Array) -> Array:
    """(F, V, 3) without jitter. A recording of fewer than seven frames stays as it is."""
    return joints if len(joints) < SMOOTHING else savgol_filter(joints, SMOOTHING, 2, axis=0, mode="interp")


def bone_lengths(joints: Array) -> Array:
    """(F, 25, 3) → (25,) metres from each joint to its parent: the median over the frames, and the mean of both sides."""
    lengths = np.median(np.linalg.norm(joints - joints[:, _PARENTS], axis=-1), axis=0)
    return np.asarray((lengths + lengths[_SIDE]) / 2)


def with_rigid_bones(joints: Array, lengths: Array) -> Array:
    """(F, 25, 3) with the same directions of the bones and these lengths (25,)."""
    bones = unit(joints - joints[:, _PARENTS]) * lengths[:, None]
    out = joints.copy()
    for joint in _ORDER[1:]:
        out[:, joint] = out[:, PARENTS[joint]] + bones[:, joint]
    return out


def stature(joints: Array) -> float:
    """Metres from the sole to the top of the head of a body (F, 25, 3) with rigid bones, standing."""
    length = np.linalg.norm(joints - joints[:, _PARENTS], axis=-1)[0]
    leg = length[J["knee_left"]] + length[J["ankle_left"]] + CLEARANCE[J["ankle_left"]]
    return float(leg + sum(length[J[name]] for name in ("spine_mid", "spine_shoulder", "neck", "head")) + 0.08)


def grounded(rigid: Array, recorded: Array) -> Array:
    """Put a body with rigid bones onto the floor, y = 0, where the recording has it.

    The recorded legs shrink and grow, so rigid legs would sink into the floor. The body moves so that the lower foot is where the recording
    has it (both feet, where both are low), and so that its lowest point is as far above the floor as the recording's. The floor of the
    recording is the 30 % quantile of its lowest points within half a second to either side: a jump stays a jump, and what is left of the
    floor's slope is taken out.

    Args:
        rigid: (F, 25, 3).
        recorded: (F, 25, 3) the same frames before their bones became rigid.
    """
    lowest = (recorded[..., 1] - CLEARANCE).min(axis=1)
    floor = percentile_filter(lowest, 30, 2 * AFLOAT + 1, mode="nearest")
    ankles = [J["ankle_left"], J["ankle_right"]]
    weight = np.exp(-(recorded[:, ankles, 1] - recorded[:, ankles, 1].min(axis=1, keepdims=True)) / STANDING)
    move = np.einsum("fa,fac->fc", weight / weight.sum(1, keepdims=True), (recorded - rigid)[:, ankles])
    move[:, 1] = np.maximum(lowest - floor - STANDING, 0.0) - (rigid[..., 1] - CLEARANCE).min(axis=1)
    return rigid + gaussian_filter1d(move, STEADY, axis=0, mode="nearest")[:, None]


def with_feet(joints: Array, height: float) -> Array:
    """(F, 25, 3) with feet of a plausible length that lie flat where the ankle is near the floor; toes point where the recording's do."""
    up = np.array([0.0, 1.0, 0.0])
    front = unit(np.cross(joints[:, J["hip_left"]] - joints[:, J["hip_right"]], up))
    out = joints.copy()
    for side in ("left", "right"):
        ankle, foot = joints[:, J[f"ankle_{side}"]], joints[:, J[f"foot_{side}"]]
        recorded = foot - ankle
        length = max(float(np.median(np.linalg.norm(recorded, axis=-1))), FOOT * height)
        heading = unit(recorded * [1.0, 0.0, 1.0] + 0.05 * front)
        flat = np.clip(1 - (ankle[:, 1:2] - CLEARANCE[J["ankle_left"]]) / 0.12, 0.0, 1.0)
        out[:, J[f"foot_{side}"]] = ankle + length * unit(flat * unit(heading - 0.3 * up) + (1 - flat) * unit(recorded))
    return out
