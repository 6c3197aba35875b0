"""Turns features (or videos) into event sentences with a trained stage 1."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Fill an event cache with a stage-1 checkpoint that was trained with the same settings. An interrupted run continues."""
    from pathlib import Path
    from typing import Any

    from vtlvlm.callbacks.cache_writing import EventWriter
    from vtlvlm.commands.guard import require_float64
    from vtlvlm.commands.trainer import fill, parts, run_folder
    from vtlvlm.data.cache import EventCacheWriter
    from vtlvlm.errors import UsageError
    from vtlvlm.stages.checkpoints import RECORD, load_checkpoint, named
    from vtlvlm.stages.compatibility import module_hash

    cli = parts("tokenize", arguments)
    require_float64(cli.trainer)
    if cli.config["ckpt_path"] is None:
        raise UsageError("no checkpoint given: add --ckpt_path RUN/checkpoints/best.ckpt of stage 1")
    checkpoint = named(cli.config["ckpt_path"], run_folder(cli.config["trainer"]))
    trained, module = load_checkpoint(checkpoint), cli.model
    module.require_same_settings(trained[RECORD], str(checkpoint), training=False)
    module.adopt(trained, checkpoint)
    made, table, output = module.provenance(), module.quantizer.table(), cli.config["output"]

    def writer(data: Any, rank: int) -> EventCacheWriter:
        """Checks the data first, which are set up by then."""
        module.require_same_data(data)
        provenance = {
            "vtem": str(Path(checkpoint).resolve()),
            "vtem_hash": module_hash(module),
            "protocol": made["protocol"],
            "train_hash": made["train_hash"],
            "sampling": made["sampling"],
            "features": data.features_cache.hash if data.features_cache is not None else None,
            "features_folder": str(data.features_cache.folder.resolve()) if data.features_cache is not None else None,
        }
        return EventCacheWriter(output, provenance, table, rank)

    row_bytes = module.vtem.num_tokens * (2 if table is not None else 2 * module.event_dim) + 8 * module.vtem.pooler.windows
    return fill(cli, module, EventWriter(writer, row_bytes))
