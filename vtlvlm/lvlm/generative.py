"""The generative objective: next-token prediction of each clip's own answer, the usual loss of language models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration

from vtlvlm.lvlm.context import embed
from vtlvlm.lvlm.lower_layers import Language
from vtlvlm.lvlm.masks import causal_mask
from vtlvlm.lvlm.scoring import LabelTrie

PADDING = -100
"""Fills answers up to the longest; torch and transformers ignore such targets"""


def answer_table(labels: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences as one table (A, T) int64, padded with -100 to the length T of the longest."""
    return pad_sequence([torch.tensor(label, dtype=torch.int64) for label in labels], batch_first=True, padding_value=PADDING)


def language_loss(model: LlavaForConditionalGeneration, context: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens, each predicted from the context and the answer's tokens before it.

    The loss is the mean over all answer tokens of the batch, end tokens included. It equals transformers' loss for ``labels`` with -100
    elsewhere. Long answers therefore weigh more than short ones; over accumulated batches or processes it is a mean of means. Answers are
    padded on the right, where causal attention hides the padding. Only the answers' positions go through the vocabulary head.

    Args:
        model: The LLaVA, with or without deep prompts attached.
        context: (B, C, L) embeddings of events and instruction (``context.embed_context``).
        answers: (B, T) int64, each clip's answer with its end token, padded with -100.

    Returns:
        A scalar, nats a token.
    """
    fed = torch.where(answers == PADDING, answers[:, :1], answers)[:, :-1]  # padding can be any token
    return answer_loss(model, model.model.language_model, torch.cat([context, embed(model, fed)], 1), answers)


def answer_nodes(trie: LabelTrie) -> Tensor:
    """The node of a label tree for each token of a label but its last, (A, T - 1) int64, padded with 0."""
    rows = trie.slots.split(trie.lengths.tolist())
    return pad_sequence([slots[1:] - 1 for slots in rows], batch_first=True)


def answer_loss(model: LlavaForConditionalGeneration, part: Language, sequence: Tensor, answers: Tensor) -> Tensor:
    """The loss of :func:`language_loss`, from the input of some of the last layers.

    Args:
        model: The LLaVA.
        part: Its language model, or its last layers (``lower_layers.above``).
        sequence: (B, C + T - 1, L) the input of the first of these layers: the context, and the answers without their last token.
        answers: (B, T) int64, as there.

    Returns:
        A scalar, nats a token.
    """
    positions = torch.arange(sequence.shape[1], device=sequence.device)
    mask = causal_mask(model, sequence.shape[1], sequence.device)
    hidden = part(inputs_embeds=sequence, position_ids=positions[None], attention_mask=mask, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -answers.shape[1] :])
    return F.cross_entropy(logits.float().flatten(0, 1), answers.flatten(), ignore_index=PADDING)
