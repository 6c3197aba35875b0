"""Layers that the skeleton networks share, with the initial values of the official code of CTR-GCN, InfoGCN and HD-GCN."""

from __future__ import annotations

import math

from torch import nn


def convolution(
    c_in: int, c_out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1, parts: int = 1, bias: bool = True
) -> nn.Conv2d:
    """A convolution along time, (B, C, T, V) -> (B, C', ceil(T / stride), V). It starts as He et al.'s normal distribution for the number
    of outputs, with a bias of zero.

    Args:
        c_in: C.
        c_out: C'.
        kernel: Frames, odd.
        stride: Frames.
        dilation: Frames.
        groups: Of channels.
        parts: Number of equal layers that are computed as this one: each starts as if it were alone.
        bias: Whether there is one.
    """
    padding = (kernel - 1) * dilation // 2
    layer = nn.Conv2d(c_in, c_out, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1), groups, bias)
    nn.init.normal_(layer.weight, 0, math.sqrt(2 / (c_out // parts * kernel)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def shortcut(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    """The residual of a block: the identity, or a pointwise convolution and batch norm where the shape changes."""
    if c_in == c_out and stride == 1:
        return nn.Identity()
    return nn.Sequential(convolution(c_in, c_out, stride=stride), nn.BatchNorm2d(c_out))


def faint_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm whose scale starts at 1e-6: at first, the unit is its residual."""
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, 1e-6)
    return norm
