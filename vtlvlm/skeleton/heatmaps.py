"""PoseC3D's heat maps (arXiv 2104.13586): key points in the picture's plane -> stacks of small pictures, one channel a joint or a limb.

A pose is (N, 3, T, V, M): x to the right and y downwards in any unit, and the key point's confidence in [0, 1]. The confidence is zero
where a joint or a body is missing. Coordinates are small and kept; maps are large and drawn anew in each step, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layouts import Layout
from vtlvlm.skeleton.transforms import constant

Kind = Literal["joint", "limb"]
CUT = 3.0
"""A Gaussian ends this many standard deviations from its key point"""


class HeatMaps(nn.Module):
    """Poses (N, 3, T, V, M) -> heat maps (N, K, T, H, H) with values in [0, 1], K joints or limbs.

    Each clip is cut to the square box around its bodies. In training, a random part of that square is taken, and half of the clips are
    mirrored, left joints becoming right joints; otherwise the whole square is taken.

    Args:
        kind: Draw joints, or limbs (the layout's bones).
        size: H in training, pixels.
        eval_size: H otherwise.
        sigma: Standard deviation of a Gaussian, pixels.
        padding: Side of the square over the longer side of the tight box.
        area: Smallest share of the square's area that training takes; 1 takes all.
        flip: Probability of mirroring in training.
        metres: The input is not poses but joints in metres, y upwards, which are seen from the front; see :func:`frontal`.

    Raises:
        UsageError: A setting is out of range.
    """

    def __init__(
        self,
        kind: Kind = "joint",
        size: int = 56,
        eval_size: int = 64,
        sigma: float = 0.6,
        padding: float = 1.25,
        area: float = 0.56,
        flip: float = 0.5,
        metres: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("joint", "limb"):
            raise UsageError(f"maps.kind={kind}: choose joint or limb")
        if min(size, eval_size) < 1:
            raise UsageError(f"maps.size={size}, maps.eval_size={eval_size}: use at least one pixel")
        if not sigma > 0 or not padding > 0:
            raise UsageError(f"maps.sigma={sigma}, maps.padding={padding}: use positive numbers")
        if not 0 < area <= 1 or not 0 <= flip <= 1:
            raise UsageError(f"maps.area={area}, maps.flip={flip}: use shares, of at most 1, and an area above 0")
        self.kind = kind
        self.size = size
        self.eval_size = eval_size
        self.sigma = sigma
        self.padding = padding
        self.area = area
        self.flip = flip
        self.metres = metres
        self.layout: Layout | None = None

    def build(self, layout: Layout) -> int:
        """Takes the layout of the joints. Returns K, the number of joints or limbs."""
        self.layout = layout
        return layout.num_joints if self.kind == "joint" else len(layout.bones)

    def forward(self, poses: Tensor) -> Tensor:
        """Poses (N, 3, T, V, M) -> heat maps (N, K, T, H, H) float32.

        Raises:
            UsageError: The clips have another number of joints than the layout.
        """
        assert self.layout is not None, "build() first"
        if poses.shape[3] != self.layout.num_joints:
            raise UsageError(
                f"the clips have {poses.shape[3]} joints, the network has {self.layout.num_joints} ({self.layout.name}): "
                "train a network for this layout"
            )
        with torch.autocast(poses.device.type, enabled=False):
            poses = in_box(frontal(poses.float()) if self.metres else poses.float(), self.padding)
            if self.training:
                poses = randomly_cropped(poses, self.area)
                poses = randomly_mirrored(poses, self.layout.mirror, self.flip)
            size = self.size if self.training else self.eval_size
            if self.kind == "joint":
                return joint_maps(poses, size, self.sigma)
            return limb_maps(poses, self.layout.bones, size, self.sigma)


# -- coordinates ---------------------------------------------------------------------------------------------------------------------------


def frontal(joints: Tensor) -> Tensor:
    """Joints (N, 3, T, V, M) in metres, y upwards -> poses (N, 3, T, V, M) as seen from the front: z is dropped and y turned.

    Such recordings have no confidences. The confidence is 1, and 0 where all joints of a body lie at the origin: there is none.
    """
    seen = joints.ne(0).any(dim=1).any(dim=2, keepdim=True).expand(joints[:, 0].shape)
    return torch.stack([joints[:, 0], -joints[:, 1], seen.to(joints.dtype)], dim=1)


def in_box(poses: Tensor, padding: float = 1.25) -> Tensor:
    """Poses in units of the square around them: (N, 3, T, V, M) -> the same, the square being [0, 1] x [0, 1].

    A clip has one square, around all its frames and bodies. It may leave the picture. Key points that are not finite lose their confidence.

    Args:
        poses: x, y and confidence.
        padding: Side of the square over the longer side of the tight box.
    """
    points = poses[:, :2]
    seen = (poses[:, 2:] > 0) & points.isfinite().all(dim=1, keepdim=True)  # (N, 1, T, V, M)
    low = points.masked_fill(~seen, torch.inf).flatten(2).amin(dim=2)  # (N, 2)
    high = points.masked_fill(~seen, -torch.inf).flatten(2).amax(dim=2)
    anybody = low.isfinite().all(dim=1)
    side = padding * (high - low).amax(dim=1)
    side = torch.where(anybody & (side > 0), side, 1.0)[:, None]
    corner = torch.where(anybody[:, None], (low + high) / 2, 0.0) - side / 2
    inside = (points - corner[:, :, None, None, None]) / side[:, :, None, None, None]
    return torch.cat([inside.masked_fill(~seen, 0.0), poses[:, 2:].masked_fill(~seen, 0.0)], dim=1)


def cropped(poses: Tensor, corner: Tensor, extent: Tensor) -> Tensor:
    """Poses in units of a rectangle of the unit square.

    Args:
        poses: (N, 3, T, V, M), in units of the square.
        corner: (N, 2) the rectangle's left and upper border.
        extent: (N, 2) its width and height, positive.
    """
    points = (poses[:, :2] - corner[:, :, None, None, None]) / extent[:, :, None, None, None]
    return torch.cat([points, poses[:, 2:]], dim=1)


def mirrored(poses: Tensor, mirror: Sequence[int]) -> Tensor:
    """Poses (N, 3, T, V, M) in the unit square, seen in a mirror: x becomes 1 - x, and each joint its partner of the other side.

    Args:
        poses: x, y and confidence.
        mirror: (V,) the partner of each joint.
    """
    turned = poses.index_select(3, constant(tuple(mirror), poses.device))
    return torch.cat([1 - turned[:, :1], turned[:, 1:]], dim=1)


def randomly_cropped(poses: Tensor, area: float) -> Tensor:
    """Poses (N, 3, T, V, M) in units of a random rectangle of the unit square, one a clip.

    The rectangle's area is uniform in [area, 1]. Its width over its height is log-uniform in [3/4, 4/3]. A longer side than the square's
    is cut.
    """
    n = poses.shape[0]
    share = area + (1 - area) * torch.rand(n, device=poses.device)
    ratio = torch.exp((2 * torch.rand(n, device=poses.device) - 1) * torch.log(torch.tensor(4 / 3)))
    if area == 1:
        ratio = torch.ones_like(ratio)
    extent = torch.stack([(share * ratio).sqrt(), (share / ratio).sqrt()], dim=1).clamp(max=1)
    return cropped(poses, (1 - extent) * torch.rand(n, 2, device=poses.device), extent)


def randomly_mirrored(poses: Tensor, mirror: Sequence[int], flip: float) -> Tensor:
    """Poses (N, 3, T, V, M) in the unit square, each clip mirrored with probability ``flip``."""
    turn = torch.rand(poses.shape[0], device=poses.device) < flip
    return torch.where(turn[:, None, None, None, None], mirrored(poses, mirror), poses)


# -- maps ----------------------------------------------------------------------------------------------------------------------------------


def joint_maps(poses: Tensor, size: int, sigma: float = 0.6) -> Tensor:
    """Draws joints: poses (N, 3, T, V, M) in the unit square -> (N, V, T, size, size), rows downwards.

    A joint is a Gaussian around it whose height is its confidence. It ends three standard deviations away along x and y. Where bodies
    overlap, the larger value counts. Centres of pixels are at (i + 1/2) / size.

    Args:
        poses: x, y and confidence, finite.
        size: Rows and columns.
        sigma: Standard deviation, pixels.
    """
    pixels = torch.arange(size, device=poses.device, dtype=poses.dtype) + 0.5
    maps = poses.new_zeros(poses.shape[0], poses.shape[3], poses.shape[2], size, size)
    for body in poses.unbind(dim=4):  # bodies are two; all at once would take twice the memory
        x, y, confidence = body.transpose(2, 3).unbind(dim=1)  # (N, V, T)
        across = _bell(pixels - size * x[..., None], sigma)
        down = _bell(pixels - size * y[..., None], sigma) * confidence[..., None]
        maps = torch.maximum(maps, down[..., :, None] * across[..., None, :])
    return maps


def limb_maps(poses: Tensor, bones: Sequence[tuple[int, int]], size: int, sigma: float = 0.6) -> Tensor:
    """Draws limbs: poses (N, 3, T, V, M) in the unit square -> (N, L, T, size, size), rows downwards.

    A limb is a Gaussian of the distance to the line between its two joints. Its height is the smaller of their confidences. It ends three
    standard deviations outside the box of the two joints. A limb shorter than a pixel is drawn as its first joint.

    Args:
        poses: x, y and confidence, finite.
        bones: L pairs of joints.
        size: Rows and columns.
        sigma: Standard deviation, pixels.
    """
    pixels = torch.arange(size, device=poses.device, dtype=poses.dtype) + 0.5
    ends = list(zip(*bones, strict=True))
    maps = poses.new_zeros(poses.shape[0], len(bones), poses.shape[2], size, size)
    for body in poses.unbind(dim=4):
        joints = body.transpose(2, 3)
        first, second = (joints.index_select(2, constant(joint, poses.device)) for joint in ends)  # (N, 3, L, T)
        confidence = torch.minimum(first[:, 2], second[:, 2])
        start, end = size * first[:, :2], size * second[:, :2]
        length = (end - start).square().sum(dim=1, keepdim=True)
        along = torch.where(length < 1, 0.0, end - start)  # zero for a short limb: it is its first joint
        near = [pixels - point[..., None] for point in start.unbind(dim=1)]  # x and y of pixels seen from the first joint
        (step_x, step_y), square = along.unbind(dim=1), length.squeeze(1).clamp(min=1)
        share = (near[1] * (step_y / square)[..., None])[..., :, None] + (near[0] * (step_x / square)[..., None])[..., None, :]
        share = share.clamp(0, 1)  # where on the limb a pixel's nearest point is
        away_x = near[0][..., None, :] - share * step_x[..., None, None]
        away_y = near[1][..., :, None] - share * step_y[..., None, None]
        drawn = torch.exp((away_x.square() + away_y.square()) / (-2 * sigma**2)) * confidence[..., None, None]
        inside = [
            (near_ >= step.clamp(max=0)[..., None] - CUT * sigma) & (near_ <= step.clamp(min=0)[..., None] + CUT * sigma)
            for near_, step in zip(near, (step_x, step_y), strict=True)
        ]
        maps = torch.maximum(maps, drawn * (inside[1][..., :, None] & inside[0][..., None, :]))
    return maps


def _bell(away: Tensor, sigma: float) -> Tensor:
    """exp(-away² / 2 sigma²), zero beyond the cut."""
    return torch.exp(away.square() / (-2 * sigma**2)) * (away.abs() <= CUT * sigma)
