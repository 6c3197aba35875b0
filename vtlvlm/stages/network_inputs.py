"""The inputs of recognition networks: joints, features or frames, where they come from, and what a trained network refuses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from vtlvlm.batches import FeatureBatch, SkeletonBatch, VideoBatch
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import ClipNetwork, Network
from vtlvlm.skeleton.datamodule import SkeletonDataModule
from vtlvlm.skeleton.heads import BottleneckHead, Head, LinearHead
from vtlvlm.skeleton.layouts import layout_named
from vtlvlm.skeleton.video_networks import FrozenFeatures, VideoNetwork
from vtlvlm.stages.feature_origin import feature_origin, require_extractor_of, require_same_features, require_same_sampling, sampling_of
from vtlvlm.stages.parts import build_from


class NetworkInput(ABC):
    """The input of one kind of network."""

    needed: ClassVar[dict[str, Any]] = {}
    """Types of the entries of a provenance that this input reads, beside those of every recognition network"""

    @abstractmethod
    def origin(self, network: Any, data: Any, training: bool) -> dict[str, Any]:
        """What identifies the input in a provenance, in plain types, with ``sampling``.

        Args:
            network: Not built yet.
            data: The data module, set up.
            training: Whether a training begins or continues.

        Raises:
            UsageError: The data are not of this kind.
        """

    @abstractmethod
    def require_same(self, made: dict[str, Any], network: Any, data: Any, what: str) -> None:
        """Refuse another input than that of a training.

        Args:
            made: Provenance of the training, whose ``needed`` entries are there.
            network: Of the configuration.
            data: The data module in use, set up.
            what: Was trained, for the message.

        Raises:
            UsageError: Names the first difference.
        """

    @abstractmethod
    def build(self, network: Any, head: Head, origin: dict[str, Any]) -> None:
        """Make the weights of network and head.

        Args:
            network: The network.
            head: The head.
            origin: Provenance of the training, with ``classes``.

        Raises:
            UsageError: The head does not read this kind of network.
        """

    @abstractmethod
    def of(self, batch: Any) -> Tensor:
        """The network's input of a batch."""


class JointsInput(NetworkInput):
    """The joints of bodies, for skeleton networks."""

    needed: ClassVar = {"layout": str, "bodies": int, "window": int}

    def origin(self, network: Any, data: Any, training: bool) -> dict[str, Any]:
        if not isinstance(data, SkeletonDataModule):
            raise UsageError(f"{type(network).__name__} reads joints: give data.class_path SkeletonDataModule")
        return {"layout": data.layout.name, "bodies": data.bodies, "window": data.window, "sampling": data.sampling_settings}

    def require_same(self, made: dict[str, Any], network: Any, data: Any, what: str) -> None:
        now = self.origin(network, data, training=False)
        for name, unit in (("layout", "joints"), ("bodies", "bodies"), ("window", "frames")):
            if made[name] != now[name]:
                raise UsageError(f"{what} was trained on {made[name]} {unit}, the data has {now[name]}: give the same, or train anew")
        old, new = ({**kept, **kept.get("init_args", {}), "init_args": None, "views": None} for kept in (made["sampling"], now["sampling"]))
        if different := [name for name in new if old.get(name) != new[name]]:
            one, two = (str(side.get(different[0])).rpartition(".")[2] or side.get(different[0]) for side in (old, new))
            raise UsageError(
                f"{what} was trained with another input ({different[0]}: {one} there, {two} here): set data.stream and data.preparation as "
                "they were, or train anew"
            )

    def build(self, network: Any, head: Head, origin: dict[str, Any]) -> None:
        layout = layout_named(origin["layout"])
        network.build(layout, origin["bodies"])
        head.build(network.shapes(origin["window"]), origin["classes"], layout)

    def of(self, batch: SkeletonBatch) -> Tensor:
        """(B, C, T, V, M)."""
        return batch.joints


class FramesInput(NetworkInput):
    """The frames of videos, for a network that is trained whole."""

    def origin(self, network: Any, data: Any, training: bool) -> dict[str, Any]:
        require_videos(network, data)
        if data.features is not None:
            raise UsageError("VideoNetwork trains on videos: leave data.features out, or take FrozenFeatures for a linear head on features")
        return {"sampling": data.sampling_settings}

    def require_same(self, made: dict[str, Any], network: Any, data: Any, what: str) -> None:
        build_from(made["sampling"], FrameSampling, what)
        require_same_sampling(made["sampling"], data.sampling_settings, what)

    def build(self, network: Any, head: Head, origin: dict[str, Any]) -> None:
        require_mean(head)
        network.build()
        self._build_head(network, head, origin)

    def _build_head(self, network: ClipNetwork, head: Head, origin: dict[str, Any]) -> None:
        frames = build_from(origin["sampling"], FrameSampling, "the checkpoint").frames
        head.build(network.shapes(frames), origin["classes"], None)

    def of(self, batch: FeatureBatch | VideoBatch) -> Tensor:
        """(B, T, 3, H, W) uint8 of frames, (B, T', S, D) of features."""
        return batch.features if isinstance(batch, FeatureBatch) else batch.frames


class FeaturesInput(FramesInput):
    """Features of a frozen extractor, from a cache or computed from the frames of videos."""

    needed: ClassVar = {"extractor": dict, "dim": int}

    def origin(self, network: Any, data: Any, training: bool) -> dict[str, Any]:
        require_videos(network, data)
        sampling_of(data)
        cache = data.features_cache
        if training and cache is not None:
            require_extractor_of(cache, network.extractor)
        return {**feature_origin(data, network.extractor), "dim": network.extractor.dim if cache is None else cache.dim}

    def require_same(self, made: dict[str, Any], network: Any, data: Any, what: str) -> None:
        build_from(made["sampling"], FrameSampling, what)
        require_same_features(made, data, network.extractor, what)

    def build(self, network: Any, head: Head, origin: dict[str, Any]) -> None:
        require_mean(head)
        network.build(origin["dim"])
        self._build_head(network, head, origin)


def require_videos(network: ClipNetwork, data: Any) -> None:
    """Refuse data of another kind than videos or features.

    Raises:
        UsageError: Says what to give.
    """
    name = type(network).__name__
    if not isinstance(data, NTUDataModule):
        raise UsageError(f"{name} reads videos or features: leave data.class_path out")
    for setting in ("events", "target_features"):
        if getattr(data, setting) is not None:
            raise UsageError(f"{name} reads videos or features: leave data.{setting} out")


def require_mean(head: Head) -> None:
    """Refuse heads that read more of a video network's features than their mean.

    Raises:
        UsageError: Names the heads that do not.
    """
    if not isinstance(head, LinearHead | BottleneckHead):
        raise UsageError(f"{type(head).__name__} reads a skeleton network: choose LinearHead for videos")


def input_of(network: ClipNetwork) -> NetworkInput:
    """The input of a network.

    Raises:
        UsageError: The network is of no known kind.
    """
    for kind, found in ((Network, JointsInput()), (FrozenFeatures, FeaturesInput()), (VideoNetwork, FramesInput())):
        if isinstance(network, kind):
            return found
    raise UsageError(f"{type(network).__name__}: derive the network from Network, FrozenFeatures or VideoNetwork")
