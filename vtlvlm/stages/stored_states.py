"""Hidden states that stage 2 trains from: what determines them, and the refusal of states that do not fit the training."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from transformers import LlavaConfig

from vtlvlm.data.cache_format import plain, require_same
from vtlvlm.data.hidden_cache import TYPES, HiddenCache
from vtlvlm.errors import DataError, UsageError
from vtlvlm.lvlm.base_identity import base_identity
from vtlvlm.lvlm.llava import load_config
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.lvlm.texts import Texts, read_texts
from vtlvlm.stages.parts import settings_of


class StoredStates(NamedTuple):
    """Hidden states of a reasoner: what determines them besides the events, and their size."""

    made: dict[str, Any]
    """Plain values for the cache's provenance"""
    positions: int
    """C + N, tokens of context and label tree"""
    width: int
    """L"""

    @property
    def row_bytes(self) -> int:
        """Bytes of a clip and view."""
        return self.positions * self.width * TYPES[self.made["dtype"]].itemsize


def stored_states(reasoner: EventReasoner, classes: Sequence[str], num_tokens: int, precision: str) -> StoredStates:
    """What determines the states that a reasoner would store. Reads no weights but a few pieces that identify them.

    Args:
        reasoner: Need not be built.
        classes: Category names, in label order.
        num_tokens: M, events of a sentence.
        precision: The trainer's, such as ``bf16-mixed``, which computes the layers of a float32 model in 16 bits.

    Raises:
        UsageError: Training would change them, or the label tree is in parts.
    """
    llava, adapter = reasoner.llava, reasoner.adapter
    config = load_config(llava.path, llava.revision)
    layers = config.text_config.num_hidden_layers
    first = adapter.first_layer(layers)
    events = "or read the event cache (--data.events DIR)"
    if reasoner.train_projector:
        raise UsageError(f"reasoner.train_projector: hidden states hold what the projector made of the events; set it to false, {events}")
    if first in (0, layers):
        what = "trains no layer" if first else "trains the first layer"
        raise UsageError(
            f"{type(adapter).__name__} {what}, hidden states are the input of the first layer with prompts: use DeepPrompts in the last "
            f"layers only (reasoner.adapter.layers last:9), {events}"
        )
    texts = read_texts(llava, reasoner.instruction, adapter.tokens, config, classes, num_tokens)
    if len(texts.trie.parts) > 1:
        raise UsageError(f"reasoner.llava.max_positions: hidden states need the label tree in one pass; leave it out, {events}")
    identity = base_identity(llava.path, llava.revision)
    made = {
        "llava": {name: identity[name] for name in ("config", "weights")},
        "quantization": llava.quantization,
        "dtype": _dtype(reasoner, config),
        "precision": precision,
        "instruction": settings_of(reasoner.instruction),
        "classes": list(classes),
        "tokens": _digest(texts),
        "first_layer": first,
        "prompt_tokens": adapter.tokens,
        "sentence_mean_weight": reasoner.sentence_mean_weight,
    }
    return StoredStates(plain(made), len(texts.context) + len(texts.trie), config.text_config.hidden_size)


def require_stored(reasoner: EventReasoner, cache: HiddenCache, classes: Sequence[str], precision: str) -> None:
    """Refuse hidden states of other settings than the reasoner's, or of another precision, before its weights are loaded.

    Raises:
        DataError: Names the first difference, or the states have another shape.
        UsageError: Training would change the states.
    """
    stored = stored_states(reasoner, classes, cache.num_tokens, precision)
    require_same(cache.folder, {name: cache.provenance.get(name) for name in stored.made}, stored.made)
    if cache.shape != (stored.positions, stored.width):
        one, two = (" x ".join(map(str, shape)) for shape in (cache.shape, (stored.positions, stored.width)))
        raise DataError(f"{cache.folder}: its states are {one}, its description needs {two}; delete the folder and make the cache anew")


def _dtype(reasoner: EventReasoner, config: LlavaConfig) -> str:
    """The name of the type in which the language model computes."""
    asked = reasoner.llava.dtype
    return str(config.dtype or "float32").removeprefix("torch.") if asked == "auto" else asked


def _digest(texts: Texts) -> str:
    """Hash of the token ids of context and label tree, with their places."""
    trie = texts.trie
    found = blake2b(digest_size=16)
    for tensor in (texts.context, trie.tokens, trie.depths, trie.ancestors):
        found.update(tensor.numpy().tobytes() + b";")
    return found.hexdigest()
