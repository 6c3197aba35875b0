"""Merges the shards of ModelParallelStrategy into one file or one LLaVA."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as shards
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.base_identity import require_same_base
from vtlvlm.lvlm.llava import COMPOSED, load_llava, projector_origin, transformers_quiet
from vtlvlm.stages.checkpoints import METADATA, RECORD, load_checkpoint
from vtlvlm.stages.parts import build_from
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.sharded import ShardReader
from vtlvlm.system.files import appearing, replacing, write_json
from vtlvlm.system.places import require_apart
from vtlvlm.system.saving import saving
from vtlvlm.system.text import shown

STATE_PREFIX = "state_dict."
BASE_PREFIX = "reasoner.base."


def gather(folder: Path) -> dict[str, Any]:
    """The checkpoint of a folder of shards, with merged weights and without the optimiser. Only the shards can continue training.

    Raises:
        UsageError: The folder does not exist, or shards are missing or damaged.
    """
    if not (folder / METADATA).is_file():
        raise UsageError(f"{folder}: holds no sharded checkpoint (no {METADATA}); give a folder such as RUN/checkpoints/last.ckpt")
    checkpoint, reader = load_checkpoint(folder / METADATA), ShardReader(folder)
    try:
        weights = {
            name: torch.empty(kept.size, dtype=kept.properties.dtype)
            for name, kept in reader.description.state_dict_metadata.items()
            if name.startswith(STATE_PREFIX) and isinstance(kept, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
            shards.load(weights, storage_reader=reader, no_dist=True)
    except (Exception, shards.CheckpointException) as error:  # torch raises anything on a missing, cut or foreign shard
        reason = shown((str(error).strip() or type(error).__name__).splitlines()[-1], 200)
        raise UsageError(f"{folder}: its shards cannot be read ({reason}); copy the folder again, with all its files") from error
    return {**checkpoint, "state_dict": {name.removeprefix(STATE_PREFIX): tensor for name, tensor in weights.items()}}


def consolidate(source: Path, output: Path, llava: str | None = None) -> Path:
    """Write an ordinary checkpoint, or a LLaVA with the trained weights.

    Args:
        source: a sharded checkpoint; for a LLaVA also an ordinary checkpoint.
        output: ``*.ckpt`` for a checkpoint without its optimiser, else the LLaVA's folder. It appears complete or not at all.
        llava: the base model's present place, if it has moved since training.

    Returns:
        ``output``

    Raises:
        UsageError: the source is no such checkpoint or trained no weights of the language model, or the output exists.
    """
    if output.exists():
        raise UsageError(f"{output} already exists: name a new file or folder")
    sharded = source.is_dir()
    if not sharded or (source / METADATA).is_file():
        require_apart(output, [source], "the checkpoint or LLaVA")
    if not sharded and output.suffix == ".ckpt":
        raise UsageError(f"{source} is one file already: use it as it is")
    checkpoint = gather(source) if sharded else load_checkpoint(source)
    if output.suffix == ".ckpt":
        with saving(output), replacing(output) as partial:
            torch.save(checkpoint, partial)
    else:
        trained = _trained_llava(checkpoint, source, llava)
        with saving(output), appearing(output) as folder:
            _save_llava(*trained, folder, source)
    return output


def _trained_llava(
    checkpoint: dict[str, Any], source: Path, llava: str | None
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase, bool]:
    """The LLaVA with the checkpoint's weights, its tokenizer, and whether its projector was never trained.

    Raises:
        UsageError: The checkpoint trained no such weights, or they do not fit the LLaVA.
    """
    record = checkpoint[RECORD]
    if record["stage"] != PromptTuningModule.stage or record["provenance"].get("adapter") != "FullFineTuning":
        raise UsageError(f"{source}: did not train the language model, so its LLaVA is unchanged; give a checkpoint of full fine-tuning")
    reasoner = build_from(record["settings"], PromptTuningModule, source).reasoner
    name = llava or reasoner.llava.path
    require_same_base(record["provenance"]["llava"], name, reasoner.llava.revision, str(source))
    model, tokenizer = load_llava(name, reasoner.llava.revision, reasoner.llava.dtype, vision=True)
    trained = {key.removeprefix(BASE_PREFIX): tensor for key, tensor in checkpoint["state_dict"].items() if key.startswith(BASE_PREFIX)}
    try:
        foreign = model.load_state_dict(trained, strict=False).unexpected_keys
    except RuntimeError as error:
        raise UsageError(f"{source}: its weights do not fit {name} ({shown(str(error).strip().splitlines()[-1], 160)})") from error
    if foreign or not trained:
        what = f"{len(foreign)} weights that {name} does not have" if foreign else "no weights of a language model"
        raise UsageError(f"{source}: holds {what}; give a checkpoint of full fine-tuning")
    return model, tokenizer, projector_origin(name) == "untrained" and not reasoner.train_projector


def _save_llava(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, untrained: bool, folder: Path, source: Path
) -> None:
    with transformers_quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if untrained:
        write_json(folder / COMPOSED, {"source": str(source), "projector": "untrained"})
