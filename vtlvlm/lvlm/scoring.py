"""Label scores in one forward: the context and the label tree packed into one sequence (eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vtlvlm.lvlm.trie import LabelTrie


def score(model: LlavaForConditionalGeneration, projected: Tensor, context: Tensor, trie: LabelTrie) -> Tensor:
    """Log-likelihood of every label after the context, exactly as one forward per label would give it.

    The tree's nodes follow the context; each attends to the whole context and to the nodes above it, at the position it would
    have in its own label, so every path sees what it would see alone. Only the context's last position and the nodes go
    through the vocabulary head. All clips share one context, hence nothing is padded.

    Args:
        model: The LLaVA, with or without deep prompts attached.
        projected: (B, M, L) event vectors behind LLaVA's projector.
        context: (C,) int64 token ids with exactly M image placeholders.
        trie: The labels.

    Returns:
        (B, A) float32 log P(label | context), natural logarithm; not normalised over the labels.
    """
    length, device = context.numel(), context.device
    total = length + len(trie)
    visible = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    visible[length:, length:] = trie.ancestors
    mask = visible[None, None]
    if model.model.language_model.config._attn_implementation == "eager":  # adds its mask instead of selecting with it
        dtype = model.get_input_embeddings().weight.dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)
    positions = torch.cat([torch.arange(length, device=device), length + trie.depths])
    logits = model(
        input_ids=torch.cat([context, trie.tokens]).expand(len(projected), -1),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(projected))},
        attention_mask=mask,
        position_ids=positions[None],
        logits_to_keep=torch.arange(length - 1, total, device=device),
        use_cache=False,
    ).logits
    return trie.sums(logits.float().log_softmax(-1))
