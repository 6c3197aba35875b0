"""PoseC3D's network (arXiv 2104.13586): SlowOnly, a ResNet of 3D convolutions over heat maps whose first stages do not mix frames.

It is the light form of the official code: 2,024,860 parameters with 17 joints and a linear layer for 60 actions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import Network
from vtlvlm.skeleton.heads import TapShape
from vtlvlm.skeleton.heatmaps import HeatMaps
from vtlvlm.skeleton.layouts import Layout

EXPANSION = 4
"""Channels of a block's output over those inside"""
SPATIAL, TEMPORAL = (2, 2, 2), (1, 1, 2)
"""Strides of the first block of each stage"""
MIXES_FRAMES = (False, True, True)
"""Whether the first convolution of the blocks of a stage spans three frames"""


class PoseC3D(Network):
    """Poses of a clip to features of the stages of :class:`SlowOnly`, through heat maps.

    Args:
        maps: The heat maps.
        width: Channels after the first convolution.
        blocks: Number of bottleneck blocks in each of the three stages.

    Raises:
        UsageError: A setting is out of range.
    """

    def __init__(self, maps: HeatMaps, width: int = 32, blocks: Sequence[int] = (4, 6, 3)) -> None:
        super().__init__()
        if width < 1:
            raise UsageError(f"network.width={width}: use at least 1")
        if len(blocks) != len(SPATIAL) or min(blocks) < 1:
            raise UsageError(f"network.blocks={list(blocks)}: give three numbers of at least 1")
        self.maps = maps
        self.width = width
        self.blocks = tuple(blocks)
        self.cnn: SlowOnly | None = None

    def build(self, layout: Layout, bodies: int, channels: int = 3) -> None:
        """Makes the weights for V joints of any number of bodies. Idempotent."""
        number = self.maps.build(layout)
        if self.cnn is None:
            self.cnn = SlowOnly(number, self.width, self.blocks)

    def shapes(self, frames: int) -> list[TapShape]:
        """Shapes of the stages' features for clips of T frames in training. Cells of the maps take the place of joints."""
        found, size = [], self.maps.size
        for stage in range(len(self.blocks)):
            frames, size = -(-frames // TEMPORAL[stage]), -(-size // SPATIAL[stage])
            found.append(TapShape(EXPANSION * self.width * 2**stage, frames, size**2))
        return found

    def forward(self, x: Tensor) -> list[Tensor]:
        """Poses, or joints in metres, (N, 3, T, V, M) -> features (N, 1, C', T', H'·W') of every stage, the last one last."""
        assert self.cnn is not None, "build() first"
        taps: list[Tensor] = self.cnn(self.maps(x))
        return taps


class SlowOnly(nn.Module):
    """Heat maps (N, K, T, H, W) -> features of the three stages.

    A stage ends at half the size in rows and columns; the last one also at half the frames. Its channels are 4, 8 and 16 times the width.
    The last batch norm of each block starts with the weight 0, as in the official code, so that blocks start as identities.

    Args:
        channels: K, the number of joints or limbs.
        width: Channels after the first convolution.
        blocks: Number of bottleneck blocks in each of the three stages.
    """

    def __init__(self, channels: int, width: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, (1, 7, 7), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), stride=1, padding=(0, 1, 1)),
        )
        stages, inside = [], width
        for stage, number in enumerate(blocks):
            stride, mixes = (TEMPORAL[stage], SPATIAL[stage], SPATIAL[stage]), MIXES_FRAMES[stage]
            before, after = inside, EXPANSION * width * 2**stage
            first = Bottleneck(before, after, stride, mixes)
            stages.append(nn.Sequential(first, *(Bottleneck(after, after, (1, 1, 1), mixes) for _ in range(number - 1))))
            inside = after
        self.stages = nn.ModuleList(stages)
        self.apply(_start)

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Heat maps (N, K, T, H, W) -> features of each stage (N, 1, C', T', H'·W'), as a skeleton network's (N, M, C, T, V).

        Bodies share the maps, so that M is 1; the H'·W' cells of a map take the place of the joints.
        """
        x, taps = self.stem(maps), []
        for stage in self.stages:
            x = stage(x)
            taps.append(x.flatten(3)[:, None])
        return taps


class Bottleneck(nn.Module):
    """Residual block: 1x1x1 or 3x1x1 convolution to a quarter of the channels, 1x3x3, and 1x1x1 back.

    Args:
        before: Channels of the input.
        after: Channels of the output, a multiple of 4.
        stride: Of the 1x3x3 convolution, for frames, rows and columns.
        mixes: The first convolution spans three frames.
    """

    def __init__(self, before: int, after: int, stride: tuple[int, int, int], mixes: bool) -> None:
        super().__init__()
        inside, span = after // EXPANSION, 3 if mixes else 1
        self.reduce = _convolution(before, inside, (span, 1, 1))
        self.spread = _convolution(inside, inside, (1, 3, 3), stride)
        last = nn.BatchNorm3d(after)
        nn.init.zeros_(last.weight)
        self.expand = nn.Sequential(nn.Conv3d(inside, after, 1, bias=False), last)
        same = before == after and stride == (1, 1, 1)
        self.shortcut = nn.Identity() if same else _convolution(before, after, (1, 1, 1), stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, C', T', H', W')."""
        inner = self.spread(self.reduce(x).relu()).relu()
        found: Tensor = (self.expand(inner) + self.shortcut(x)).relu()
        return found


def _convolution(before: int, after: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(nn.Conv3d(before, after, kernel, stride, padding, bias=False), nn.BatchNorm3d(after))


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
