"""Likelihoods of any sentence as the answer of a trained reasoner, beside or instead of its categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import load_tokenizer
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.scoring import LabelTrie, require_room, score


class SentenceScorer:
    """Scores sentences after the context on which a reasoner was trained, in one pass for all of them.

    Args:
        reasoner: Built.
        sentences: Texts; two may not have the same words.

    Raises:
        UsageError: The reasoner is not built, or a sentence is empty, too long, doubled, or holds a special token.
    """

    def __init__(self, reasoner: EventReasoner, sentences: Sequence[str]) -> None:
        if reasoner.base is None:
            raise UsageError("the reasoner has no language model yet; call build(classes, num_events, event_dim) first")
        self.reasoner = reasoner
        asked = Instruction(
            reasoner.instruction.words(reasoner.classes), list_categories=False
        )  # the trained question, categories included
        tokenizer = load_tokenizer(reasoner.llava.path, reasoner.llava.revision)
        self.trie = LabelTrie(asked.labels(tokenizer, sentences), reasoner.llava.max_positions)
        text = reasoner.base.config.text_config
        before = reasoner.adapter.tokens + reasoner.context.numel()
        require_room(self.trie, before, text.max_position_embeddings, sentences)
        self.trie.to(reasoner.context.device)

    @torch.inference_mode()
    def __call__(self, vectors: Tensor) -> Tensor:
        """Event vectors (B, M, E) → (B, n) float32 log P(sentence | events), in nats, end token included."""
        assert self.reasoner.base is not None
        return score(self.reasoner.base, self.reasoner.embed(vectors.to(self.reasoner.context.device)), self.trie)
