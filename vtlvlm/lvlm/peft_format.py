"""Reads and writes prompts in all layers in peft's format ``PREFIX_TUNING``: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtlvlm.errors import UsageError

BASE_KEY = "vtlvlm_base"
CONFIG, PEFT_FILE, NAME = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"


def write_prefix(
    folder: Path, key: Tensor, value: Tensor, llava: str, revision: str | None = None, base: dict[str, Any] | None = None
) -> None:
    """Write a prefix for ``peft.PeftModel.from_pretrained(llava, folder)``.

    Args:
        folder: An empty folder.
        key: (layers, KV heads, P, head width), one row for each layer of the language model.
        value: Shape as ``key``.
        llava: Folder or hub name of the prefix's model.
        revision: The hub's branch, tag or commit.
        base: ``base_identity`` of that model, for :func:`base_of`; peft ignores it.
    """
    layers, heads, tokens, width = key.shape
    described = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": llava,
        "revision": revision,
        "inference_mode": True,
        "num_virtual_tokens": tokens,
        "num_layers": layers,
        "num_attention_heads": heads,  # heads of keys and values, as peft writes for grouped queries
        "token_dim": heads * width,
        "encoder_hidden_size": heads * width,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    (folder / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    metadata = {"format": "pt"} if base is None else {"format": "pt", BASE_KEY: json.dumps(base)}
    save_file({NAME: prefix_table(key, value).contiguous()}, folder / PEFT_FILE, metadata=metadata)


def base_of(folder: str | Path) -> dict[str, Any] | None:
    """``base_identity`` of the model that the prefix was written for; None if peft saved it, which does not record one."""
    try:
        with safe_open(Path(folder) / PEFT_FILE, framework="pt") as file:
            found = (file.metadata() or {}).get(BASE_KEY)
    except (OSError, SafetensorError):
        return None  # read_prefix reports the fault
    return None if found is None else json.loads(found)


def prefix_table(key: Tensor, value: Tensor) -> Tensor:
    """Keys and values, each (layers, KV heads, P, head width), in the layout of peft's embedding: (P, layers · 2 · KV heads · head
    width)."""
    return torch.stack([key, value], 1).permute(3, 0, 1, 2, 4).flatten(1)


def read_prefix(folder: str | Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Read a prefix in peft's format.

    Args:
        folder: Holds both files.
        shape: Expected (layers, KV heads, P, head width).

    Returns:
        Keys and values of that shape, float32.

    Raises:
        UsageError: There is no prefix, or it has another shape.
    """
    layers, heads, tokens, width = shape
    try:
        found = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        kind = found["peft_type"]
        if kind != "PREFIX_TUNING":
            raise UsageError(f"{folder}: holds an adapter of type {kind}, not PREFIX_TUNING; give a prefix")
        flat = load_file(Path(folder) / PEFT_FILE)[NAME].float()
        number = len(flat)
        flat = flat.view(number, found["num_layers"], 2, found["num_attention_heads"], -1)
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{folder}: holds no readable {CONFIG} and {PEFT_FILE}; give a folder that peft's save_pretrained made") from error
    if (held := (flat.shape[1], flat.shape[3], flat.shape[4])) != (layers, heads, width):
        raise UsageError(
            f"{folder}: is for a model of {held[0]} layers with {held[1]} KV heads {held[2]} wide "
            f"({found.get('base_model_name_or_path')}), this one has {layers} with {heads}, {width} wide; give a prefix of this model"
        )
    if number != tokens:
        raise UsageError(f"{folder}: has {number} prompt tokens, the settings ask for {tokens}; set tokens to {number}")
    key, value = flat.permute(2, 1, 3, 0, 4)
    return key, value
