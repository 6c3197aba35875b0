"""Loads a LLaVA-family checkpoint for event sentences: frozen, without its vision tower."""

from __future__ import annotations

import json
import logging as standard_logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import get_checkpoint_shard_files

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.fused import Kernels
from vtlvlm.system.streams import gist
from vtlvlm.system.text import shown

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Quantization = Literal["8bit", "4bit"]
COMPOSED = "composed.json"
"""Record that `vtlvlm compose` writes beside the weights"""
UNQUANTIZED = ["lm_head", "model.multi_modal_projector", "model.vision_tower"]
"""Parts that are not quantised: scores come from the head, the projector may be trained, the tower is dropped"""


@dataclass(frozen=True)
class Llava:
    """The LLaVA and its computation. Only ``path`` and ``revision`` affect the result, up to rounding.

    Attributes:
        path: Folder or hub name of a LLaVA-family checkpoint.
        revision: The hub's branch, tag or commit.
        dtype: Type of the frozen weights. Trained weights are float32.
        attention: The attention kernel: ``sdpa``, or another one that the adapter supports (``eager``, ``flash_attention_2``). Kernels that
            take no attention mask score the labels as a batch over the cached context. That is slower and rules out gradient checkpointing.
        quantization: ``8bit`` or ``4bit`` for the frozen language model, through bitsandbytes. None keeps its weights unquantised.
        gradient_checkpointing: Recompute each layer in the backward pass. Layers below the first trained one record nothing in either case.
            Measured for LLaVA-1.5-7B with prompts in its last 9 layers, 8 clips and 60 names: 14.4 GiB instead of 20.8, and 1.2 times
            the time; for 120 names 15.5 GiB instead of 25.9.
        kernels: ``liger`` fuses the small operations of a Llama on an NVIDIA GPU (extra ``kernels``): a training step takes 0.78 of its
            time, and 2 to 4 GB less, on an H100. ``torch`` runs everywhere.
        max_positions: Number of label tokens in one pass, for thousands of categories. The label tree is cut into passes that share one
            pass over the context (with ``eager`` each pass reads the context again). The scores stay the same. It saves memory in
            evaluation. In training it keeps the context's keys and values of all layers, which costs more than a tree of some hundred
            tokens. Kernels without a mask copy the context for every label of a pass, so they need this setting with long contexts. None
            reads all labels in one pass, and halves the pass each time that an evaluation on a GPU runs out of memory.

    Raises:
        UsageError: ``max_positions`` is below 1, or ``kernels`` is unknown.
    """

    path: str
    revision: str | None = None
    dtype: Dtype = "float32"
    attention: str = "sdpa"
    quantization: Quantization | None = None
    gradient_checkpointing: bool = False
    kernels: Kernels = "torch"
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if self.kernels not in get_args(Kernels):
            raise UsageError(f"kernels {self.kernels!r}: use {' or '.join(get_args(Kernels))}")
        if self.max_positions is not None and self.max_positions < 1:
            raise UsageError(f"max_positions {self.max_positions}: use 1 or more, or leave it out for one pass")


@contextmanager
def transformers_quiet() -> Iterator[None]:
    """Silence transformers' progress bars and advice, but not its errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_config(name: str, revision: str | None = None) -> LlavaConfig:
    """Read a LLaVA's config without its weights.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        revision: The hub's branch, tag or commit.

    Raises:
        UsageError: There is no such folder, the hub name cannot be downloaded, or it is another kind of model.
    """
    if "\0" in name or len(name) > 4_096:
        raise UsageError(f"{shown(name, 80)!r}: not the name of a LLaVA; give a folder or a hub name")
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UsageError(f"{name}: holds no config.json, so it is not a LLaVA; `vtlvlm compose {name}-llava` makes a small one")
    if not path.exists() and looks_local(name):
        raise UsageError(f"{name}: no such folder; `vtlvlm compose {name}` makes a small LLaVA there")
    if path.is_dir() and (path / "config.json").stat().st_size > LARGEST_CONFIG:
        raise UsageError(f"{name}: its config.json is larger than {LARGEST_CONFIG >> 20} MiB; give the folder of a LLaVA")
    try:
        with transformers_quiet():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:
        if path.exists():
            reason = _own_code(path) or gist(error, 160) or type(error).__name__
            raise UsageError(f"{name}: its config.json is not a model's ({reason}); give the folder of a LLaVA") from error
        at = f" at revision {revision}" if revision else ""
        raise UsageError(
            f"{name}: no such folder, and the download from the Hugging Face hub failed{at} (no network, HF_HUB_OFFLINE, or no such "
            "model); give a folder, or download it first"
        ) from error
    if not isinstance(config, LlavaConfig):
        raise UsageError(f"{name}: is a {config.model_type} model, not a LLaVA; give a LLaVA checkpoint, or make one with `vtlvlm compose`")
    _require_modest(config, name)
    return config


LARGEST_CONFIG, LARGEST_TOKENIZER = 16 << 20, 256 << 20
MOST_LAYERS, MOST_HEADS = 256, 16_384


def _own_code(folder: Path) -> str | None:
    """The reason if a folder's config asks for its own code."""
    try:
        asks = "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return "it asks for its own code, which is never run" if asks else None


