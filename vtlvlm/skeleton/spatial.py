"""Spatial units: features mixed over the joints of a frame, (B, C, T, V) -> (B, C', T, V). B = N·M clips and bodies."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.graph import dilated_partition, partition, stgcn_partition
from vtlvlm.skeleton.layers import convolution, faint_norm, shortcut
from vtlvlm.skeleton.layouts import Layout


class Spatial(ABC):
    """The settings of a network's spatial units."""

    @abstractmethod
    def __call__(self, layout: Layout, c_in: int, c_out: int, first: bool = False) -> nn.Module:
        """Makes the unit of one block.

        Args:
            layout: The V joints.
            c_in: C.
            c_out: C'.
            first: Whether the block is the network's first.
        """


# -- ST-GCN --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FixedGraph(Spatial):
    """ST-GCN's unit (arXiv 1801.07455): a pointwise convolution for each of three subsets, mixed by the graph times a learnt importance
    of every edge."""

    def __call__(self, layout: Layout, c_in: int, c_out: int, first: bool = False) -> nn.Module:
        return WeightedEdges(stgcn_partition(layout), c_in, c_out)


class WeightedEdges(nn.Module):
    """The unit of :class:`FixedGraph`. It ends without batch norm, residual and ReLU."""

    edges: Tensor

    def __init__(self, edges: Tensor, c_in: int, c_out: int) -> None:
        super().__init__()
        self.register_buffer("edges", edges, persistent=False)
        self.importance = nn.Parameter(torch.ones_like(edges))
        self.values = convolution(c_in, c_out * len(edges), parts=len(edges))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T, V)."""
        return mix(self.edges * self.importance, self.values(x).unflatten(1, (len(self.edges), -1)))


def mix(edges: Tensor, values: Tensor) -> Tensor:
    """The sum over subsets of values mixed by their edges.

    Args:
        edges: (K, V, V): what joint u takes from joint v.
        values: (B, K, C, T, V).

    Returns:
        (B, C, T, V).
    """
    joined = values.transpose(1, 3).flatten(3)  # (B, T, C, K·V)
    return (joined @ edges.transpose(1, 2).flatten(0, 1)).transpose(1, 2)


# -- CTR-GCN -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RefinedTopology(Spatial):
    """CTR-GC (arXiv 2107.12213): three learnt graphs, refined for every clip and channel by differences between joints.

    FR-Head, Koopman and GAP use it too. The differences have C / 8 channels, or 8 where C is less than 16.
    """

    def __call__(self, layout: Layout, c_in: int, c_out: int, first: bool = False) -> nn.Module:
        return Refined(partition(layout), c_in, c_out, 8 if c_in < 16 else c_in // 8)


class Refined(nn.Module):
    """The unit of :class:`RefinedTopology`.

    For subset k, with phi and psi pointwise convolutions to R channels, averaged over time: topology[c, u, v] = A_k[u, v] + alpha times a
    pointwise convolution of tanh(phi_u - psi_v) to C'. alpha starts at zero, so that the unit starts as a fixed graph. The three subsets
    are computed as one; the average over time comes before phi and psi, which are linear.
    """

    def __init__(self, edges: Tensor, c_in: int, c_out: int, width: int) -> None:
        super().__init__()
        subsets = len(edges)
        self.edges = nn.Parameter(edges)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.phi = convolution(c_in, subsets * width, parts=subsets)
        self.psi = convolution(c_in, subsets * width, parts=subsets)
        self.refine = convolution(subsets * width, subsets * c_out, groups=subsets, parts=subsets)
        self.values = convolution(c_in, subsets * c_out, parts=subsets)
        self.norm = faint_norm(c_out)
        self.residual = shortcut(c_in, c_out)

    def topology(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, K, C', V, V): what joint u takes from joint v, for each clip, subset and channel."""
        mean = x.mean(2, keepdim=True)
        difference = torch.tanh(self.phi(mean).transpose(2, 3) - self.psi(mean))  # (B, K·R, V, V)
        assert self.refine.bias is not None
        weight, bias = self.alpha * self.refine.weight, self.alpha * self.refine.bias  # fewer products than alpha times the result
        return F.conv2d(difference, weight, bias, groups=len(self.edges)).unflatten(1, (len(self.edges), -1)) + self.edges[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T, V)."""
        edges = self.topology(x).permute(0, 2, 1, 4, 3).flatten(2, 3)  # (B, C', K·V, V): from, to
        values = self.values(x).unflatten(1, (len(self.edges), -1)).permute(0, 2, 3, 1, 4).flatten(3)  # (B, C', T, K·V)
        return F.relu(self.norm(values @ edges) + self.residual(x))


# -- Shift-GCN -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShiftGraph(Spatial):
    """Shift-GCN's non-local unit (CVPR 2020): channel c of joint i comes from joint i + c, is mixed over channels, and goes back."""

    def __call__(self, layout: Layout, c_in: int, c_out: int, first: bool = False) -> nn.Module:
        return JointShift(layout.num_joints, c_in, c_out)


