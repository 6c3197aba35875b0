"""Fits the rule of rejection of a bundle on the validation people of its run, and keeps it in the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.video import decode_sampled
from vtlvlm.errors import DataError, UsageError
from vtlvlm.recognizers.bundles import BUNDLE, REJECTION_FILE, digest, read_description
from vtlvlm.recognizers.recognizer import ActionRecognizer
from vtlvlm.recognizers.training_clips import require_same_training, training_rows
from vtlvlm.rejection.rule import MOST_TRAINING, SIGNALS, RejectionRule, mean_vectors
from vtlvlm.system.files import write_json

BATCH = 1024
"""Sentences that are read from the cache at once"""


def training_means(data: NTUDataModule) -> Tensor:
    """The mean event vectors (N, E) of the training clips, evenly spread over them if they are more than a rule holds.

    Args:
        data: Set up, with an event cache.
    """
    cache, rows = training_rows(data)
    if len(rows) > MOST_TRAINING:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_TRAINING).round().astype(np.int64)]
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        vectors = cache.vectors(part)
        if vectors is None:
            assert cache.table is not None
            vectors = torch.nn.functional.embedding(cache.ids(part), cache.table)
        found.append(mean_vectors(vectors))
    return torch.cat(found)


def fit_rejection(
    model: ActionRecognizer, data: NTUDataModule, acceptance: float, progress: Callable[[list[int]], Iterable[int]] = iter
) -> RejectionRule:
    """Fit the rule of rejection of a model: its validation clips are read as ``classify`` reads files.

    Args:
        model: Trained on ``data``.
        data: Set up, with an event cache, validation people and videos.
        acceptance: Share of actions of new people that is to be accepted, in (0, 1).
        progress: Wraps the rows of the validation clips, for a bar.

    Raises:
        UsageError: There are no validation people, too few clips, or no videos.
        DataError: A validation clip cannot be read.
    """
    if not len(clips := data.split.val):
        raise UsageError(
            "a rule of rejection is fitted on validation people, and the run has none (data.source.validation: 0); train with some"
        )
    if not data.source.has_videos:
        raise UsageError(
            f"{data.source.root}: no videos here, and a rule of rejection reads the validation videos: name their folder with --videos"
        )
    training = training_means(data).to(model.device)
    RejectionRule.fit(training[:1], np.zeros((len(clips), len(SIGNALS))), acceptance)  # refuses too few clips before the work
    rows = [_signals(model, data, row, training) for row in progress(clips.tolist())]
    return RejectionRule.fit(training, np.stack(rows), acceptance)


@torch.inference_mode()
def _signals(model: ActionRecognizer, data: NTUDataModule, row: int, training: Tensor) -> NDArray[np.float64]:
    index = data.index
    clip = decode_sampled(index.file(row), model.sampling, num_frames=int(index.frames[row]), rate=float(index.fps[row]))
    found = model.signals(clip, training)
    if not np.isfinite(found).all():
        raise DataError(f"{index.file(row)}: the model gives no probabilities for it (NaN); its weights are damaged")
    return found


def add_rejection(
    folder: Path, data: NTUDataModule, acceptance: float, device: str, progress: Callable[[list[int]], Iterable[int]] = iter
) -> RejectionRule:
    """Fit the rule of rejection of a bundle and write it there.

    Args:
        folder: The bundle; it has no rule.
        data: As for :func:`fit_rejection`.
        acceptance: As for :func:`fit_rejection`.
        device: Where the model computes.
        progress: As for :func:`fit_rejection`.

    Raises:
        UsageError: As :func:`fit_rejection`; or the data are not those of the training.
    """
    described = read_description(folder)
    require_same_training(described, data)
    model = ActionRecognizer.from_checkpoint(folder, device=device)
    assert isinstance(model, ActionRecognizer)
    rule = fit_rejection(model, data, acceptance, progress)
    save_file(rule.state(), folder / REJECTION_FILE)
    described["sha256"][REJECTION_FILE] = digest(folder / REJECTION_FILE)
    write_json(folder / BUNDLE, described)
    return rule
