"""Changes of joints on the device, for all clips of a batch at once.

Joints are (N, 3, T, V, M): x, y and z, or, in the picture, x, y and a confidence. Clips have different lengths; frames from a clip's length
on are zeros. An absent body is all zeros, and stays so. Random numbers come in as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layouts import Layout

_SMALL = 1e-6  # metres; shorter lines have no direction


def draws(seeds: Sequence[str], count: int) -> Tensor:
    """(N, count) float32 in [0, 1): each clip's random numbers, from its own seed. They depend neither on the batch nor on processes."""
    keys = [int.from_bytes(blake2b(seed.encode(), digest_size=8).digest()) for seed in seeds]
    rows = [np.random.default_rng(key).random(count, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def present(joints: Tensor) -> Tensor:
    """(N, 3, T, V, M) -> (N, T, M) bool: frames in which a body is there."""
    return (joints != 0).any(dim=3).any(dim=1)


def masked(joints: Tensor, there: Tensor) -> Tensor:
    """Zeros where ``there`` (N, T, M) is false."""
    return joints * there[:, None, :, None]


def first_frames(there: Tensor) -> Tensor:
    """(N, T, M) -> (N, M) int64: each body's first frame; 0 for a body that never is there."""
    return there.to(torch.uint8).argmax(dim=1)


def _joints_at(joints: Tensor, frames: Tensor) -> Tensor:
    """(N, 3, T, V, M) and each body's frame (N, M) -> (N, 3, V, M)."""
    place = frames[:, None, None, None, :].expand(-1, 3, 1, joints.shape[3], -1)
    return joints.gather(2, place).squeeze(2)


def centred(joints: Tensor, layout: Layout, every_frame: bool = False) -> Tensor:
    """Put the layout's centre of the first body at the origin. Both bodies share the origin.

    Args:
        joints: (N, 3, T, V, M) metres.
        layout: The joints.
        every_frame: Use the centre in every frame (Shift-GCN); frames without the first body stay. Otherwise use its first frame's
            (CTR-GCN, PYSKL).
    """
    there = present(joints)
    if every_frame:
        return masked(joints - joints[:, :, :, layout.centre : layout.centre + 1, :1], there)
    origin = _joints_at(joints[..., :1], first_frames(there[..., :1]))[:, :, layout.centre]  # (N, 3, 1)
    return masked(joints - origin[:, :, None, None, :], there)


def aligned(joints: Tensor, layout: Layout, by: Literal["hips", "shoulders"]) -> Tensor:
    """Turn bodies upright and to the front. The body's own first frame gives its axes; a body without a spine or sides stays.

    ``hips`` is InfoGCN's way: each body gets the coordinates along its hips (from right to left), across both, and up its spine. These
    three axes form a left-handed frame, so that bodies are mirrored. ``shoulders`` is that of Shift-GCN and PYSKL: the first body's spine
    is turned to z, then its shoulders (from left to right) to x; all bodies turn with it.

    Args:
        joints: (N, 3, T, V, M) metres.
        layout: The joints.
        by: The way.

    Raises:
        UsageError: The layout lies in the picture's plane.
    """
    if layout.spine is None:
        raise UsageError(f"the layout {layout.name} has no spine to align bodies by; leave the alignment out")
    own = _joints_at(joints, first_frames(present(joints)))
    low, high = layout.spine
    up = own[:, :, high] - own[:, :, low]  # (N, 3, M)
    if by == "hips":
        side = own[:, :, layout.index("hip_left")] - own[:, :, layout.index("hip_right")]
        v1 = _unit(up)
        across = side - (side * v1).sum(1, keepdim=True) * v1
        v2 = _unit(across)
        axes = torch.stack([v2, torch.linalg.cross(v2, v1, dim=1), v1], dim=1)  # (N, axis, 3, M)
        usable = (up.norm(dim=1) > _SMALL) & (across.norm(dim=1) > _SMALL)  # (N, M)
        axes = torch.where(usable[:, None, None], axes, torch.eye(3, device=joints.device, dtype=joints.dtype)[None, :, :, None])
        return torch.einsum("nacm,nctvm->natvm", axes, joints)
    shoulders = own[:, :, layout.index("shoulder_right"), 0] - own[:, :, layout.index("shoulder_left"), 0]
    upright = turning(up[..., 0], (0.0, 0.0, 1.0))
    facing = turning(torch.einsum("nac,nc->na", upright, shoulders), (1.0, 0.0, 0.0))
    return turned(joints, facing @ upright)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=_SMALL)


def turning(vectors: Tensor, axis: tuple[float, float, float]) -> Tensor:
    """The shortest turn of each vector (N, 3) to an axis: (N, 3, 3). Short vectors, and those along the axis either way, stay."""
    to = constant(axis, vectors.device).to(vectors.dtype).expand_as(vectors)
    around = torch.linalg.cross(vectors, to, dim=1)
    length = around.norm(dim=1)
    angle = torch.atan2(length, (vectors * to).sum(1))
    k = _unit(around)
    zero = torch.zeros_like(length)
    skew = torch.stack([zero, -k[:, 2], k[:, 1], k[:, 2], zero, -k[:, 0], -k[:, 1], k[:, 0], zero], dim=1).view(-1, 3, 3)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    identity = torch.eye(3, device=vectors.device, dtype=vectors.dtype)
    matrix = identity + sine * skew + (1 - cosine) * (skew @ skew)  # Rodrigues
    return torch.where((length > _SMALL)[:, None, None], matrix, identity)


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, copied there once: a copy waits for all that the device has to do."""
    return torch.tensor(values, device=device)


def turned(joints: Tensor, matrices: Tensor) -> Tensor:
    """Turn each clip (N, 3, T, V, M) by its matrix (N, 3, 3)."""
    return torch.einsum("nac,nctvm->natvm", matrices.to(joints), joints)


def rotations(angles: Tensor) -> Tensor:
    """Angles (N, 3) in radians about x, y and z -> (N, 3, 3): Rz Ry Rx."""
    sine, cosine = angles.sin(), angles.cos()
    one, zero = torch.ones_like(sine[:, 0]), torch.zeros_like(sine[:, 0])

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=1).view(-1, 3, 3)

    rx = matrix(one, zero, zero, zero, cosine[:, 0], -sine[:, 0], zero, sine[:, 0], cosine[:, 0])
    ry = matrix(cosine[:, 1], zero, sine[:, 1], zero, one, zero, -sine[:, 1], zero, cosine[:, 1])
    rz = matrix(cosine[:, 2], -sine[:, 2], zero, sine[:, 2], cosine[:, 2], zero, zero, zero, one)
    return rz @ ry @ rx


def scaled_bones(joints: Tensor, layout: Layout, factors: Tensor) -> Tensor:
    """Make each bone longer or shorter, and put the joints together again from the root outwards (FR-Head).

    Args:
        joints: (N, 3, T, V, M) metres.
        layout: The joints.
        factors: (N, V) of the bone that ends in each joint. A bone takes the smaller joint number's factor of the two sides; the root's
            has no effect.
    """
    tree = _tree(layout, joints.device)
    bones = joints - joints.index_select(3, tree.parents)
    bones = bones * factors.to(joints)[:, tree.smaller][:, None, None, :, None]
    bones = torch.cat(
        [bones[..., : layout.root, :], joints[..., layout.root : layout.root + 1, :], bones[..., layout.root + 1 :, :]], dim=3
    )
    return torch.einsum("uv,nctvm->nctum", tree.paths.to(joints), bones)


class _Tree(NamedTuple):
    """The bones of a layout, on a device."""

    parents: Tensor
    """(V,)"""
    smaller: Tensor
    """(V,) the smaller joint number of the two sides"""
    paths: Tensor
    """(V, V): 1 where the second joint lies on the way from the root to the first, both ends included"""


@cache
def _tree(layout: Layout, device: torch.device) -> _Tree:
    found = torch.zeros(layout.num_joints, layout.num_joints)
    for joint in range(layout.num_joints):
        step = joint
        found[joint, step] = 1
        while step != layout.root:
            step = layout.parents[step]
            found[joint, step] = 1
    smaller = torch.minimum(torch.arange(layout.num_joints), torch.tensor(layout.mirror))
    return _Tree(torch.tensor(layout.parents, device=device), smaller.to(device), found.to(device))


# -- time ------------------------------------------------------------------------------------------------------------------------------


def resampled(joints: Tensor, start: Tensor, length: Tensor, frames: int) -> Tensor:
    """Stretch or shrink a piece of each clip to a number of frames, by linear interpolation (PyTorch's, with align_corners=False).

    Args:
        joints: (N, 3, T, V, M).
        start: (N,) int64 first frame of the piece.
        length: (N,) int64 its frames, from 1.
        frames: T' wanted.

    Returns:
        (N, 3, T', V, M).
    """
    places = (torch.arange(frames, device=joints.device) + 0.5)[None] * (length[:, None] / frames) - 0.5
    places = places.clamp(min=0)
    below = torch.minimum(places.floor().long(), length[:, None] - 1)
    above = torch.minimum(below + 1, length[:, None] - 1)
    share = (places - below).clamp(0, 1).to(joints.dtype)[:, None, :, None, None]
    return taken(joints, start[:, None] + below) * (1 - share) + taken(joints, start[:, None] + above) * share


def taken(joints: Tensor, frames: Tensor) -> Tensor:
    """The frames (N, T') int64 of each clip: (N, 3, T, V, M) -> (N, 3, T', V, M)."""
    place = frames[:, None, :, None, None].expand(-1, joints.shape[1], -1, joints.shape[3], joints.shape[4])
    return joints.gather(2, place)


def crops(lengths: Tensor, share: Tensor, place: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Pieces of clips, as CTR-GCN draws them.

    Args:
        lengths: (N,) int64 frames of the clips.
        share: (N,) in (0, 1] of the clip that the piece takes.
        place: (N,) in [0, 1] of the piece among its possible places.
        least: Frames of a piece, at least; a shorter clip is taken whole.

    Returns:
        start, length: each (N,) int64.
    """
    length = torch.minimum((lengths * share).floor().long().clamp(min=least), lengths)
    room = lengths - length
    return torch.minimum((place * (room + 1)).floor().long(), room), length


def central(lengths: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The middle pieces of clips, (N,) frames: as much as ``share`` leaves after the same whole number of frames is cut at both ends."""
    cut = ((1 - share) * lengths.double() / 2).floor().long()
    return cut, lengths - 2 * cut


def spread(lengths: Tensor, frames: int, random: Tensor) -> Tensor:
    """PYSKL's uniform sampling: the clip is cut into equal parts, and one frame is drawn from each.

    A clip shorter than the frames wanted begins at a random frame and wraps. One up to twice as long skips random frames.

    Args:
        lengths: (N,) int64 frames of the clips.
        frames: T' wanted.
        random: (N, T' + 1) in [0, 1).

    Returns:
        (N, T') int64 frame numbers.
    """
    steps = torch.arange(frames, device=lengths.device)[None]
    lengths, random = lengths[:, None], random.to(lengths.device)
    wrapped = ((random[:, :1] * lengths).floor().long() + steps) % lengths
    order = random.argsort(dim=1).argsort(dim=1)  # the gaps whose rank is below the number of skips
    skipped = steps + (order < lengths - frames).long().cumsum(1)[:, :frames]
    edges = torch.arange(frames + 1, device=lengths.device)[None] * lengths // frames
    drawn = edges[:, :-1] + (random[:, :frames] * (edges[:, 1:] - edges[:, :-1])).floor().long()
    return torch.where(lengths < frames, wrapped, torch.where(lengths < 2 * frames, skipped, drawn))


# -- NW-UCLA ---------------------------------------------------------------------------------------------------------------------------


def boxed(joints: Tensor, lengths: Tensor) -> Tensor:
    """Scale each axis of each clip to [-1, 1] over all its frames, joints and bodies; an axis without extent becomes zero."""
    inside = (torch.arange(joints.shape[2], device=joints.device)[None] < lengths[:, None])[:, None, :, None, None]
    inside = inside & present(joints)[:, None, :, None]
    low = joints.masked_fill(~inside, torch.inf).amin(dim=(2, 3, 4), keepdim=True)
    high = joints.masked_fill(~inside, -torch.inf).amax(dim=(2, 3, 4), keepdim=True)
    scaled = (joints - low) / (high - low).clamp(min=_SMALL) * 2 - 1
    return torch.where(inside & (high > low), scaled, torch.zeros_like(joints))