def _require_modest(config: LlavaConfig, name: str) -> None:
    """Refuse a config whose model would take all memory or time, or that asks for kernels from elsewhere."""
    tables: list[tuple[str, Any]] = [("", config.to_dict())]
    while tables:
        place, table = tables.pop()
        for key, value in ((str(key), value) for key, value in table.items()):
            most = {"num_hidden_layers": MOST_LAYERS}.get(key, MOST_HEADS if key.startswith("num_") else 2**31)
            if isinstance(value, dict):
                tables.append((f"{place}{key}.", value))
            elif isinstance(value, int) and abs(value) > most:
                raise UsageError(f"{name}: its config.json has {place}{key} = {value:.3g}, at most {most:,} is taken; give a LLaVA")
            elif "implementation" in key and "/" in str(value):
                raise UsageError(f"{name}: its config.json asks for {place}{key} {shown(value, 80)}, code from elsewhere; give a LLaVA")
    for part in (config.text_config, config.vision_config):
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if not isinstance(number := getattr(part, key, None), int) or number < 1:
                raise UsageError(f"{name}: its config.json has {key} = {shown(number, 40)} for {part.model_type}; give a LLaVA")
    if not isinstance(positions := getattr(config.text_config, "max_position_embeddings", None), int) or positions < 1:
        raise UsageError(f"{name}: its config.json has max_position_embeddings = {shown(positions, 40)}; give a LLaVA")


def _require_weights(config: LlavaConfig, name: str, revision: str | None) -> None:
    """Refuse weight files that are too small for the config's model, before memory is taken for it."""
    files = weight_files(name, revision)
    if not files:
        raise UsageError(
            f"{name}: its weights cannot be read (no safetensors files; pickled ones are never loaded); convert them with save_pretrained"
        )
    held = 0
    for file in files:
        with safe_open(file, framework="pt") as stored:
            held += file.stat().st_size if stored.keys() else 0
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    tied = model.lm_head.weight.numel() if getattr(config.text_config, "tie_word_embeddings", False) else 0
    needed = sum(parameter.numel() for parameter in model.parameters()) - tied
    if needed > held * (4 if getattr(config, "quantization_config", None) else 1):
        raise UsageError(
            f"{name}: its config.json describes a model of {needed:,} numbers, its weights are {held:,} bytes; download or compose it again"
        )


def _require_own_files(name: str) -> None:
    """Refuse a local folder whose files name files outside it."""
    folder = Path(name)
    if not folder.is_dir():
        return
    for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", SAFE_WEIGHTS_INDEX_NAME):
        if (folder / file).is_file() and (folder / file).stat().st_size > LARGEST_TOKENIZER:
            raise UsageError(f"{name}: its {file} is larger than {LARGEST_TOKENIZER >> 20} MiB; give the folder of a LLaVA")
    for file, key in (("tokenizer_config.json", "fast_tokenizer_files"), (SAFE_WEIGHTS_INDEX_NAME, "weight_map")):
        if not (folder / file).is_file():
            continue
        try:
            named = json.loads((folder / file).read_text(encoding="utf-8")).get(key) or []
            names = list(named.values()) if isinstance(named, dict) else list(named)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{name}: its {file} cannot be read; download or compose it again") from error
        if wrong := [one for one in names if not isinstance(one, str) or not one or one != Path(one).name]:
            raise UsageError(f"{name}: its {file} names {shown(wrong[0], 80)}, a file outside the folder; download or compose it again")


