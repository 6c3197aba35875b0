"""Temporal units: features of a joint mixed over frames, (B, C, T, V) -> (B, C', ceil(T / stride), V). B = N·M clips and bodies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layers import convolution


class Temporal(ABC):
    """The settings of a network's temporal units."""

    @abstractmethod
    def __call__(self, c_in: int, c_out: int, stride: int, first: bool = False) -> nn.Module:
        """Makes the unit of one block.

        Args:
            c_in: C.
            c_out: C'.
            stride: In frames.
            first: Whether the block is the network's first.
        """


@dataclass(frozen=True)
class PlainTemporal(Temporal):
    """ST-GCN's unit (arXiv 1801.07455): batch norm, ReLU, one convolution over time, batch norm, dropout.

    Attributes:
        kernel: Frames of the convolution, odd.
        dropout: Share of the entries that training sets to zero; the first block has none.
    """

    kernel: int = 9
    dropout: float = 0.5

    def __post_init__(self) -> None:
        _require_odd(self.kernel)

    def __call__(self, c_in: int, c_out: int, stride: int, first: bool = False) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.ReLU(),
            convolution(c_in, c_out, self.kernel, stride),
            nn.BatchNorm2d(c_out),
            nn.Dropout(0.0 if first else self.dropout),
        )


@dataclass(frozen=True)
class MultiScaleTemporal(Temporal):
    """CTR-GCN's unit (arXiv 2107.12213): branches of equal width side by side.

    One branch for each dilation, one with a maximum over three frames, one pointwise. All but the last reduce the width first.

    Attributes:
        kernel: Frames of the convolutions, odd.
        dilations: One branch each, in frames.
        relu: Whether a ReLU follows, as in InfoGCN.
    """

    kernel: int = 5
    dilations: Sequence[int] = (1, 2)
    relu: bool = False

    def __post_init__(self) -> None:
        _require_odd(self.kernel)

    def __call__(self, c_in: int, c_out: int, stride: int, first: bool = False) -> nn.Module:
        branches = len(self.dilations) + 2
        if c_out % branches:
            raise UsageError(f"a block of width {c_out} cannot be cut into {branches} branches: choose multiples of {branches}")
        return MultiScale(c_in, c_out, c_out // branches, self.kernel, tuple(self.dilations), stride, self.relu)


class MultiScale(nn.Module):
    """The unit of :class:`MultiScaleTemporal`.

    The pointwise convolutions that reduce the width are one layer, and so are the last batch norms of all branches: the same numbers as
    branch by branch.
    """

    def __init__(self, c_in: int, c_out: int, width: int, kernel: int, dilations: Sequence[int], stride: int, relu: bool) -> None:
        super().__init__()
        branches = len(dilations) + 1
        self.width, self.stride, self.relu = width, stride, relu
        self.reduce = convolution(c_in, width * branches, parts=branches)
        self.reduced = nn.BatchNorm2d(width * branches)
        self.dilated = nn.ModuleList(convolution(width, width, kernel, stride, dilation) for dilation in dilations)
        self.pointwise = convolution(c_in, width, stride=stride)
        self.norm = nn.BatchNorm2d(c_out)
        for norm in (self.reduced, self.norm):
            nn.init.normal_(norm.weight, 1, 0.02)

    def branches(self, x: Tensor) -> list[Tensor]:
        """(B, C, T, V) -> the branches' features before the last batch norm, each (B, width, T', V)."""
        *before, last = F.relu(self.reduced(self.reduce(x))).split(self.width, 1)
        convolved = [layer(part) for layer, part in zip(self.dilated, before, strict=True)]
        return [*convolved, F.max_pool2d(last, (3, 1), (self.stride, 1), (1, 0)), self.pointwise(x)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', ceil(T / stride), V)."""
        y: Tensor = self.norm(torch.cat(self.branches(x), 1))
        return F.relu(y) if self.relu else y


@dataclass(frozen=True)
class ShiftTemporal(Temporal):
    """Shift-GCN's adaptive unit (CVPR 2020): batch norm, shift, pointwise convolution, ReLU, shift, batch norm.

    A shift moves each channel along time by a learnt number of frames. The stride is the second shift's.
    """

    def __call__(self, c_in: int, c_out: int, stride: int, first: bool = False) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm2d(c_in), Shift(c_in), convolution(c_in, c_out), nn.ReLU(), Shift(c_out, stride), nn.BatchNorm2d(c_out)
        )


class Shift(nn.Module):
    """Channel c at frame t becomes its value at frame ``stride·t + p_c``, between two frames their linear mixture, and zero outside.

    A stride of 2 reads half a frame later. The positions p start uniform in [-1, 1). As in the official code, a position's gradient is
    0.01 with the sign of the true one: an optimiser moves all channels alike, however large their features.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.positions = nn.Parameter(torch.empty(channels).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C, ceil(T / stride), V)."""
        position = _SignOfGradient.apply(self.positions) + (0.5 if self.stride > 1 else 0.0)
        start = position.detach().floor()
        share = (position - start)[:, None, None].to(x.dtype)  # of the later frame
        earlier = start.long()[:, None] + self.stride * torch.arange(-(-x.shape[2] // self.stride), device=x.device)
        return torch.lerp(_at(x, earlier), _at(x, earlier + 1), share)


def _at(x: Tensor, frames: Tensor) -> Tensor:
    """(B, C, T, V) at frames (C, T') int64 of its channels -> (B, C, T', V); zero outside [0, T)."""
    inside = (frames >= 0) & (frames < x.shape[2])
    index = frames.clamp(0, x.shape[2] - 1)[None, :, :, None].expand(len(x), -1, -1, x.shape[3])
    return x.gather(2, index) * inside[:, :, None]


class _SignOfGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 0.01 * gradient.sign()


def _require_odd(kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise UsageError(f"temporal.kernel={kernel}: must be odd, so that a frame is in the middle")
