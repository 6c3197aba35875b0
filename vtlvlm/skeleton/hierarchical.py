"""HD-GCN's spatial unit (arXiv 2208.10741): joints mixed along a hierarchy of edge sets, and attention over the sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.graph import hierarchy, levels
from vtlvlm.skeleton.layers import convolution, faint_norm, shortcut
from vtlvlm.skeleton.layouts import Layout
from vtlvlm.skeleton.spatial import Spatial


@dataclass(frozen=True)
class HierarchicalGraph(Spatial):
    """HD-GCN's unit. The network's first block adds the edge sets without attention.

    Attributes:
        root: Name of the joint that the hierarchy hangs on; the paper's ensemble takes NTU's spine_base, spine_mid and spine_shoulder.
        neighbours: Number of joints with the nearest features, itself included, that the fourth branch compares a joint with.
    """

    root: str = "spine_mid"
    neighbours: int = 5

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise UsageError(f"spatial.neighbours={self.neighbours}: must be at least 1")

    def __call__(self, layout: Layout, c_in: int, c_out: int, first: bool = False) -> nn.Module:
        if c_out % 4:
            raise UsageError(f"a block of width {c_out} cannot be cut into 4 branches: choose multiples of 4")
        root = layout.index(self.root)
        attention = None if first else SetAttention(levels(layout, root), layout.num_joints, c_out)
        return EdgeSets(hierarchy(layout, root), c_in, c_out, self.neighbours, attention)


class EdgeSets(nn.Module):
    """The unit of :class:`HierarchicalGraph`: for each of L edge sets, three branches that mix joints by its subsets and one that compares
    joints with similar features, side by side; then the weighted sum over the sets.

    The sets are computed as one, by grouped convolutions.
    """

    def __init__(self, edges: Tensor, c_in: int, c_out: int, neighbours: int, attention: SetAttention | None) -> None:
        super().__init__()
        self.edges = nn.Parameter(edges)  # (L, 3, V, V)
        sets, subsets = edges.shape[:2]
        width = c_out // (subsets + 1)
        self.reduce = convolution(c_in, sets * width, parts=sets)
        self.reduced = nn.BatchNorm2d(sets * width)
        branches = sets * subsets
        self.mixed = convolution(branches * width, branches * width, groups=branches, parts=branches)
        self.mixed_norm = nn.BatchNorm2d(branches * width)
        self.similar = EdgeConvolution(width, sets, neighbours)
        self.attention = attention
        self.norm = faint_norm(c_out)
        self.residual = shortcut(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T, V)."""
        sets = len(self.edges)
        reduced = F.relu(self.reduced(self.reduce(x))).unflatten(1, (sets, -1))  # (B, L, C'/4, T, V)
        mixed = torch.einsum("blctv,lkuv->blkctu", reduced, self.edges)
        mixed = self.mixed_norm(self.mixed(mixed.flatten(1, 3))).unflatten(1, (sets, -1))
        still = self.similar(reduced.mean(3))  # (B, L, C'/4, V), the same in all frames
        if self.attention is not None:
            share = self.attention(torch.cat([mixed.max(3).values, still], 2))
            mixed, still = mixed * share[:, :, : mixed.shape[2], None, None], still * share[:, :, mixed.shape[2] :, None]
        y = torch.cat([mixed.sum(1), still.sum(1)[:, :, None].expand(-1, -1, x.shape[2], -1)], 1)
        return F.relu(self.norm(y) + self.residual(x))


class EdgeConvolution(nn.Module):
    """EdgeConv (arXiv 1801.07829) on L sets of nodes apart: each node compares itself with the K nodes of the nearest features.

    A pointwise convolution of [x_j - x_i, x_i], batch norm, leaky ReLU, and the maximum over the nodes j.
    """

    def __init__(self, channels: int, sets: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.compare = convolution(2 * channels * sets, channels * sets, groups=sets, parts=sets, bias=False)
        self.norm = nn.BatchNorm2d(channels * sets)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C, V) -> (B, L, C, V)."""
        near = nearest(x, min(self.neighbours, x.shape[3]))  # (B, L, V, K)
        others = x[..., None, :].expand(-1, -1, -1, x.shape[3], -1).gather(4, near[:, :, None].expand(-1, -1, x.shape[2], -1, -1))
        pairs = torch.cat([others - x[..., None], x[..., None].expand_as(others)], 2)  # (B, L, 2C, V, K)
        y = F.leaky_relu(self.norm(self.compare(pairs.flatten(1, 2))), 0.2)
        return y.max(3).values.unflatten(1, (x.shape[1], -1))


def nearest(x: Tensor, count: int) -> Tensor:
    """(B, L, C, V) -> (B, L, V, K) int64: the K nodes whose features are nearest to a node's, itself included; float32 also under
    autocast."""
    with torch.autocast(x.device.type, enabled=False):
        nodes = x.detach().transpose(2, 3)
        nodes = nodes if nodes.dtype == torch.float64 else nodes.float()
        squares = nodes.square().sum(-1)
        return (2 * nodes @ nodes.transpose(2, 3) - squares[..., None, :]).topk(count, -1).indices


class SetAttention(nn.Module):
    """A-HA: one share in (0, 1) for each edge set and channel, from the maximum over frames of the set's features."""

    members: Tensor

    def __init__(self, steps: Sequence[Sequence[int]], joints: int, channels: int) -> None:
        super().__init__()
        members = torch.zeros(len(steps) - 1, joints)
        for number, row in enumerate(members):
            row[[*steps[number], *steps[number + 1]]] = 1 / len((*steps[number], *steps[number + 1]))
        self.register_buffer("members", members, persistent=False)
        self.reduce = convolution(channels, channels // 4)
        self.reduced = nn.BatchNorm2d(channels // 4)
        self.similar = EdgeConvolution(channels // 4, 1, 3)
        self.expand = nn.Conv1d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C, V) -> (B, L, C)."""
        reduced = F.relu(self.reduced(self.reduce(x.transpose(1, 2))))  # (B, C/4, L, V)
        sets = (reduced * self.members).sum(3)
        return torch.sigmoid(self.expand(self.similar(sets[:, None])[:, 0])).transpose(1, 2)
