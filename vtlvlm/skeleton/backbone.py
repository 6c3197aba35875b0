"""The network of Table I's graph methods: normalised joints, then blocks of a spatial and a temporal unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.heads import TapShape
from vtlvlm.skeleton.layers import shortcut
from vtlvlm.skeleton.layouts import Layout
from vtlvlm.skeleton.spatial import Spatial
from vtlvlm.skeleton.temporal import Temporal

WIDTHS = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)
STRIDES = (1, 1, 1, 1, 2, 1, 1, 2, 1, 1)


class Embedding(ABC):
    """The settings of a network's first layer."""

    raw: bool
    """Whether the blocks read coordinates. The first block has no residual then."""

    @abstractmethod
    def __call__(self, joints: int, bodies: int, channels: int) -> nn.Module:
        """Makes the layer, (N, C, T, V, M) -> (N·M, C', T, V)."""

    @abstractmethod
    def width(self, channels: int) -> int:
        """C' for C channels."""


@dataclass(frozen=True)
class NormalisedJoints(Embedding):
    """Batch norm of every coordinate of every joint.

    Attributes:
        shared: Whether the bodies have one mean and scale together, as in ST-GCN, instead of one each.
    """

    shared: bool = False
    raw = True

    def __call__(self, joints: int, bodies: int, channels: int) -> nn.Module:
        return JointNorm(joints * channels * (1 if self.shared else bodies))

    def width(self, channels: int) -> int:
        return channels


@dataclass(frozen=True)
class EmbeddedJoints(Embedding):
    """InfoGCN's embedding: a linear layer, a learnt vector for each joint that starts as N(0, 1), and batch norm.

    Attributes:
        channels: C'.
    """

    channels: int = 64
    raw = False

    def __call__(self, joints: int, bodies: int, channels: int) -> nn.Module:
        return JointEmbedding(joints, bodies, channels, self.channels)

    def width(self, channels: int) -> int:
        return self.channels


class JointNorm(nn.Module):
    """Batch norm over clips and frames; ``features`` is M·V·C, or V·C if the bodies share it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, V, M) -> (N·M, C, T, V)."""
        clips, channels, frames, joints, bodies = x.shape
        flat = self.norm(x.permute(0, 4, 3, 1, 2).reshape(-1, self.norm.num_features, frames))
        return flat.view(clips * bodies, joints, channels, frames).permute(0, 2, 3, 1).contiguous()


class JointEmbedding(nn.Module):
    """The layer of :class:`EmbeddedJoints`."""

    def __init__(self, joints: int, bodies: int, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        self.position = nn.Parameter(torch.randn(joints, c_out))
        self.norm = JointNorm(bodies * joints * c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, V, M) -> (N·M, C', T, V)."""
        embedded = self.linear(x.permute(0, 2, 4, 3, 1)) + self.position  # (N, T, M, V, C')
        out: Tensor = self.norm(embedded.permute(0, 4, 1, 3, 2))
        return out


class Block(nn.Module):
    """ReLU(temporal(spatial(x)) + residual(x)), (B, C, T, V) -> (B, C', ceil(T / stride), V)."""

    def __init__(self, spatial: nn.Module, temporal: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.spatial, self.temporal, self.residual = spatial, temporal, residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.temporal(self.spatial(x))
        return F.relu(y if self.residual is None else y + self.residual(x))


class ClipNetwork(nn.Module, ABC):
    """A clip to features, which a head reads."""

    files: ClassVar[tuple[str, ...]] = ()
    """Settings that name files which only a new training reads"""

    @abstractmethod
    def shapes(self, frames: int) -> list[TapShape]:
        """Shapes of the blocks' features for clips of T frames in training."""

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """A batch of N clips -> features (N, M, C', T', V) of every block, the last block last."""

    def begin(self) -> None:
        """Load the weights that a new training starts from, if a setting names them."""


class Network(ClipNetwork):
    """Joints of a clip to features, which a head reads."""

    @abstractmethod
    def build(self, layout: Layout, bodies: int, channels: int = 3) -> None:
        """Makes the weights for V joints of M bodies with C coordinates. Idempotent."""

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Joints (N, C, T, V, M) -> features (N, M, C', T', V) of every block, the last block last."""


class SkeletonNet(Network):
    """Joints of a clip to features of every block. Its mean over frames, joints and bodies is the heads' affair.

    An absent body, all zeros, passes through the network like any other, as in the official code of all these methods.

    Args:
        embedding: The first layer.
        spatial: The spatial unit of every block.
        temporal: The temporal unit of every block.
        widths: C' of every block.
        strides: Of every block, in frames.
    """

    def __init__(
        self,
        embedding: Embedding,
        spatial: Spatial,
        temporal: Temporal,
        widths: Sequence[int] = WIDTHS,
        strides: Sequence[int] = STRIDES,
    ) -> None:
        super().__init__()
        if len(widths) != len(strides) or not widths or min(*widths, *strides) < 1:
            raise UsageError(
                f"network.widths has {len(widths)} blocks, network.strides {len(strides)}: give both one positive number for each block"
            )
        self.embedding, self.spatial, self.temporal = embedding, spatial, temporal
        self.widths, self.strides = tuple(widths), tuple(strides)
        self.embed: nn.Module | None = None
        self.blocks = nn.ModuleList()
        self.layout: Layout | None = None
        self.bodies = 0

    def build(self, layout: Layout, bodies: int, channels: int = 3) -> None:
        if self.embed is not None:
            return
        self.layout, self.bodies = layout, bodies
        self.embed = self.embedding(layout.num_joints, bodies, channels)
        width = self.embedding.width(channels)
        for number, (wider, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            first = number == 0
            residual = None if first and self.embedding.raw else shortcut(width, wider, stride)
            self.blocks.append(Block(self.spatial(layout, width, wider, first), self.temporal(wider, wider, stride, first), residual))
            width = wider

    def shapes(self, frames: int) -> list[TapShape]:
        assert self.layout is not None, "build() first"
        shapes = []
        for width, stride in zip(self.widths, self.strides, strict=True):
            frames = -(-frames // stride)
            shapes.append(TapShape(width, frames, self.layout.num_joints))
        return shapes

    def forward(self, x: Tensor) -> list[Tensor]:
        """Joints (N, C, T, V, M) -> features (N, M, C', T', V) of every block, the last block last.

        Raises:
            UsageError: The clips have other joints or another number of bodies than the network.
        """
        assert self.embed is not None, "build() first"
        assert self.layout is not None
        if x.shape[3:] != (self.layout.num_joints, self.bodies):
            raise UsageError(
                f"the clips have {x.shape[3]} joints and {x.shape[4]} bodies, the network has {self.layout.num_joints} "
                f"({self.layout.name}) and {self.bodies}: train a network for this layout"
            )
        y = self.embed(x)
        taps = []
        for block in self.blocks:
            y = block(y)
            taps.append(y.unflatten(0, (len(x), self.bodies)))
        return taps
