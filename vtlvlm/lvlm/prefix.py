"""Deep prompts (P-Tuning v2): trained keys and values before the sequence in chosen attention layers, and the kernel that reads them.

How a prompt reaches the attention of a chosen layer::

    DeepPrompts.attach(model)
      |   self_attn.deep_prompts = (prompts, slot)     in a tuple, so that the layer does not register them
      |   rotary_emb, hook before its forward          the text's positions count from P
      v
    model(..., keep=states) or model(..., after=states)
      |                                                transformers passes both on to the attention
      v
    attention(module, query, key, value, mask, keep, after)
      |   [prompt; key], [prompt; value]               prompts.prepend(slot, key, value)
      |   keep: stores them by layer                   for label trees that continue the context (scoring.py)
      |   after: takes them instead of a prompt        for a label tree after its context
      v
    context rows: causal kernel        label rows: the tree's mask

Context rows are causal; label rows have a mask of their own. One mask over everything would cost the context its causal kernel, which
computes half of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, LlavaForConditionalGeneration, PretrainedConfig, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.adapters import Adapter
from vtlvlm.lvlm.base_identity import require_same_base
from vtlvlm.lvlm.peft_format import base_of, read_prefix
from vtlvlm.lvlm.prompt_encoder import PromptEncoder, chosen_layers

KERNEL = "vtlvlm_sdpa"


class DeepPrompts(Adapter):
    """P soft prompt tokens in chosen layers of a frozen language model (eq. 5); 16 tokens · 2 · 4096 numbers a layer in LLaVA-1.5-7B.

    The prompts are parameters of this module; the language model's state dict does not change. Text positions start after the prompt (every
    layer shifts them by P), as in peft's prefix tuning.

    Args:
        tokens: P, prompt tokens a layer; 0 leaves the model untouched.
        layers: ``all``, ``last:9``, ``every:4`` or a list of layer numbers from 0.
        std: Standard deviation of the initial noise.
        dropout: Fraction in [0, 1) of prompt tokens that training hides from each clip in each layer.
        init_text: Start from the keys and values of these words instead of noise. The model then starts as if it had read them first. The
            words are repeated or cut to P tokens.
        init_from: Start from the prefix in this folder, saved by peft (``PREFIX_TUNING``) or by ``vtlvlm export --format peft``. It must
            have prompts in all layers, and ``tokens`` tokens.
        reparam_hidden_dim: Hidden width of an MLP that is trained instead of the keys and values (see :class:`PromptEncoder`); None or 0
            trains them directly. Only training needs the MLP: bundles hold plain keys and values.

    Attributes:
        key: (layers, KV heads, P, head width) float32, trained; with an MLP its constant start
        value: (layers, KV heads, P, head width) float32, like ``key``
        encoder: the MLP whose output is added to both; None without one
        active: False hides the prompts from the attached model

    Raises:
        UsageError: A setting is out of range.
    """

    key: Tensor | None
    value: Tensor | None
    encoder: PromptEncoder | None

    def __init__(
        self,
        tokens: int = 16,
        layers: str | list[int] = "all",
        std: float = 0.02,
        dropout: float = 0.0,
        init_text: str | None = None,
        init_from: str | None = None,
        reparam_hidden_dim: int | None = None,
    ) -> None:
        super().__init__()
        if tokens < 0:
            raise UsageError(f"prompt tokens {tokens}: use 0 or more")
        if not 0 <= dropout < 1:
            raise UsageError(f"prompt dropout {dropout}: use a fraction in [0, 1)")
        if (reparam_hidden_dim or 0) < 0:
            raise UsageError(f"reparam_hidden_dim {reparam_hidden_dim}: use the MLP's hidden width, or 0 for none")
        if init_text is not None and init_from is not None:
            raise UsageError("init_text and init_from: prompts start from only one; leave the other out")
        self.tokens, self.layers, self.std, self.dropout = tokens, layers, std, dropout
        self.init_text, self.init_from, self.reparam_hidden_dim = init_text, init_from, reparam_hidden_dim
        self.chosen: list[int] = []
        self.active = True
        if tokens:
            self.kernels = ("sdpa",)  # our kernel extends it
        for name in ("key", "value"):
            if reparam_hidden_dim:
                self.register_buffer(name, None)
            else:
                self.register_parameter(name, None)
        self.encoder = None

    @property
    def trains(self) -> bool:
        """Prompts without tokens leave the model untuned."""
        return self.tokens > 0

    def first_layer(self, num_layers: int) -> int:
        return chosen_layers(self.layers, num_layers)[0] if self.tokens else num_layers

    @property
    def needs_checkpoint(self) -> bool:
        """A prefix trained by peft can be tested without a checkpoint."""
        return self.trains and self.init_from is None

    @contextmanager
    def off(self, model: LlavaForConditionalGeneration) -> Iterator[None]:
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def find_start(self, config: PretrainedConfig, llava: str, revision: str | None) -> None:
        if self.init_from is not None:
            if (made := base_of(self.init_from)) is not None:
                require_same_base(made, llava, revision, str(self.init_from))
            self.read(self.init_from, config.num_hidden_layers)

    def start(self, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        if self.init_text is not None:
            self.fill(model, tokenizer(self.init_text, add_special_tokens=False).input_ids)

    def require_fit(self, shapes: Mapping[str, torch.Size], source: str | Path) -> None:
        key, encoder = shapes.get("adapter.key", ()), shapes.get("adapter.encoder.embedding")
        prompts = key[2] if len(key) == 4 else None
        width = None if encoder is None or len(encoder) != 2 else encoder[1]
        if (self.tokens and prompts != self.tokens) or (width or 0) != (self.reparam_hidden_dim or 0):
            raise UsageError(
                f"{source}: its weights do not fit its settings ({self.tokens} prompt tokens, the file has {prompts}; MLP "
                f"{self.reparam_hidden_dim}, the file has {width}); get the file again, or make it again"
            )

    def build(self, config: PretrainedConfig) -> None:
        """Make the parameters for a language model (idempotent).

        Args:
            config: The text config of the LLaVA.

        Raises:
            UsageError: Chosen layers do not exist.
        """
        self.chosen = chosen_layers(self.layers, config.num_hidden_layers)
        if self.tokens == 0 or self.key is not None:
            return
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (len(self.chosen), config.num_key_value_heads, self.tokens, width)
        key, value = torch.randn(shape) * self.std, torch.randn(shape) * self.std
        if self.reparam_hidden_dim:
            self.key, self.value, self.encoder = key, value, PromptEncoder(self.reparam_hidden_dim, shape)
        else:
            self.key, self.value = nn.Parameter(key), nn.Parameter(value)

    @torch.no_grad()
    def read(self, folder: str | Path, num_layers: int) -> None:
        """Start from a prefix in peft's format.

        Args:
            folder: Holds adapter_config.json and adapter_model.safetensors.
            num_layers: Number of layers of the language model.

        Raises:
            UsageError: The folder holds no prefix, the prefix is of another model or number of tokens, or prompts are in some layers only.
        """
        if self.key is None or self.value is None:
            return
        if len(self.chosen) < num_layers:
            raise UsageError(f"{folder}: a prefix in peft's format covers all layers, not {self.layers}; set layers to all")
        key, value = read_prefix(folder, tuple(self.key.shape))
        self.key.copy_(key)
        self.value.copy_(value)

    @torch.no_grad()
    def fill(self, model: LlavaForConditionalGeneration, ids: list[int]) -> None:
        """Start from the keys and values of a text in the chosen layers.

        Args:
            model: The LLaVA, before :meth:`attach`.
            ids: The text's token ids; repeated or cut to P.

        Raises:
            UsageError: The text has no tokens.
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
        """Make the model's chosen layers read the prompts, in training, evaluation and ``generate``.

        Args:
            model: A LLaVA whose language model has rotary positions (Llama, Mistral, Qwen2, …).

        Raises:
            UsageError: The model has prompts already, or no rotary positions.
        """
        if self.tokens == 0:
            return
        language = model.model.language_model
        if not hasattr(language, "rotary_emb"):
            raise UsageError(f"{type(language).__name__}: deep prompts need a language model with rotary positions")
        if any(hasattr(layer.self_attn, "deep_prompts") for layer in language.layers):
            raise UsageError("the LLaVA has deep prompts already; load it again to attach others")
        use_kernel(model)
        language.rotary_emb.register_forward_pre_hook(self._shift, with_kwargs=True)
        for slot, layer in enumerate(self.chosen):
            # in a tuple, so that the layer does not register the prompts as its own parameters
            language.layers[layer].self_attn.deep_prompts = (self, slot)

    def keys_values(self, slot: int) -> tuple[Tensor, Tensor]:
        """One layer's prompt: keys and values, each (KV heads, P, head width) float32."""
        assert self.key is not None
        assert self.value is not None
        key, value = self.key[slot], self.value[slot]
        if self.encoder is None:
            return key, value
        made = self.encoder(slot)
        return key + made[0], value + made[1]

    def _shift(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Shift text positions by P, unless the prompt is hidden."""
        tokens = self.tokens if self.active else 0
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": kwargs["position_ids"] + tokens}
        return (args[0], args[1] + tokens, *args[2:]), kwargs

    def prepend(self, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Prepend one layer's prompt to its keys and values.

        Args:
            slot: Index into the chosen layers.
            key: (B, KV heads, N, head width), rotated
            value: (B, KV heads, N, head width)

        Returns:
            keys and values with P + N positions, and (B, 1, 1, P) bool, true for prompt tokens that dropout hides (None if all are
            visible).
        """
        batch = len(key)
        prompt_key, prompt_value = self.keys_values(slot)
        key = torch.cat([prompt_key.to(key.dtype).expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([prompt_value.to(value.dtype).expand(batch, -1, -1, -1), value], dim=2)
        hidden = None
        if self.training and self.dropout > 0:
            hidden = torch.rand(batch, 1, 1, self.tokens, device=key.device) < self.dropout
        return key, value, hidden


# -- the attention kernel ------------------------------------------------------------------------------------------------------------------


class LayerStates(NamedTuple):
    """Keys and values of a context in one layer."""

    key: Tensor
    """(B, KV heads, P + C, head width), rotated, prompt first"""
    value: Tensor
    """(B, KV heads, P + C, head width)"""
    hidden: Tensor | None
    """(B, 1, 1, P) bool, true for prompt tokens that dropout hides from a clip; None if all are visible"""


class ContextStates(dict[int, LayerStates]):
    """Keys and values of a context by layer. A forward pass writes them (``keep``), later ones read them (``after``).

    Unlike transformers' caches, reading does not change it. Several label trees can therefore follow one context, and gradients and
    gradient checkpointing work.
    """


def use_kernel(model: LlavaForConditionalGeneration) -> None:
    """Switch the language model to our kernel. Without label trees and prompts it equals transformers' ``sdpa`` to the bit."""
    AttentionInterface.register(KERNEL, attention)
    AttentionMaskInterface.register(KERNEL, sdpa_mask)
    model.model.language_model.set_attn_implementation(KERNEL)


def has_kernel(model: LlavaForConditionalGeneration) -> bool:
    """Whether the language model uses our kernel."""
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
    """Scaled dot-product attention over [prompt; sequence] in layers with a prompt, over the sequence in the others.

    Args:
        module: The attention layer; ``module.deep_prompts`` holds its prompt.
        query: (B, heads, Q, head width)
        key: (B, KV heads, N, head width), rotated
        value: (B, KV heads, N, head width)
        attention_mask: (B or 1, 1, R, N) bool (true: visible) or additive float, for the last R queries. Earlier queries are causal, and so
            are all with None or R = 0. The mask does not cover the prompt, which every query sees.
        keep: Receives this layer's keys and values.
        after: The context before this sequence; the mask covers it too.
        kwargs: As passed by transformers.

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
            key, value = key[:, :, :queries], value[:, :, :queries]  # the sequence starts here; the rest of a static cache is empty
        prompts, slot = carried
        before = prompts.tokens
        key, value, hidden = prompts.prepend(slot, key, value)
    if keep is not None:
        keep.setdefault(layer, LayerStates(key, value, hidden))  # gradient checkpointing calls this a second time
    masked = 0 if attention_mask is None else attention_mask.shape[2]
    causal, parts = queries - masked, []
    if causal:
        end = key.shape[2] if attention_mask is None else before + causal
        parts.append(_causal(module, query[:, :, :causal], key[:, :, :end], value[:, :, :end], before, hidden, **kwargs))
    if masked and attention_mask is not None:
        mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask.to(query.dtype)
        mask = _hide(pad(mask, (key.shape[2] - mask.shape[3], 0), value=_visible(mask)), hidden)
        parts.append(_masked(module, query[:, :, causal:], key, value, mask, **kwargs))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1), None


def _causal(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, before: int, hidden: Tensor | None, **kwargs: Any) -> Tensor:
    """Every query sees the prompt and all keys up to its own position; the last query sees all keys."""
    queries, keys = query.shape[2], key.shape[2]
    if hidden is not None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)
        return sdpa_attention_forward(module, query, key, value, _hide(mask[None, None], hidden), **kwargs)[0]
    if before == 0 or queries == 1:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)[0]
    # padding queries for the prompt keeps the causal kernel; their outputs are dropped
    return sdpa_attention_forward(module, pad(query, (0, 0, before, 0)), key, value, None, **kwargs)[0][:, before:]


def _masked(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
    """Masked attention. transformers copies shared heads if there is a mask; the CPU kernel does not need the copies."""
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    dropout, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling")
    return scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale, enable_gqa=True).transpose(1, 2)


def _visible(mask: Tensor) -> float:
    """The value of a visible entry in this mask."""
    return 1.0 if mask.dtype == torch.bool else 0.0


def _hide(mask: Tensor, hidden: Tensor | None) -> Tensor:
    """Hide the first columns (the prompt) from clips, as ``hidden`` says."""
    if hidden is None:
        return mask
    away = pad(hidden, (0, mask.shape[3] - hidden.shape[3]))
    return mask & ~away if mask.dtype == torch.bool else mask.masked_fill(away, torch.finfo(mask.dtype).min)
