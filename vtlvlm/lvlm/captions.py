"""Trains a reasoner to say captions, and lets it write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.context import embed
from vtlvlm.lvlm.generative import PADDING, answer_table, language_loss
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_tokenizer
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelTrie, require_room

LONGEST = 64
"""Tokens of a written caption, at most"""


class Written(NamedTuple):
    """A caption that a model wrote."""

    text: str
    log_probability: float
    """nats, of all its tokens; its end token too, unless it was cut at the longest length"""


class CaptionLoss:
    """Next-token prediction of captions after the reasoner's context.

    Args:
        reasoner: Built.
        texts: All captions, all different.

    Raises:
        UsageError: A caption holds a special token, or does not fit behind the context.
    """

    def __init__(self, reasoner: EventReasoner, texts: Sequence[str]) -> None:
        self.reasoner = reasoner
        asked = Instruction(reasoner.instruction.words(reasoner.classes), list_categories=False)
        labels = asked.labels(load_tokenizer(reasoner.llava.path, reasoner.llava.revision), texts)
        longest = max(range(len(labels)), key=lambda row: len(labels[row]))
        assert reasoner.base is not None
        positions = reasoner.base.config.text_config.max_position_embeddings
        require_room(
            LabelTrie(labels[longest : longest + 1]), reasoner.adapter.tokens + reasoner.context.numel(), positions, [texts[longest]]
        )
        self.answers = answer_table(labels)

    def __call__(self, vectors: Tensor, captions: Tensor) -> Tensor:
        """Event vectors (B, M, E) and places of captions (B,) int64 → a scalar, nats a token."""
        assert self.reasoner.base is not None
        answers = self.answers[captions.cpu()]
        answers = answers[:, : int((answers != PADDING).sum(1).max())]  # only as long as the longest of the batch
        return language_loss(self.reasoner.base, self.reasoner.embed(vectors), answers.to(vectors.device))


@torch.inference_mode()
def write_captions(reasoner: EventReasoner, vectors: Tensor, longest: int = LONGEST) -> list[Written]:
    """Captions of event sentences, each token the likeliest one.

    Args:
        reasoner: Built, in evaluation mode.
        vectors: (B, M, E) event vectors.
        longest: Tokens of a caption, at most.

    Raises:
        UsageError: The reasoner is not built.
    """
    if (base := reasoner.base) is None:
        raise UsageError("the reasoner has no language model yet; call build(classes, num_events, event_dim) first")
    tokenizer = load_tokenizer(reasoner.llava.path, reasoner.llava.revision)
    sequence = reasoner.embed(vectors.to(reasoner.context.device))
    length, cache = sequence.shape[1], DynamicCache(config=base.config.text_config)
    positions = torch.arange(length, device=sequence.device)
    done = torch.zeros(len(vectors), dtype=torch.bool, device=sequence.device)
    total, words = torch.zeros(len(vectors), device=sequence.device), []
    longest = min(longest, base.config.text_config.max_position_embeddings - reasoner.adapter.tokens - length)
    for step in range(longest):
        hidden = base.model.language_model(
            inputs_embeds=sequence, position_ids=positions[None], past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        best, token = base.lm_head(hidden).float().log_softmax(-1).max(-1)
        total += best.masked_fill(done, 0.0)
        words.append(token.masked_fill(done, tokenizer.eos_token_id))
        done |= token == tokenizer.eos_token_id
        if bool(done.all()):
            break
        sequence, positions = embed(base, words[-1][:, None]), torch.tensor([length + step], device=sequence.device)
    texts = tokenizer.batch_decode(torch.stack(words, 1).tolist(), skip_special_tokens=True) if words else [""] * len(vectors)
    return [Written(" ".join(text.split()), float(nats)) for text, nats in zip(texts, total, strict=True)]
