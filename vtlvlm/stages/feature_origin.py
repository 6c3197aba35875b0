"""The origin of features, for the provenance of a training, and its comparison with the features or videos in use."""

from __future__ import annotations

from typing import Any

from vtlvlm.data.cache import FeatureCache
from vtlvlm.data.cache_format import made_of
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import UsageError
from vtlvlm.stages.compatibility import require_same_extractor
from vtlvlm.stages.parts import build_from, settings_of
from vtlvlm.vtem.clip_extractor import ClipExtractor
from vtlvlm.vtem.extractors import FeatureExtractor

HOW_MANY = ("views", "test_clips", "test_crops")
"""Sampling settings that change how often a clip is sampled, but not its frames"""


def sampling_of(data: Any) -> FrameSampling:
    """The sampling of a data module's batches.

    Raises:
        UsageError: The feature cache or the configuration has none that can be read.
    """
    return build_from(data.sampling_settings, FrameSampling, "the feature cache" if data.features else "data.sampling")


def feature_origin(data: Any, extractor: FeatureExtractor) -> dict[str, Any]:
    """Where the features of a training come from: sampling, feature cache and extractor, in plain types.

    Args:
        data: The data module, set up.
        extractor: The configuration's, which computes the features of videos.
    """
    cache: FeatureCache | None = data.features_cache
    return {
        "sampling": data.sampling_settings,
        "features": None if cache is None else cache.hash,
        "extractor": extractor.fingerprint() if cache is None else made_of(cache, "extractor", dict),
    }


def require_extractor_of(cache: Any, extractor: FeatureExtractor) -> None:
    """Refuse a feature cache that was made with other settings than the configuration's. Compares those that need no weights: ``classify``
    runs the configuration's extractor on new videos.

    Raises:
        UsageError: Names the first difference.
    """
    made, names = {"precision": "float32"} | made_of(cache, "extractor", dict), ["grid", "image_size", "chunk", "precision"]
    if not isinstance(extractor, ClipExtractor):  # the folder of a LLaVA may move
        names.append("model")
    settings = settings_of(extractor)["init_args"]
    asked = {"extractor": type(extractor).__name__, **{name: settings[name] for name in names if name in settings}}
    for name, value in asked.items():
        if str(made.get(name, value)) != str(value):  # some are stored as text
            raise UsageError(
                f"{cache.folder} was made with {name} = {made[name]!r}, the configuration's extractor has {value!r}: "
                "change the configuration, or extract anew"
            )


def require_same_features(made: dict[str, Any], data: Any, extractor: FeatureExtractor, what: str) -> None:
    """Refuse features of another extractor or sampling than those of a training.

    Args:
        made: Provenance of the training: ``extractor`` and ``sampling``.
        data: The data module in use, set up.
        extractor: Of the configuration.
        what: Was trained on the features, for the message.

    Raises:
        UsageError: They differ.
    """
    cache: FeatureCache | None = data.features_cache
    if cache is None:
        require_same_extractor(extractor, made["extractor"], what)
        require_same_sampling(made["sampling"], data.sampling_settings, what)
    elif (made["extractor"], made["sampling"]) != (made_of(cache, "extractor", dict), made_of(cache, "sampling", dict)):
        raise UsageError(f"{cache.folder} was made by another extractor or sampling than {what} was trained on: extract anew")


def require_same_sampling(made: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Refuse another sampling of videos than a training's. The number of views may differ.

    Args:
        made: Of the training, as class_path and init_args.
        now: The one in use.
        what: Was trained with it, for the message.

    Raises:
        UsageError: Names every difference.
    """
    old, new = (settings["init_args"] for settings in (made, now))
    other = [name for name in new if name not in HOW_MANY and old.get(name) != new[name]]
    if other:
        listed = "; ".join(f"{name}: {old.get(name)!r} there, {new[name]!r} asked for" for name in other)
        raise UsageError(f"{what} was trained with another sampling (data.sampling: {listed}): set the same")
