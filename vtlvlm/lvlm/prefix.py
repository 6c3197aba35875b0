"""Deep prompts (P-Tuning v2): learned keys and values that chosen attention layers read before the sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedTokenizerBase

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.adapters import Adapter
from vtlvlm.lvlm.attention import use_kernel


def chosen_layers(layers: str | list[int], num_layers: int) -> list[int]:
    """The layers a setting names, ascending.

    Args:
        layers: ``all``; ``last:n``, the n uppermost; ``every:n``, the last of each n in turn (``every:4``: 3, 7, 11, …); or a
            list of numbers from 0.
        num_layers: How many the language model has.

    Raises:
        UsageError: Another word, or layers that do not exist.
    """
    if isinstance(layers, str):
        word, _, count = layers.partition(":")
        if layers == "all":
            return list(range(num_layers))
        if word not in ("last", "every") or not count.isdigit() or int(count) == 0:
            raise UsageError(f"layers {layers!r}: use all, last:9, every:4 or a list of numbers such as [0, 8, 16]")
        number = int(count)
        if number > num_layers:
            raise UsageError(f"layers {layers!r}: the language model has only {num_layers} layers")
        return list(range(num_layers - number, num_layers)) if word == "last" else list(range(number - 1, num_layers, number))
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or not layers or len(set(layers)) < len(layers):
        what = f"{wrong} do not exist" if wrong else "name each layer once, and at least one"
        raise UsageError(f"layers {layers}: {what}; the language model has layers 0 to {num_layers - 1}")
    return sorted(layers)


class DeepPrompts(Adapter):
    """P soft prompt tokens in chosen layers of a frozen language model (eq. 5; 16 tokens · 2 · 4096 numbers a layer in LLaVA-1.5-7B).

    The prompts are this module's own parameters; attaching leaves the language model's state dict as it was. Text positions
    start after the prompt (they are shifted by P in every layer), as in peft's prefix tuning.

    Args:
        tokens: P, prompt tokens a layer; 0 leaves the model untouched.
        layers: Which layers: ``all``, ``last:9``, ``every:4`` or a list of numbers from 0.
        std: Standard deviation of the initial noise.
        dropout: Share of the prompt tokens hidden from each clip in each layer while training, in [0, 1).
        init_text: Start from the keys and values of these words instead of noise: the model then begins exactly as if it had
            read them first. The words are repeated or cut to P tokens.

    Attributes:
        key: (layers, KV heads, P, head width) float32
        value: (layers, KV heads, P, head width) float32
        active: False hides the prompts from the model they are attached to.

    Raises:
        UsageError: A setting out of range.
    """

    key: nn.Parameter | None
    value: nn.Parameter | None

    def __init__(
        self, tokens: int = 16, layers: str | list[int] = "all", std: float = 0.02, dropout: float = 0.0, init_text: str | None = None
    ) -> None:
        super().__init__()
        if tokens < 0:
            raise UsageError(f"prompt tokens {tokens}: use 0 or more")
        if not 0 <= dropout < 1:
            raise UsageError(f"prompt dropout {dropout}: use a share in [0, 1)")
        self.tokens, self.layers, self.std, self.dropout, self.init_text = tokens, layers, std, dropout, init_text
        self.chosen: list[int] = []
        self.active = True
        if tokens:
            self.kernels = ("sdpa",)  # the prompts' own kernel is built on it
        self.register_parameter("key", None)
        self.register_parameter("value", None)

    @property
    def needs_checkpoint(self) -> bool:
        """With prompts of no tokens it is the untuned model."""
        return self.tokens > 0

    @contextmanager
    def off(self, model: LlavaForConditionalGeneration) -> Iterator[None]:
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def start(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        if self.init_text is not None:
            self.fill(model, tokenizer(self.init_text, add_special_tokens=False).input_ids)

    def build(self, config: PretrainedConfig) -> None:
        """Make the parameters for a language model (idempotent).

        Args:
            config: The text config of the LLaVA.

        Raises:
            UsageError: Layers that do not exist.
        """
        self.chosen = chosen_layers(self.layers, config.num_hidden_layers)
        if self.tokens == 0 or self.key is not None:
            return
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (len(self.chosen), config.num_key_value_heads, self.tokens, width)
        self.key = nn.Parameter(torch.randn(shape) * self.std)
        self.value = nn.Parameter(torch.randn(shape) * self.std)

    @torch.no_grad()
    def fill(self, model: LlavaForConditionalGeneration, ids: list[int]) -> None:
        """Start from the keys and values that a text has in the chosen layers.

        Args:
            model: The LLaVA, before :meth:`attach`.
            ids: The text's token ids; repeated or cut to P.

        Raises:
            UsageError: A text without tokens.
        """
        if self.key is None or self.value is None:
            return
        if not ids:
            raise UsageError("init_text: has no tokens; give a sentence, or leave it out to start from noise")
        device = model.get_input_embeddings().weight.device
        words = torch.tensor((ids * -(-self.tokens // len(ids)))[: self.tokens], device=device)[None]
        cache = model.model.language_model(input_ids=words, use_cache=True).past_key_values
        self.key.copy_(torch.cat([cache.layers[layer].keys for layer in self.chosen]))
        self.value.copy_(torch.cat([cache.layers[layer].values for layer in self.chosen]))

    def attach(self, model: LlavaForConditionalGeneration) -> None:
        """Let the model's chosen layers read the prompts, in training, evaluation and ``generate``.

        Args:
            model: A LLaVA whose language model has rotary positions (Llama, Mistral, Qwen2, …).

        Raises:
            UsageError: A model that carries prompts already, or one without rotary positions.
        """
        if self.tokens == 0:
            return
        language = model.model.language_model
        if not hasattr(language, "rotary_emb"):
            raise UsageError(f"{type(language).__name__}: deep prompts need a language model with rotary positions")
        if any(hasattr(layer.self_attn, "deep_prompts") for layer in language.layers):
            raise UsageError("the LLaVA carries deep prompts already; load it again for others")
        use_kernel(model)
        language.rotary_emb.register_forward_pre_hook(partial(_shift, tokens=self.tokens), with_kwargs=True)
        for slot, layer in enumerate(self.chosen):
            # in a tuple, so that the layer does not adopt the prompts as parameters of its own
            language.layers[layer].self_attn.deep_prompts = (self, slot)

    def prepend(self, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put one layer's prompt before its keys and values.

        Args:
            slot: Which of the chosen layers.
            key: (B, KV heads, N, head width), rotated
            value: (B, KV heads, N, head width)

        Returns:
            keys and values with P + N positions, and (B, 1, 1, P) bool, the prompt tokens that dropout hides (None: none).
        """
        assert self.key is not None
        assert self.value is not None
        batch = len(key)
        key = torch.cat([self.key[slot].to(key.dtype).expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([self.value[slot].to(value.dtype).expand(batch, -1, -1, -1), value], dim=2)
        hidden = None
        if self.training and self.dropout > 0:
            hidden = torch.rand(batch, 1, 1, self.tokens, device=key.device) < self.dropout
        return key, value, hidden


def _shift(_module: nn.Module, args: tuple, kwargs: dict[str, Any], tokens: int) -> tuple[tuple, dict[str, Any]]:
    """Move the text behind the prompt: positions count from P."""
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": kwargs["position_ids"] + tokens}
    return (args[0], args[1] + tokens, *args[2:]), kwargs