def looks_local(name: str) -> bool:
    """Whether a name can only be a folder. Names on the hub are ``owner/model``."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1


def projector_width(config: LlavaConfig) -> int:
    """Width E of the vectors that LLaVA's projector reads."""
    layers = config.vision_feature_layer
    return config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The LLaVA's tokenizer.

    Raises:
        UsageError: The LLaVA has no readable tokenizer.
    """
    _require_own_files(name)
    try:
        with transformers_quiet():
            return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise UsageError(f"{name}: has no readable tokenizer; save the LLaVA's tokenizer beside its weights") from error


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Settings of bitsandbytes for the language model's matrices: 8-bit integers (arXiv 2208.07339), or 4-bit NormalFloat with quantised
    scales (arXiv 2305.14314).

    Args:
        quantization: ``8bit`` or ``4bit``.
        dtype: Type of computations with 4-bit weights.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise UsageError(f"quantization {quantization}: needs bitsandbytes; run: pip install 'vtlvlm[quantized]', or leave it out")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=UNQUANTIZED,
    )


def load_llava(
    name: str,
    revision: str | None = None,
    dtype: Dtype = "float32",
    vision: bool = False,
    attention: str = "sdpa",
    quantization: Quantization | None = None,
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """Load a LLaVA, frozen and in evaluation mode, onto the device of the surrounding ``torch.device`` context, or else the CPU.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        revision: The hub's branch, tag or commit.
        dtype: Type of the weights in memory; ``auto`` keeps the checkpoint's type. bfloat16 is very slow on most CPUs.
        vision: Keep the vision tower, which event sentences do not need.
        attention: The attention kernel, by transformers' name.
        quantization: Quantises the language model's matrices through bitsandbytes, on the current GPU; None keeps them unquantised.

    Returns:
        The model and its tokenizer.

    Raises:
        UsageError: As :func:`load_config`. Weights do not fit the config, or this machine lacks the attention kernel or quantisation.
    """
    config = load_config(name, revision)
    tokenizer = load_tokenizer(name, revision)
    settings: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype), "attn_implementation": attention}
    if quantization is not None:
        settings["quantization_config"] = quantization_config(quantization, torch.bfloat16 if dtype == "auto" else settings["dtype"])
        require_quantizer(quantization, settings["quantization_config"])
    safely: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    try:
        with transformers_quiet():
            _require_weights(config, name, revision)
            model, report = LlavaForConditionalGeneration.from_pretrained(name, revision=revision, **safely, **settings)
    except ImportError as error:
        raise UsageError(f"attention {attention!r}: {str(error).strip().splitlines()[0].rstrip('.')}; install it, or use sdpa") from error
    except torch.OutOfMemoryError:  # a RuntimeError too
        raise
    except UsageError:
        raise
    except Exception as error:  # the library raises anything on a damaged or hostile file
        reason = gist(error, 160) or type(error).__name__
        raise UsageError(f"{name}: its weights cannot be read ({reason}); download or compose it again") from error
    missing = sorted(key for key in report["missing_keys"] if vision or "vision_tower" not in key)
    if missing:
        raise UsageError(f"{name}: {len(missing)} weights are missing, {missing[0]} first; download or compose it again")
    if not vision:
        model.model.vision_tower = None
    return model.requires_grad_(False).eval(), tokenizer


def require_quantizer(quantization: Quantization, config: BitsAndBytesConfig) -> None:
    """Check with transformers that bitsandbytes works on this machine.

    Raises:
        UsageError: It does not work.
    """
    standard_logging.getLogger("bitsandbytes.autograd._functions").setLevel(standard_logging.ERROR)  # otherwise one line for each product
    try:
        AutoHfQuantizer.from_config(config).validate_environment()
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"quantization {quantization}: bitsandbytes does not work here ({reason}); use a GPU, or leave it out") from error


def projector_origin(name: str) -> Literal["pretrained", "untrained"]:
    """Whether a LLaVA's projector was trained: ``untrained`` in the folders of `vtlvlm compose`.

    Args:
        name: A folder, or a name on the Hugging Face hub.
    """
    try:
        record = json.loads((Path(name) / COMPOSED).read_text())
    except (OSError, ValueError):
        return "pretrained"
    return "untrained" if isinstance(record, dict) and record.get("projector") == "untrained" else "pretrained"


def weight_files(name: str, revision: str | None = None) -> list[Path]:
    """The weight files of a LLaVA, sorted; downloads those of a hub name if necessary.

    Raises:
        UsageError: The download failed.
    """
    folder = Path(name)
    if folder.is_dir():
        return sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, revision=revision, **lenient)
        if index is None:
            return [Path(cached_file(name, SAFE_WEIGHTS_NAME, revision=revision))]
        return sorted(map(Path, get_checkpoint_shard_files(name, index, revision=revision)[0]))
    except OSError as error:
        raise UsageError(
            f"{name}: its weights are incomplete, and the download from the Hugging Face hub failed (no network, HF_HUB_OFFLINE, or no "
            "safetensors); download them first, or give a folder"
        ) from error
