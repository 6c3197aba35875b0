"""Counts the floating-point operations of training the language model, on the meta device: no weights are read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple


class Load(NamedTuple):
    """What the operations of a training of stage 2 depend on.

    Attributes:
        llava: Folder of the LLaVA; its ``config.json`` is read.
        tokens: M, event tokens of a clip.
        adapter: Name of the adapter's class.
        layers: The layers with prompts, as the configuration names them; "" without prompts.
        projector: Whether the projector is trained.
    """

    llava: str
    tokens: int
    adapter: str
    layers: str | tuple[int, ...]
    projector: bool


@cache
def operations(load: Load) -> int | None:
    """Operations of one clip in a training step: forward and backward over its event tokens, without text and optimiser.

    The text adds its share of tokens. The backward pass ends at the lowest trained layer.

    Args:
        load: The training.

    Returns:
        Floating-point operations; None if the LLaVA's ``config.json`` is not on this machine.
    """
    if not (Path(load.llava) / "config.json").is_file():
        return None
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    from vtlvlm.lvlm.prompt_encoder import chosen_layers

    text = AutoConfig.from_pretrained(load.llava, local_files_only=True).get_text_config()
    full = load.adapter == "FullFineTuning"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text, attn_implementation="sdpa").requires_grad_(full)
        words = torch.empty(1, load.tokens, text.hidden_size)
        mask = torch.empty(1, 1, load.tokens, load.tokens)  # given, since making one needs values
    if not full:
        from_start = load.projector or load.adapter == "LoRA"
        first = 0 if from_start or not load.layers else chosen_layers(_named(load.layers), text.num_hidden_layers)[0]
        model.model.layers[first].register_forward_pre_hook(_begins_here)
    with FlopCounterMode(display=False) as counting:
        model(inputs_embeds=words, attention_mask=mask, logits_to_keep=1, use_cache=False).logits.sum().backward()
    return int(counting.get_total_flops())


def _named(layers: str | tuple[int, ...]) -> str | list[int]:
    return layers if isinstance(layers, str) else list(layers)


def _begins_here(layer: object, given: tuple[object, ...]) -> tuple[object, ...]:
    """The gradient goes down to the input of this layer."""
    states, *more = given
    return states.detach().requires_grad_(), *more  # type: ignore[attr-defined]
