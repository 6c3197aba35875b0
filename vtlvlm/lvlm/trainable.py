"""The trained parameters of a model: their type and their number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class TrainableCount(NamedTuple):
    """Number of trained parameters of a group; ``str`` gives one line."""

    group: str
    trained: int
    total: int
    """Parameters of the whole model: language model, projector and adapter"""

    def __str__(self) -> str:
        return f"{self.group}: {self.trained:,} of {self.total:,} parameters trained ({self.trained / max(1, self.total):.4%})"


def keep_float32(module: nn.Module) -> None:
    """Keep trained weights in float32: 16 bits lose small steps."""
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def size(parameter: nn.Parameter) -> int:
    """Number of values of a parameter; 4-bit parameters pack two in a byte."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else packed.shape.numel()
