"""Masks of causal sequences, by attention kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vtlvlm.lvlm.prefix import has_kernel

MASKED = ("sdpa", "eager")
"""Attention kernels of transformers that take a mask of four dimensions"""


def causal_mask(model: LlavaForConditionalGeneration, length: int, device: torch.device) -> Tensor | None:
    """The mask with which a sequence is causal. Without one, transformers waits for the device to look for packed sequences.

    Returns:
        (1, 1, 0, length) for our kernel, (1, 1, length, length) additive for ``eager``, None for kernels that take no mask.
    """
    kernel, dtype = model.model.language_model.config._attn_implementation, model.get_input_embeddings().weight.dtype
    if has_kernel(model):
        return torch.empty(1, 1, 0, length, dtype=dtype, device=device)
    if kernel not in MASKED:
        return None
    return torch.full((1, 1, length, length), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1)
