"""Turns videos into a feature cache, so that each clip is decoded only once."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Fill the cache with the features of a configuration's extractor: of stage 1, or of a linear head on frozen features. An interrupted
    run continues."""
    from dataclasses import asdict
    from importlib.metadata import version

    from vtlvlm.callbacks.cache_writing import FeatureWriter
    from vtlvlm.commands.trainer import fill, parts
    from vtlvlm.data.cache import FeatureCacheWriter
    from vtlvlm.data.cuda_video import require_gpu_decoding
    from vtlvlm.errors import UsageError
    from vtlvlm.stages.feature_extraction import FeatureExtraction
    from vtlvlm.stages.parts import is_ours, settings_of
    from vtlvlm.stages.stage import Stage
    from vtlvlm.system.malloc import freed_memory_kept

    cli = parts("extract", arguments, Stage)
    data, extractor = cli.datamodule, getattr(cli.model, "extractor", None)
    if extractor is None:
        raise UsageError("extract takes a configuration with a frozen extractor: stage 1, or a linear head on FrozenFeatures")
    if data.features or data.events:
        raise UsageError("extract reads videos: leave data.features and data.events out")
    if cli.config["ckpt_path"] is not None:
        raise UsageError("extract runs the configuration's extractor, which no checkpoint changes: leave --ckpt_path out")
    decoder = data.source.decoder
    if decoder == "cuda":
        require_gpu_decoding()
    extractor.build()
    provenance = {
        "extractor": extractor.fingerprint(),
        "extractor_settings": settings_of(extractor) if is_ours(extractor) else None,
        "sampling": data.sampling_settings,
        "view_seed": data.seed,
        "augmentation": None if data.augmentation is None else asdict(data.augmentation),
        "decoder": f"torchcodec {version('torchcodec')} on a GPU" if decoder == "cuda" else f"av {version('av')}",
    }
    steps = extractor.steps(data.sampling.frames)
    row_bytes = steps * (extractor.cells * extractor.dim * 2 + 4)
    output = cli.config["output"]
    writing = FeatureWriter(lambda _, rank: FeatureCacheWriter(output, provenance, rank), row_bytes)
    with freed_memory_kept():
        return fill(cli, FeatureExtraction(extractor), writing)
