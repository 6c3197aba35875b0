"""A reading of STC-Net's temporal unit (arXiv 2212.04761), whose code was never released. It is not known to equal the authors' unit.

Known is that every node is linked to its most related node of the next frame, that the links form curves through time, and that features
along a curve are aggregated. All else here is our choice: how relation is measured, the length of a curve, that curves also run backwards,
and that the curve is a fifth branch of CTR-GCN's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.layers import convolution
from vtlvlm.skeleton.temporal import MultiScale, Temporal


@dataclass(frozen=True)
class CurveTemporal(Temporal):
    """A branch along curves of a quarter of the width, beside CTR-GCN's four branches of three sixteenths each.

    Attributes:
        kernel: Frames of CTR-GCN's convolutions, odd.
        dilations: One branch each, in frames.
        length: Frames of a curve, odd; the frame itself is in the middle.
    """

    kernel: int = 5
    dilations: Sequence[int] = (1, 2)
    length: int = 5

    def __post_init__(self) -> None:
        if min(self.kernel, self.length) < 1 or self.kernel % 2 == 0 or self.length % 2 == 0:
            raise UsageError(f"temporal.kernel={self.kernel}, temporal.length={self.length}: both must be odd")

    def __call__(self, c_in: int, c_out: int, stride: int, first: bool = False) -> nn.Module:
        branches = len(self.dilations) + 2
        if c_out % (4 * branches):
            raise UsageError(
                f"a block of width {c_out} cannot be cut into a curve and {branches} branches: choose multiples of {4 * branches}"
            )
        others = c_out - c_out // 4
        scales = MultiScale(c_in, others, others // branches, self.kernel, tuple(self.dilations), stride, relu=False)
        return Curved(scales, CurveBranch(c_in, c_out // 4, self.length, stride))


class Curved(nn.Module):
    """The unit of :class:`CurveTemporal`."""

    def __init__(self, scales: nn.Module, curve: nn.Module) -> None:
        super().__init__()
        self.scales, self.curve = scales, curve

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', ceil(T / stride), V)."""
        return torch.cat([self.scales(x), self.curve(x)], 1)


class CurveBranch(nn.Module):
    """Features along the curve through a node, weighted by their place on it.

    The relation of joint u at frame t with joint v at frame t + 1 is the product of two linear maps of their features. Training draws the
    link by Gumbel's softmax, with the gradient of the softmax; evaluation takes the largest. A curve has no features before the first frame
    and after the last.
    """

    def __init__(self, c_in: int, c_out: int, length: int, stride: int) -> None:
        super().__init__()
        self.reach, self.stride = length // 2, stride
        width = max(1, c_in // 8)
        self.now, self.next = convolution(c_in, width), convolution(c_in, width)
        self.reduce = convolution(c_in, c_out)
        self.reduced = nn.BatchNorm2d(c_out)
        self.along = convolution(c_out * length, c_out)
        self.norm = nn.BatchNorm2d(c_out)

    def links(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, V) -> two of (B, T - 1, V, V), one-hot in the last: joint u at t to its joint of t + 1, and v at t + 1 to that of t."""
        now, later = self.now(x[:, :, :-1]).permute(0, 2, 3, 1), self.next(x[:, :, 1:]).permute(0, 2, 1, 3)
        related = now @ later * now.shape[-1] ** -0.5
        return self._chosen(related), self._chosen(related.transpose(2, 3))

    def _chosen(self, related: Tensor) -> Tensor:
        if self.training:
            return F.gumbel_softmax(related.float(), hard=True).to(related.dtype)
        return F.one_hot(related.argmax(-1), related.shape[-1]).to(related.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', ceil(T / stride), V)."""
        forwards, backwards = self.links(x)
        y = F.relu(self.reduced(self.reduce(x)))
        after = before = y.permute(0, 2, 3, 1)  # (B, T, V, C')
        places = [y]
        for _ in range(self.reach):
            after = F.pad(forwards @ after[:, 1:], (0, 0, 0, 0, 0, 1))
            before = F.pad(backwards @ before[:, :-1], (0, 0, 0, 0, 1, 0))
            places = [before.permute(0, 3, 1, 2), *places, after.permute(0, 3, 1, 2)]
        return self.norm(self.along(torch.cat(places, 1)[:, :, :: self.stride]))
