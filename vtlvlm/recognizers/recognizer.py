"""The Python interface: a video file in, the likeliest actions out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtlvlm.batches import EventTokens
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip, decode_sampled
from vtlvlm.errors import DataError, UsageError
from vtlvlm.lvlm.reasoner import EventReasoner
from vtlvlm.system.text import shown
from vtlvlm.vtem.extractors import FeatureExtractor
from vtlvlm.vtem.model import VTEM

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


class ActionRecognizer(Recognizer):
    """A trained pipeline for single files.

    Args:
        vtem: trained VTEM.
        reasoner: LLaVA with its adapter, built for ``classes``.
        classes: category names, in label order.
        sampling: how frames are taken from a file, as in training.
        device: where to run, ``auto`` for the first GPU if there is one.
    """

    suspects = "its weights or its LLaVA"
    """what is damaged where there are no probabilities"""

    def __init__(
        self,
        vtem: VTEM,
        reasoner: EventReasoner,
        classes: list[str],
        sampling: FrameSampling,
        device: str = "auto",
    ) -> None:
        super().__init__(classes, sampling, vtem.extractor, device)
        vtem.extractor.run = vtem.extractor.feature_map  # a model's file may ask for compiling, which takes minutes
        self.vtem = vtem.to(self.device).eval()
        self.reasoner = reasoner.to(self.device).eval()

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, vtem: str | Path | None = None, device: str = "auto", **computed: Any) -> Recognizer:
        """A recogniser from a bundle, a stage-2 run folder or a stage-2 checkpoint. The bundle of a linear probe, which ``vtlvlm probe
        --export`` makes, gives a ``ProbeRecognizer``, which has no event sentences.

        Args:
            path: folder with ``bundle.json``, folder with ``checkpoints/``, or a ``.ckpt`` file.
            vtem: where the stage-1 checkpoint lies now, if not where it was; bundles hold their own.
            device: ``auto``, ``cpu``, ``cuda``, …
            computed: settings of ``Llava`` that may differ from training: ``llava`` for its path, ``dtype`` (on a CPU float32 instead of
                half precision, unless it is given), ``attention``, ``quantization``, ``gradient_checkpointing``, ``max_positions``.

        Raises:
            UsageError: if something is missing or is not what it should be.
        """
        from vtlvlm.recognizers.loading import load  # which makes recognisers

        return load(Path(path), vtem, device, computed)

    def recognise(self, clip: Clip) -> tuple[Tensor, EventTokens]:
        """(A,) probabilities of a clip, and its event sentence."""
        events = self.vtem(clip.frames[None].to(self.device), clip.times[None].to(self.device))
        return self.reasoner.probabilities(self.reasoner(events.vectors).score)[0].cpu(), events


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
