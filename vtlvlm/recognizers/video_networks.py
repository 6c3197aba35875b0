"""A video network as a recogniser, and its bundle: a video in, the most likely actions out, without a language model.

The network is one that was trained whole, or a frozen extractor below a linear head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip
from vtlvlm.errors import UsageError
from vtlvlm.recognizers.bundles import BUNDLE, is_clip_length, read_description
from vtlvlm.recognizers.limits import MOST_PIXELS, largest_value, require_modest, require_modest_features
from vtlvlm.recognizers.networks import Plan, Trained, export_network, mean_probabilities, own_settings, read_network
from vtlvlm.recognizers.probe import matching_extractor
from vtlvlm.recognizers.recognizer import Answer, VideoRecognizer, Views
from vtlvlm.skeleton.backbone import ClipNetwork
from vtlvlm.skeleton.heads import Head, TapShape
from vtlvlm.skeleton.video_networks import FrozenFeatures, VideoNetwork
from vtlvlm.stages.network_inputs import require_mean
from vtlvlm.stages.parts import build_from, settings_of
from vtlvlm.stages.recognition import Recognition
from vtlvlm.system.files import write_json
from vtlvlm.system.text import shown
from vtlvlm.vtem.extractors import FeatureExtractor

KIND = "video network"


# -- making ----------------------------------------------------------------------------------------------------------------------------


def export_video_network(folder: Path, checkpoint: Path, weights: str | None = None) -> Path:
    """Bundle a video network for ``classify``: ``bundle.json``, ``network.safetensors``. The weights of a frozen extractor are in it.

    Args:
        folder: To create; it appears whole or not at all.
        checkpoint: Of a video network.
        weights: A frozen extractor's weights, a file or ``package:NAME``; None for their place in training.

    Raises:
        UsageError: The folder exists, the extractor's weights are not there or others, or they are given for a network that has none.
    """
    stage = Recognition.load_from_checkpoint(checkpoint)
    if isinstance(stage.network, FrozenFeatures):
        extractor: Any = with_weights(stage, checkpoint, weights, "name its weights with --weights")
        extractor.weights, extractor.compiled = None, False  # the bundle has the weights
    elif weights is not None:
        raise UsageError(f"{checkpoint}: a network that was trained whole, whose weights are its own: leave --weights out")
    return export_network(folder, checkpoint, stage, {"kind": KIND, "sampling": stage.provenance()["sampling"]})


def with_weights(stage: Recognition, checkpoint: Path, weights: str | None, remedy: str) -> FeatureExtractor:
    """Load the weights of a frozen extractor, which its checkpoint leaves out, into the stage's network.

    Args:
        stage: Loaded from the checkpoint.
        checkpoint: For messages.
        weights: The weights, a file or ``package:NAME``; None for their place in training.
        remedy: What to do where they are others, for the message.

    Returns:
        The extractor.

    Raises:
        UsageError: The weights are not there, or not those that made the features of the training.
    """
    network: Any = stage.network
    settings, made = settings_of(network.extractor), stage.provenance()["extractor"]
    network.extractor = found = matching_extractor(settings, made, checkpoint, weights, remedy)
    return found


def note_length(folder: Path, data: NTUDataModule) -> None:
    """Write the median length of the training clips into a bundle.

    Args:
        folder: The bundle.
        data: Of the run, set up.

    Raises:
        UsageError: They are other training clips than the network's, or their lengths are unknown.
    """
    described, rows = read_description(folder), data.split.require("train")
    if (made := described["origin"].get("train_hash")) != data.train_hash:
        raise UsageError(f"{data.source.root}: other training clips than those of the network ({shown(made, 40)}); name its videos")
    seconds = data.index.frames[rows] / data.index.fps[rows]
    known = seconds[np.isfinite(seconds) & (seconds > 0)]
    if not len(known):
        raise UsageError(f"{data.source.root}: the lengths of the clips are unknown")
    write_json(folder / BUNDLE, {**described, "clip_seconds": round(float(np.median(known)), 3)})


# -- reading ---------------------------------------------------------------------------------------------------------------------------


class NetworkRecognizer(VideoRecognizer):
    """A video network for single videos. It makes no event sentence: ``events`` of a recognition is None.

    The probabilities of ``classify`` are those of ``vtlvlm test`` on the same clip: of the mean log-probabilities over the test views of
    the training's configuration (``sampling.test_clips`` and ``test_crops``), divided by the temperature. ``segments`` takes the plain
    view of each window, as for all models of videos.

    Args:
        trained: The network, its head, its temperature and the categories.
        sampling: Frame sampling for a file, as in training.
        device: ``auto`` is the first GPU, or else the CPU.
        cached: Whether the training read features of 16 bits from a cache; features of videos are then rounded as there.
    """

    def __init__(self, trained: Trained, sampling: FrameSampling, device: str = "auto", cached: bool = False) -> None:
        super().__init__(trained.classes, sampling, _extractor(trained.network), device, sampling.test_views)
        self.network, self.head = trained.network.to(self.device).eval(), trained.head.to(self.device).eval()
        self.temperature, self.cached = trained.temperature, cached and isinstance(self.network, FrozenFeatures)

    @classmethod
    def from_run(cls, checkpoint: Path, device: str) -> NetworkRecognizer:
        """Load a network from its checkpoint, and a frozen extractor's weights from their place in training.

        Raises:
            UsageError: The checkpoint is damaged, or the extractor's weights are not there or others.
        """
        stage = Recognition.load_from_checkpoint(checkpoint)
        origin = stage.provenance()
        sampling = build_from(origin["sampling"], FrameSampling, checkpoint)
        require_modest_network(stage.network, sampling, checkpoint)
        if isinstance(stage.network, FrozenFeatures):
            with_weights(stage, checkpoint, None, "export a bundle with `vtlvlm export --weights`, and give that")
        return cls(Trained.of(stage), sampling, device, _cached(origin))

    @classmethod
    def from_bundle(cls, folder: Path, described: dict[str, Any], device: str) -> NetworkRecognizer:
        """Load a network from a bundle.

        Args:
            folder: The bundle.
            described: Its description. Only its format has been checked.
            device: Device of the network.

        Raises:
            UsageError: The bundle is damaged or incomplete.
        """
        path = folder / BUNDLE
        sampling, seconds = build_from(described.get("sampling"), FrameSampling, folder), described.get("clip_seconds")
        if not is_clip_length(seconds):
            raise UsageError(f"{path}: clip_seconds is no length of a clip; get the folder again, or export it again")

        def make(network: ClipNetwork) -> list[TapShape]:
            if isinstance(network, FrozenFeatures):
                network.extractor.build()
                network.build(network.extractor.dim)
            elif isinstance(network, VideoNetwork):
                network.build()
            else:
                raise UsageError(f"{path}: {type(network).__name__} is no video network; get the folder again, or export it again")
            return network.shapes(sampling.frames)

        def require(network: ClipNetwork, head: Head) -> None:
            require_mean(head)
            require_modest_network(network, sampling, path)

        trained = read_network(folder, described, ClipNetwork, Plan(make, require))  # type: ignore[type-abstract]
        recognizer = cls(trained, sampling, device, _cached(described["origin"]))
        recognizer.clip_seconds = seconds
        return recognizer

    def recognise(self, clip: Clip | Views) -> Answer:
        """The probabilities of a clip, or of several views of one, without events.

        Raises:
            UsageError: The network cannot compute with its settings.
        """
        clips = clip.clips if isinstance(clip, Views) else [clip]
        with own_settings():
            return Answer(mean_probabilities([self._log_probs(one.frames[None].to(self.device)) for one in clips], self.temperature))

    def _log_probs(self, frames: Tensor) -> Tensor:
        """(1, T, 3, H, W) uint8 -> (1, A)."""
        read = self.network.extractor(frames).half() if self.cached else frames
        logits: Tensor = self.head(self.network(read)).logits
        return logits.float().log_softmax(-1)


def _extractor(network: Any) -> FeatureExtractor:
    """What reads the frames in a video network."""
    found: FeatureExtractor = network.extractor if isinstance(network, FrozenFeatures) else network.trunk
    return found


def _cached(origin: dict[str, Any]) -> bool:
    """Whether a training read features from a cache, by its provenance."""
    return isinstance(origin.get("features"), str)


def require_modest_network(network: Any, sampling: FrameSampling, path: Path) -> None:
    """Refuse settings with which a single clip would need too much memory.

    Args:
        network: Of a bundle or checkpoint. A copy of it is made, without memory.
        sampling: Frame sampling for a file.
        path: The file, for the message.

    Raises:
        UsageError: The pictures of a clip, or any of the values computed from one view, would take more than 4 GiB.
    """
    require_modest(sampling, _extractor(network), sampling.test_clips * sampling.test_crops)
    if isinstance(network, FrozenFeatures):
        with torch.device("meta"):
            sketch = build_from(settings_of(network.extractor), FeatureExtractor, path)  # type: ignore[type-abstract]
            sketch.build()
        require_modest(sampling, sketch)  # the picture's size in a LLaVA's tower is known now
        require_modest_features(sampling, sketch, path)
        return

    size = network.image_size

    def compute() -> list[Tensor]:
        sketch = VideoNetwork(network.model, None, size)
        sketch.build()
        return sketch.eval()(torch.empty(1, sampling.frames, 3, size, size, dtype=torch.uint8))

    if largest_value(compute) > MOST_PIXELS:
        raise UsageError(
            f"{path}: {sampling.frames} frames of {size} pixels, from which {network.model} computes values of more than "
            f"{MOST_PIXELS >> 30} GiB a clip; get the file again, or make it again with fewer"
        )
