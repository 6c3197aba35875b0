"""What a bundle knows of its training clips, which are read from the data of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vtlvlm.data.cache import EventCache
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import decode_sampled
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.bundles import BUNDLE, read_description
from vtlvlm.recognizers.loading import require_bundle, vtem_of
from vtlvlm.recognizers.recognizer import as_for_single_clips, found_device
from vtlvlm.segments.motion import rest_below
from vtlvlm.stages.parts import build_from
from vtlvlm.system.files import write_json
from vtlvlm.vtem.clip_facts import change_rate
from vtlvlm.vtem.model import VTEM

READ = 48
"""Training clips that are read to tell rest from movement, at most"""


def training_rows(data: NTUDataModule) -> tuple[EventCache, NDArray[np.int64]]:
    """The event cache of data that are set up, and its rows of the training clips.

    Raises:
        UsageError: There is no event cache.
    """
    if not isinstance(data.events_cache, EventCache):
        raise UsageError("the training clips are read from an event cache: name one with --events")
    return data.events_cache, data.events_cache.rows(data.clip_names(data.split.require("train")), 0)


def require_same_training(described: dict[str, Any], data: NTUDataModule) -> None:
    """Refuse other data than those of a bundle's training.

    Raises:
        UsageError: The training clips differ.
    """
    if (made := described["origin"]["reasoning"].get("train_hash")) != data.train_hash:
        raise UsageError(f"{data.source.root}: other training clips than those of the model ({made}); name the videos of its training")


def clip_seconds(data: NTUDataModule) -> float:
    """The median length of the training clips in seconds, as far as their events reach.

    Args:
        data: Set up, with an event cache.
    """
    cache, rows = training_rows(data)
    return float(np.median(cache.spans(rows)[:, -1, 1].numpy()))


@torch.inference_mode()
def moving_from(vtem: VTEM, sampling: FrameSampling, data: NTUDataModule, device: torch.device) -> float | None:
    """The change of features in a second from which the training clips count as moving; None if nothing moves in them.

    Up to ``READ`` training clips are read, drawn at random with a fixed seed, as ``classify`` reads them.

    Args:
        vtem: Trained on ``data``.
        sampling: Of the frames.
        data: Set up, with videos.
        device: Where the features are computed.

    Raises:
        DataError: A clip cannot be read.
    """
    vtem = vtem.to(device).eval()
    as_for_single_clips(vtem.extractor, device)
    rows, index = data.split.require("train"), data.index
    motions = []
    for row in np.random.default_rng(0).permutation(rows)[:READ].tolist():
        clip = decode_sampled(index.file(row), sampling, num_frames=int(index.frames[row]), rate=float(index.fps[row]))
        features = vtem.extractor(clip.frames[None].to(device))
        times = vtem.extractor.step_times(clip.times[None].to(device))
        rates = change_rate(features, times, vtem.std)[0, :, 1].double().cpu().numpy()
        motions.append(rates[np.isfinite(rates)])
    return rest_below(motions)


def note_training(folder: Path, data: NTUDataModule, device: str = "auto") -> bool:
    """Write into a bundle how long its training clips are and, where the videos are there, from which change on they move.

    Args:
        folder: The bundle of a stage 2.
        data: Of its training, set up, with an event cache.
        device: Where features are computed.

    Returns:
        Whether it now knows when something moves.

    Raises:
        UsageError: The data are not those of the training.
        DataError: A training clip cannot be read.
    """
    described = read_description(folder)
    require_same_training(described, data)
    facts: dict[str, float] = {"clip_seconds": round(clip_seconds(data), 3)}
    require_bundle(folder, described)
    sampling = build_from(described.get("sampling"), FrameSampling, folder)
    if data.source.has_videos and sampling.mode == "uniform":  # other frames do not span the clip
        moving = moving_from(vtem_of(folder, described), sampling, data, found_device(device))
        facts |= {} if moving is None else {"moving": float(f"{moving:.4g}")}
    write_json(folder / BUNDLE, {**described, **facts})
    return "moving" in facts
