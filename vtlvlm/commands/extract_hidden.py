"""Runs event sentences through the language-model layers below the prompts, once for a whole training of stage 2."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Fill a cache with the inputs of the first layer with prompts, for training and validation clips. An interrupted run continues."""
    from typing import Any

    from vtlvlm.callbacks.cache_writing import HiddenWriter
    from vtlvlm.commands.trainer import fill, parts
    from vtlvlm.data.cache import EventCache
    from vtlvlm.data.cache_format import made_of
    from vtlvlm.data.hidden_cache import HiddenCacheWriter
    from vtlvlm.errors import UsageError
    from vtlvlm.stages.hidden_extraction import HiddenExtraction
    from vtlvlm.stages.prompt_tuning import PromptTuningModule
    from vtlvlm.stages.stored_states import stored_states

    cli = parts("extract-hidden", arguments, PromptTuningModule)
    if cli.config["ckpt_path"] is not None:
        raise UsageError("extract-hidden runs layers that stage 2 never trains, which no checkpoint changes: leave --ckpt_path out")
    if cli.datamodule.events is None:
        raise UsageError("extract-hidden reads event sentences: give the event cache with --data.events DIR (`vtlvlm tokenize` makes it)")
    reasoner, output = cli.model.reasoner, cli.config["output"]

    def make(data: Any, rank: int) -> tuple[HiddenCacheWriter, int]:
        """Needs the data to be set up; reads no weights yet."""
        cache = data.events_cache
        if not isinstance(cache, EventCache):
            raise UsageError(f"{cache.folder}: holds hidden states already; give the event cache (--data.events DIR)")
        stored = stored_states(reasoner, data.classes, cache.num_tokens, str(cli.trainer.precision))
        events = {name: made_of(cache, name, str) for name in ("vtem", "vtem_hash", "protocol", "train_hash")}
        size = {"num_tokens": cache.num_tokens, "event_dim": cache.event_dim}
        taken = {name: cache.provenance[name] for name in ("sampling",) if name in cache.provenance}
        provenance = {**events, **size, **taken, "events": cache.hash, **stored.made}
        return HiddenCacheWriter(output, provenance, rank), stored.row_bytes

    return fill(cli, HiddenExtraction(cli.model), HiddenWriter(make))
