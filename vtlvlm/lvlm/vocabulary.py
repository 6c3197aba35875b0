"""Log-probabilities of chosen tokens from the vocabulary head, in float32 and without all logits in memory at once (eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF = (torch.bfloat16, torch.float16)
WORDS, WORDS_CUDA = 1_024, 8_192
"""Vocabulary entries whose logits are computed at a time: on a CPU they fit into its cache, on a GPU into a few launches"""
SCALE = 1_024.0
"""Power of two that keeps small probabilities above float16's smallest numbers"""
SMALLEST = 1e-30
"""The least that gradients are divided by: all may be zero"""


def token_log_probabilities(hidden: Tensor, weight: Tensor, slots: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of chosen tokens, without all logits of all positions in memory at once.

    Computed in float32: with logits rounded to 16 bits, the sum over a label is wrong by tenths. The backward pass computes the logits
    again, block by block.

    On a GPU, hidden states and head in the same 16-bit type are multiplied by the tensor cores, which sum in float32: no bit of either is
    lost. The backward pass splits its float32 factors into two 16-bit numbers there.

    Args:
        hidden: (B, S, L) the last layer's output.
        weight: (V, L) the vocabulary head.
        slots: (F,) int64 in [0, S), the position that predicts each token.
        targets: (F,) int64 in [0, V), the tokens.

    Returns:
        (B, F) float32, natural logarithm.
    """
    halves = hidden.is_cuda and hidden.dtype == weight.dtype and hidden.dtype in HALF
    with _without_autocast(hidden.device):
        hidden = hidden.float()
        total: Tensor = LogMass.apply(hidden.flatten(0, 1), weight, halves).view(hidden.shape[:2])
        logits = torch.einsum("bfl,fl->bf", hidden[:, slots], weight[targets].float())
        return logits - total[:, slots]


class LogMass(torch.autograd.Function):
    """log Σ exp logit over the vocabulary, with gradients for the hidden states and for the head where it is trained.

    Args of ``apply``:
        hidden: (N, L) float32.
        weight: (V, L) the vocabulary head.
        halves: Both come from the head's 16-bit type, and are multiplied in it.

    Returns of ``apply``:
        (N,) in the type of ``hidden``.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, halves: bool) -> Tensor:
        factor = hidden.to(weight.dtype) if halves else hidden
        blocks = [_product(factor, words.T).logsumexp(-1) for _, words in _blocks(weight, factor.dtype)]
        total = torch.stack(blocks, -1).logsumexp(-1)
        ctx.save_for_backward(hidden, weight, total)
        ctx.halves = halves
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, total = ctx.saved_tensors
        factor = hidden.to(weight.dtype) if ctx.halves else hidden
        to_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        unit = grad.abs().amax().clamp_min(SMALLEST) / SCALE if ctx.halves else torch.ones_like(grad[:1])
        share = (grad / unit)[:, None]
        with _without_autocast(hidden.device):
            for start, words in _blocks(weight, factor.dtype):
                slopes = _product(factor, words.T).sub_(total[:, None]).exp_().mul_(share)  # of the loss, by logit
                parts = _split(slopes, factor.dtype) if ctx.halves else (slopes,)
                for part in parts:
                    if to_hidden is not None:
                        to_hidden += _product(part, words)
                if to_weight is not None:
                    to_weight[start : start + len(words)] = torch.stack([_product(part.T, factor) for part in parts]).sum(0) * unit
        return None if to_hidden is None else to_hidden * unit, to_weight, None


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context without autocast; the meta device has none."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def _blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Blocks of the head (v, L) in a type, with the number of their first word."""
    size = WORDS_CUDA if weight.is_cuda else WORDS
    for start in range(0, len(weight), size):
        yield start, weight[start : start + size].to(dtype)


def _split(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two 16-bit tensors whose sum is the float32 values, but for twice the 16-bit type's precision."""
    high = values.to(dtype)
    return high, (values - high).to(dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product with float32 sums (in float64 for float64). A CPU has no 16-bit product with such sums, and converts first."""
    if left.dtype not in HALF:
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()