class JointShift(nn.Module):
    """The unit of :class:`ShiftGraph`. Batch norm has a mean and a scale for every joint and channel; the joints are counted modulo V."""

    there: Tensor
    back: Tensor

    def __init__(self, joints: int, c_in: int, c_out: int) -> None:
        super().__init__()
        self.c_out = c_out
        self.mask = nn.Parameter(torch.zeros(c_in, joints))
        self.pointwise = nn.Conv1d(c_in, c_out, 1)
        nn.init.normal_(self.pointwise.weight, 0, math.sqrt(1 / c_out))
        nn.init.zeros_(self.pointwise.bias)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm1d(c_out * joints)
        self.residual = shortcut(c_in, c_out)
        self.register_buffer("there", _shifted(joints, c_in, 1), persistent=False)
        self.register_buffer("back", _shifted(joints, c_out, -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T, V)."""
        clips, channels, frames, joints = x.shape
        y = x.transpose(2, 3).reshape(clips, channels * joints, frames)[:, self.there]
        y = y.view(clips, channels, joints, frames) * (torch.tanh(self.mask) + 1)[:, :, None]
        y = self.pointwise(y.flatten(2)).view(clips, self.c_out * joints, frames)
        y = self.norm(y[:, self.back]).view(clips, self.c_out, joints, frames).transpose(2, 3)
        return F.relu(y + self.residual(x))


def _shifted(joints: int, channels: int, sign: int) -> Tensor:
    """(C·V,) int64: for channel c and joint i, the place of channel c and joint i + sign·c modulo V."""
    channel = torch.arange(channels)[:, None]
    return (channel * joints + (torch.arange(joints) + sign * channel) % joints).flatten()


# -- InfoGCN -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionTopology(Spatial):
    """InfoGCN's SA-GC (CVPR 2022): self-attention between the joints of a frame, times a learnt graph that all frames share.

    Attributes:
        heads: Attention heads, each with its graph, and queries and keys of width C / 8.
    """

    heads: int = 3

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise UsageError(f"spatial.heads={self.heads}: must be at least 1")

    def __call__(self, layout: Layout, c_in: int, c_out: int, first: bool = False) -> nn.Module:
        return AttentiveJoints(layout.num_joints, c_in, c_out, self.heads, max(1, c_in // 8))


class AttentiveJoints(nn.Module):
    """The unit of :class:`AttentionTopology`. The graphs start as the identity, the queries' and keys' weights as N(0, 1)."""

    def __init__(self, joints: int, c_in: int, c_out: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.topology = nn.Parameter(torch.eye(joints).repeat(heads, 1, 1))
        self.input_norm = nn.LayerNorm(c_in)
        self.queries_keys = nn.Linear(c_in, 2 * heads * width)
        nn.init.normal_(self.queries_keys.weight)
        self.weight = nn.Parameter(torch.randn(c_out, heads * c_in) * math.sqrt(2 / (c_out * c_in * heads)))
        self.bias = nn.Parameter(torch.zeros(heads, c_out))
        self.norm = faint_norm(c_out)
        self.residual = shortcut(c_in, c_out)

    def attention(self, frames: Tensor) -> Tensor:
        """(B, T, V, C) -> (B, T, H, V, V) float32: the share that joint u gives to joint v; sums to one over v."""
        both = self.queries_keys(self.input_norm(frames)).unflatten(-1, (2, self.heads, self.width))
        queries, keys = both.permute(3, 0, 1, 4, 2, 5)  # each (B, T, H, V, R)
        return (queries @ keys.transpose(-1, -2) * self.width**-0.5).softmax(-1, torch.promote_types(queries.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T, V)."""
        frames = x.permute(0, 2, 3, 1)
        edges = (self.attention(frames) * self.topology).flatten(2, 3)  # (B, T, H·V, V)
        mixed = (edges @ frames).unflatten(2, (self.heads, -1)).transpose(2, 3).flatten(3)  # (B, T, V, H·C)
        y = F.linear(mixed, self.weight, self.bias.sum(0)).permute(0, 3, 1, 2)
        return F.relu(self.norm(y) + self.residual(x))


# -- STC-Net, reconstructed ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DilatedGraph(Spatial):
    """A reading of STC-Net's DK-GC (arXiv 2212.04761), whose code was never released. It is not known to equal the authors' unit.

    Known is that the subsets of the graph reach joints several bones away, with several dilations side by side. Here, branch d of equal
    width has CTR-GCN's three subsets with ancestors and descendants of exactly d bones. The graphs are learnt.

    Attributes:
        dilations: Number of branches; branch d reaches d bones.
    """

    dilations: int = 4

    def __post_init__(self) -> None:
        if self.dilations < 1:
            raise UsageError(f"spatial.dilations={self.dilations}: must be at least 1")

    def __call__(self, layout: Layout, c_in: int, c_out: int, first: bool = False) -> nn.Module:
        if c_out % self.dilations:
            raise UsageError(f"a block of width {c_out} cannot be cut into {self.dilations} dilations: choose multiples of it")
        return Dilated(torch.stack([dilated_partition(layout, d + 1) for d in range(self.dilations)]), c_in, c_out)


class Dilated(nn.Module):
    """The unit of :class:`DilatedGraph`."""

    def __init__(self, edges: Tensor, c_in: int, c_out: int) -> None:
        super().__init__()
        self.edges = nn.Parameter(edges)  # (D, K, V, V)
        branches, subsets = edges.shape[:2]
        self.values = convolution(c_in, subsets * c_out, parts=subsets * branches)
        self.norm = faint_norm(c_out)
        self.residual = shortcut(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T, V)."""
        values = self.values(x).unflatten(1, (*self.edges.shape[:2], -1))
        y = torch.cat([mix(edges, values[:, number]) for number, edges in enumerate(self.edges)], 1)
        return F.relu(self.norm(y) + self.residual(x))
