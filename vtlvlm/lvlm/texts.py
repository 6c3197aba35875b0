"""What the language model reads beside the events: the context's tokens and those of the labels. It needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import LlavaConfig

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.context import first_event
from vtlvlm.lvlm.instruction import Instruction
from vtlvlm.lvlm.llava import Llava, load_tokenizer
from vtlvlm.lvlm.scoring import LabelTrie, require_room


class Texts(NamedTuple):
    """Tokens of context and labels."""

    context: Tensor
    """(C,) int64, the token ids before the answer, with placeholders for the events"""
    first_event: int
    """The position of the first event"""
    labels: list[list[int]]
    """Token ids of each category, each with the end token"""
    trie: LabelTrie


def read_texts(llava: Llava, instruction: Instruction, prompts: int, config: LlavaConfig, classes: Sequence[str], num_events: int) -> Texts:
    """Tokenise the context and the labels.

    Args:
        llava: The LLaVA, whose tokenizer is read.
        instruction: The question to the model.
        prompts: P, positions that the adapter takes before the text.
        config: The LLaVA's.
        classes: Category names, in label order.
        num_events: M, number of events in a sentence.

    Raises:
        UsageError: Categories have the same words, or the tokens exceed the model's positions.
    """
    tokenizer = load_tokenizer(llava.path, llava.revision)
    positions = config.text_config.max_position_embeddings
    if num_events > positions:
        raise UsageError(f"{num_events:,} events a sentence: the LLaVA has positions for {positions:,}; use fewer windows or cells")
    labels = instruction.labels(tokenizer, classes)
    trie = LabelTrie(labels, llava.max_positions)
    context = instruction.context(tokenizer, num_events, classes)
    require_room(trie, prompts + len(context), positions, classes)
    return Texts(context, first_event(context, config.image_token_id, num_events), labels, trie)
