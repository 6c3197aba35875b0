"""Our attention kernel: transformers' scaled dot-product attention, for a context with deep prompts before it and a label tree behind it.

Context rows are causal and tree rows have a mask of their own. As one mask over everything, the context would lose the causal kernel, which
looks at half of the pairs, and most of the mask would be known to be empty.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

KERNEL = "vtlvlm_sdpa"


class LayerStates(NamedTuple):
    """What one layer knows of a context."""

    key: Tensor
    """(B, KV heads, P + C, head width), rotated, the prompt first"""
    value: Tensor
    """(B, KV heads, P + C, head width)"""
    hidden: Tensor | None
    """(B, 1, 1, P) bool, prompt tokens that dropout hides from a clip; None: all are seen"""


class ContextStates(dict[int, LayerStates]):
    """Keys and values of a context by layer: a forward pass given them as ``keep`` writes them, one given them as ``after`` reads them.

    Unlike transformers' caches it is not changed by being read, so that several trees can follow one context, and gradients and
    checkpointing go through it.
    """


def use_kernel(model: LlavaForConditionalGeneration) -> None:
    """Let the language model attend through our kernel; without trees and prompts it is transformers' ``sdpa`` to the bit."""
    AttentionInterface.register(KERNEL, attention)
    AttentionMaskInterface.register(KERNEL, sdpa_mask)
    model.model.language_model.set_attn_implementation(KERNEL)


def has_kernel(model: LlavaForConditionalGeneration) -> bool:
    """Whether the language model attends through our kernel."""
    return model.model.language_model.config._attn_implementation == KERNEL


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    keep: ContextStates | None = None,
    after: ContextStates | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention over [prompt; sequence] in the layers that carry a prompt, over the sequence elsewhere.

    Args:
        module: The attention layer; ``module.deep_prompts`` holds its prompt (see ``prefix.py``).
        query: (B, heads, Q, head width)
        key: (B, KV heads, N, head width), rotated
        value: (B, KV heads, N, head width)
        attention_mask: (B or 1, 1, R, N) bool (true: visible) or additive float for the last R queries; those before them, or all with
            None, are causal. Nothing is said of the prompt, which all see.
        keep: Where to leave this layer's keys and values.
        after: The context that comes before this sequence; the mask covers it too.
        kwargs: As transformers passes them on.

    Returns:
        (B, Q, heads, head width) and no weights.
    """
    queries, layer = query.shape[2], getattr(module, "layer_idx", 0)
    before, hidden = 0, None
    if after is not None:
        key, value = torch.cat([after[layer].key, key], 2), torch.cat([after[layer].value, value], 2)
        hidden = after[layer].hidden
    elif (carried := getattr(module, "deep_prompts", None)) is not None and carried[0].active:
        if attention_mask is None and queries > 1:
            key, value = key[:, :, :queries], value[:, :, :queries]  # sequences start here, a longer static cache is empty
        prompts, slot = carried
        before = prompts.tokens
        key, value, hidden = prompts.prepend(slot, key, value)
    if keep is not None:
        keep.setdefault(layer, LayerStates(key, value, hidden))  # not again where the layer is computed anew in the backward pass
    masked = 0 if attention_mask is None else attention_mask.shape[2]
    causal, parts = queries - masked, []
    if causal:
        end = key.shape[2] if attention_mask is None else before + causal
        parts.append(_causal(module, query[:, :, :causal], key[:, :, :end], value[:, :, :end], before, hidden, **kwargs))
    if attention_mask is not None:
        mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask.to(query.dtype)
        mask = _hide(pad(mask, (key.shape[2] - mask.shape[3], 0), value=_visible(mask)), hidden)
        parts.append(_masked(module, query[:, :, causal:], key, value, mask, **kwargs))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1), None


def _causal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, before: int, hidden: Tensor | None, **kwargs: Any) -> Tensor:
    """Every query sees the prompt and what is not behind itself; the last sees all."""
    queries, keys = query.shape[2], key.shape[2]
    if hidden is not None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)
        return sdpa_attention_forward(module, query, key, value, _hide(mask[None, None], hidden), **kwargs)[0]
    if before == 0 or queries == 1:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)[0]
    # queries for the prompt too, so that the causal kernel takes it; nobody reads their answers
    return sdpa_attention_forward(module, pad(query, (0, 0, before, 0)), key, value, None, **kwargs)[0][:, before:]


def _masked(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
    """As the mask says. transformers copies shared heads where there is a mask; the CPU's kernel has no need of that."""
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
    return scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale, enable_gqa=True).transpose(1, 2)


def _visible(mask: Tensor) -> float:
    """What a mask says where it hides nothing."""
    return 1.0 if mask.dtype == torch.bool else 0.0


def _hide(mask: Tensor, hidden: Tensor | None) -> Tensor:
    """Take the first columns away from the clips they are hidden from."""
    if hidden is None:
        return mask
    away = pad(hidden, (0, mask.shape[3] - hidden.shape[3]))
    return mask & ~away if mask.dtype == torch.bool else mask.masked_fill(away, torch.finfo(mask.dtype).min)
