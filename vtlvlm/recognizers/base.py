"""What every recogniser of single files does: decode, recognise, name the likeliest actions."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vtlvlm.batches import EventTokens
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip, decode_sampled
from vtlvlm.errors import DataError, UsageError
from vtlvlm.system.text import shown
from vtlvlm.vtem.extractors import FeatureExtractor

MOST_PIXELS = 4 << 30
"""Bytes of a clip's frames"""


class Recognition(NamedTuple):
    """What was recognised in one file."""

    file: Path
    actions: list[tuple[str, float]]
    """likeliest first: category and its probability; the probabilities of all categories sum to one"""
    events: EventTokens | None
    """the clip's event sentence, B = 1; None from a linear probe, which has none"""
    seconds: float
    """wall time from file to answer"""


class Recognizer(ABC):
    """A trained model for single files.

    Args:
        classes: category names, in label order.
        sampling: how frames are taken from a file, as in training.
        extractor: what sees the frames.
        device: where to run, ``auto`` for the first GPU if there is one.
    """

    suspects = "its weights"
    """what is damaged where there are no probabilities"""

    def __init__(self, classes: list[str], sampling: FrameSampling, extractor: FeatureExtractor, device: str) -> None:
        require_modest(sampling, extractor)
        self.device = found_device(device)
        self.classes, self.sampling = list(classes), sampling

    @torch.inference_mode()
    def classify(self, file: str | Path, top: int = 5) -> Recognition:
        """The likeliest actions in a video file.

        Args:
            file: any video FFmpeg can read.
            top: how many actions to return, likeliest first.

        Raises:
            DataError: if the file cannot be decoded.
        """
        start = time.perf_counter()
        clip = decode_sampled(file, self.sampling)
        probabilities, events = self.recognise(clip)
        if not bool(torch.isfinite(probabilities).all()):
            raise DataError(f"{file}: the model gives no probabilities for it (NaN); {self.suspects} are damaged")
        best = probabilities.topk(min(top, len(self.classes)))
        actions = [(self.classes[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return Recognition(Path(file), actions, events, time.perf_counter() - start)

    @abstractmethod
    def recognise(self, clip: Clip) -> tuple[Tensor, EventTokens | None]:
        """(A,) probabilities of a clip, and its event sentence; None where the recogniser makes none."""


def found_device(name: str) -> torch.device:
    """A device by name; ``auto`` is the first GPU, if there is one.

    Raises:
        UsageError: no such device here.
    """
    if name.partition(":")[0] == "mps":
        raise UsageError(f"device {shown(name, 40)}: has no float64, in which windows are cut; use cpu")
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise UsageError(f"device {name}: cannot be used here ({str(error).splitlines()[0]}); use cpu") from error
    return device


def require_modest(sampling: FrameSampling, extractor: FeatureExtractor) -> None:
    """Refuse settings of a file that would take all memory for a single clip."""
    pictures = sampling.frames * sampling.size**2 * 3
    seen = min(sampling.frames, extractor.chunk) * extractor.image_size**2 * 3 * 4
    if max(pictures, seen) > MOST_PIXELS:
        raise UsageError(
            f"{sampling.frames} frames of {sampling.size} pixels, {extractor.image_size} in the extractor: more than "
            f"{MOST_PIXELS >> 30} GiB a clip; get the model again, or train it with fewer"
        )
