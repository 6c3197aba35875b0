"""One file, or one LLaVA, of the shards that ModelParallelStrategy leaves."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as shards
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from vtlvlm.errors import UsageError
from vtlvlm.lvlm.llava import RECORD as COMPOSED
from vtlvlm.lvlm.llava import load_llava, projector_origin, quiet, require_same_base
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.stages.checkpoints import METADATA, RECORD, load_checkpoint
from vtlvlm.stages.parts import build_from
from vtlvlm.stages.prompt_tuning import PromptTuningModule

WEIGHTS = "state_dict."
BASE = "reasoner.base."


def gather(folder: Path) -> dict[str, Any]:
    """The checkpoint in a folder of shards, with its weights whole and without the optimiser, which only the shards can continue.

    Raises:
        UsageError: No such folder, or shards that are missing or damaged.
    """
    if not (folder / METADATA).is_file():
        raise UsageError(f"{folder}: holds no sharded checkpoint (no {METADATA}); give a folder such as RUN/checkpoints/last.ckpt")
    checkpoint = torch.load(folder / METADATA, map_location="cpu", weights_only=True)
    try:
        stored = shards.FileSystemReader(folder).read_metadata().state_dict_metadata
        weights = {
            name: torch.empty(kept.size, dtype=kept.properties.dtype)
            for name, kept in stored.items()
            if name.startswith(WEIGHTS) and isinstance(kept, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
            shards.load(weights, checkpoint_id=folder, no_dist=True)
    except (Exception, shards.CheckpointException) as error:  # a missing shard, a cut one, one of another run: torch raises what it likes
        reason = str(error).strip().splitlines()[-1][:200]
        raise UsageError(f"{folder}: its shards cannot be read ({reason}); copy the folder again, with all its files") from error
    return {**checkpoint, "state_dict": {name.removeprefix(WEIGHTS): tensor for name, tensor in weights.items()}}


def consolidate(source: Path, output: Path, llava: str | None = None) -> Path:
    """Write an ordinary checkpoint, or the LLaVA with the trained weights in it.

    Args:
        source: a sharded checkpoint; for a LLaVA also an ordinary one.
        output: ``*.ckpt`` for a checkpoint without its optimiser, else the LLaVA's folder. It appears whole or not at all.
        llava: where the base model lies now, if not where it was trained.

    Returns:
        ``output``

    Raises:
        UsageError: a source that is no such checkpoint or trained no weights of the language model, or an output that exists.
    """
    if output.exists():
        raise UsageError(f"{output} already exists: name a new file or folder")
    sharded = source.is_dir()
    if not sharded and output.suffix == ".ckpt":
        raise UsageError(f"{source} is one file already")
    checkpoint = gather(source) if sharded else load_checkpoint(source)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        if output.suffix == ".ckpt":
            torch.save(checkpoint, partial)
        else:
            _save_llava(checkpoint, source, partial, llava)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return output


def _save_llava(checkpoint: dict[str, Any], source: Path, folder: Path, llava: str | None) -> None:
    record = checkpoint[RECORD]
    if record["stage"] != PromptTuningModule.stage or record["provenance"].get("adapter") != "FullFineTuning":
        raise UsageError(
            f"{source}: trained no weights of the language model, so that its LLaVA is the one it names; give a full fine-tuning"
        )
    reasoner = build_from(record["settings"]["init_args"]["reasoner"], EventReasoner, source)
    name = llava or reasoner.llava
    require_same_base(record["provenance"]["llava"], name, reasoner.revision, str(source))
    model, tokenizer = load_llava(name, reasoner.revision, reasoner.dtype, vision=True)
    trained = {key.removeprefix(BASE): tensor for key, tensor in checkpoint["state_dict"].items() if key.startswith(BASE)}
    model.load_state_dict(trained, strict=False)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if projector_origin(name) == "untrained" and not reasoner.train_projector:
        (folder / COMPOSED).write_text(json.dumps({"source": str(source), "projector": "untrained"}, indent=2) + "\n")
