"""The process group of a training, as the losses and the codebook see it: the clips of a batch are dealt to its processes in turn."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


def group_size() -> int:
    """Number of processes of the group; 1 without one."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def group_rank() -> int:
    """Number of this process in the group; 0 without one."""
    return torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0


def gather_clips(column: Tensor) -> Tensor:
    """Rows (B, ...) of every process -> (B·processes, ...) in the order in which the clips were dealt. Gradients flow to every process."""
    found: Tensor = _Gather.apply(column.contiguous())
    return found.transpose(0, 1).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """Stacks a tensor of equal shapes over processes. The gradient is the sum over processes."""

    @staticmethod
    def forward(ctx: Any, column: Tensor) -> Tensor:
        parts = [torch.empty_like(column) for _ in range(group_size())]
        torch.distributed.all_gather(parts, column)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[group_rank()]
