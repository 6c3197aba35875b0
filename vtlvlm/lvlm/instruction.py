"""The context of the language model: the event sentence, then the instruction (eq. 5), in the model's chat form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.template import render
from vtlvlm.system.text import shown

IMAGE = "<image>"
MOST_CLASSES, LONGEST, MOST_WORDS, MOST_TEXT = 20_000, 10_000, 1_000_000, 400_000_000
"""Largest accepted number of categories, of characters in a category's name, in the instruction, and in all contexts with an answer
together"""


def require_modest(classes: Sequence[str]) -> None:
    """Refuse more or longer categories than the language model can score.

    Raises:
        UsageError: There are no categories or too many, or a name is too long.
    """
    if not classes:
        raise UsageError("no categories: give at least one class name")
    if len(classes) > MOST_CLASSES:
        raise UsageError(f"{len(classes):,} categories: at most {MOST_CLASSES:,} can be told apart; give fewer")
    longest = max(range(len(classes)), key=lambda row: len(classes[row]))
    if (length := len(classes[longest])) > LONGEST:
        raise UsageError(
            f"category {longest} {shown(classes[longest], 40)!r}: {length:,} characters, at most {LONGEST:,} are taken; give a shorter name"
        )


class Instruction:
    """The task in words (I_task of eq. 6).

    Args:
        text: The question; the default is the paper's.
        list_categories: Add "Choose from: a, b, c." This costs the names' tokens for every clip; a model trained on the categories does not
            need it.
    """

    def __init__(
        self, text: str = "Given the sequence of visual events, what action is being performed?", list_categories: bool = True
    ) -> None:
        self.text, self.list_categories = text, list_categories

    def words(self, classes: Sequence[str]) -> str:
        """The instruction without events and chat form."""
        return f"{self.text} Choose from: {', '.join(classes)}." if self.list_categories else self.text

    def prompt(self, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str]) -> tuple[str, str]:
        """The whole context as text, with one ``<image>`` for the event sentence, and the separator before the answer.

        Uses the tokenizer's chat template if it has one, with the events before the instruction; else Vicuna's form, which LLaVA-1.5 uses.

        Raises:
            UsageError: The chat template does not show the instruction, or the instruction or a listed category holds ``<image>``.
        """
        require_modest(classes)
        words = self.words(classes)
        if len(words) > MOST_WORDS:
            raise UsageError(
                f"the instruction has {len(words):,} characters with its categories, at most {MOST_WORDS:,} are read; do not list the "
                "categories in it, or give fewer"
            )
        if IMAGE in words:
            raise UsageError(f"instruction {shown(words, 100)!r}: must not hold {IMAGE}, which stands for the events")
        if not tokenizer.chat_template:
            return f"USER: {IMAGE}\n{words} ASSISTANT:", " "
        contents = (f"{IMAGE}\n{words}", [{"type": "image"}, {"type": "text", "text": words}])  # plain and multi-part templates
        for content in contents:
            text = render(tokenizer, content)
            if text is not None and text.count(IMAGE) == 1 and words in text:
                return text, "" if text[-1:].isspace() else " "
        raise UsageError(f"{tokenizer.name_or_path}: its chat template does not show instruction and {IMAGE}; repair or remove it")

    def context(self, tokenizer: PreTrainedTokenizerBase, num_events: int, classes: Sequence[str]) -> Tensor:
        """The context's token ids.

        Args:
            tokenizer: The LLaVA's.
            num_events: M, number of placeholders for event vectors.
            classes: Category names.

        Returns:
            (C,) int64 with exactly M ids of ``<image>``.

        Raises:
            UsageError: The tokenizer has no ``<image>``, or M is below 1.
        """
        if num_events < 1:
            raise UsageError(f"num_events {num_events}: an event sentence has at least one event")
        image = tokenizer.convert_tokens_to_ids(IMAGE)
        ids = self._encode(tokenizer, [self.prompt(tokenizer, classes)[0]])[0]
        if image is None or ids.count(image) != 1:
            raise UsageError(f"{tokenizer.name_or_path}: the tokenizer has no {IMAGE}; use the tokenizer saved with the LLaVA")
        at = ids.index(image)
        return torch.tensor(ids[:at] + [image] * num_events + ids[at + 1 :])

    def labels(self, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str]) -> list[list[int]]:
        """Token ids of every category as the answer to the context, each with the end token.

        Raises:
            UsageError: A category is empty, two have the same words (ignoring case), one holds a special token, or the tokenizer has no end
                token.
        """
        require_modest(classes)
        names = [" ".join(name.split()) for name in classes]
        if "" in names:
            raise UsageError(f"category {names.index('')}: has no name; give every category a name of its own")
        folded = [name.casefold() for name in names]
        twice = [name for name, count in Counter(folded).items() if count > 1]
        if twice:
            name = names[folded.index(twice[0])]
            raise UsageError(f"category {name!r}: is named {folded.count(twice[0])} times; give every category a name of its own")
        if tokenizer.eos_token_id is None:
            raise UsageError(f"{tokenizer.name_or_path}: the tokenizer has no end token to separate labels; use the LLaVA's tokenizer")
        reserved = {IMAGE, *tokenizer.all_special_tokens}
        for name in names:
            if found := [token for token in reserved if token in name]:
                raise UsageError(f"category {name!r}: holds {min(found)}, which the tokenizer reserves; give it another name")
        prompt, space = self.prompt(tokenizer, classes)
        if (total := (len(prompt) + 100) * len(names)) > MOST_TEXT:
            raise UsageError(
                f"{len(names):,} categories after an instruction of {len(prompt):,} characters ({total:,} in all): at most {MOST_TEXT:,} "
                "are read; do not list the categories in it"
            )
        start, *answers = self._encode(tokenizer, [prompt, *(f"{prompt}{space}{name}" for name in names)])
        if any(answer[: len(start)] != start for answer in answers):
            raise UsageError(f"{tokenizer.name_or_path}: its chat form's end merges with the answer; let the form end in a newline")
        return [[*answer[len(start) :], tokenizer.eos_token_id] for answer in answers]

    @staticmethod
    def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
        """Token ids after the tokenizer's first token. The first token is left out if the chat template wrote it, or if the tokenizer
        itself adds none (SmolLM2's).

        LLaVA-1.5's own template equals the Vicuna form and leaves the first token to the tokenizer.
        """
        first = tokenizer.bos_token_id
        if tokenizer.chat_template and (texts[0].startswith(tokenizer.bos_token or "") or tokenizer("a").input_ids[0] != first):
            first = None
        return [([] if first is None else [first]) + ids for ids in tokenizer(texts, add_special_tokens=False).input_ids]
