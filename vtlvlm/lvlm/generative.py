"""The generative objective: next-token prediction of each clip's own answer, as language models are trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

PADDING = -100
"""What stands behind an answer that is shorter than the longest one; transformers' and torch's own sign for "no target" """


def answer_table(labels: Sequence[Sequence[int]]) -> Tensor:
    """Token sequences side by side: (A, T) int64, T the length of the longest, -100 behind the others."""
    return pad_sequence([torch.tensor(label, dtype=torch.int64) for label in labels], batch_first=True, padding_value=PADDING)


def language_loss(model: LlavaForConditionalGeneration, projected: Tensor, context: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of the answers' tokens, each predicted from the context and the answer's tokens before it.

    The mean over all answer tokens of the batch, end tokens included: the number that transformers gives for ``labels`` with -100
    everywhere else (so a long answer weighs more than a short one, and over accumulated batches or processes it is a mean of means).
    Answers are padded on the right, where causal attention keeps the padding from everything that counts; only the answers' positions
    go through the vocabulary head.

    Args:
        model: The LLaVA, with or without deep prompts attached.
        projected: (B, M, L) event vectors behind LLaVA's projector.
        context: (C,) int64 token ids with exactly M image placeholders.
        answers: (B, T) int64, each clip's answer with its end token, -100 behind it.

    Returns:
        A scalar, nats a token.
    """
    length = context.numel()
    fed = torch.where(answers == PADDING, answers[:, :1], answers)[:, :-1]  # any token will do for padding, but an image's
    total = length + fed.shape[1]
    logits = model(
        input_ids=torch.cat([context.expand(len(fed), -1), fed], 1),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=list(projected))},
        position_ids=torch.arange(total, device=context.device)[None],
        logits_to_keep=torch.arange(length - 1, total, device=context.device),
        use_cache=False,
    ).logits
    return F.cross_entropy(logits.float().flatten(0, 1), answers.flatten(), ignore_index=PADDING)
