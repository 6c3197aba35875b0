"""Video networks of Table I's comparison: the features of a frozen extractor, or a torchvision network that is trained whole."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import Tensor

from vtlvlm.errors import UsageError
from vtlvlm.skeleton.backbone import ClipNetwork
from vtlvlm.skeleton.heads import TapShape
from vtlvlm.vtem.extractors import FeatureExtractor, VideoExtractor


class FrozenFeatures(ClipNetwork):
    """The features of a frozen extractor, as they are. They come from a feature cache, or are computed from frames.

    Nothing here is trained, and checkpoints leave the extractor out.

    Args:
        extractor: Frames to features. With a feature cache, the one that made it; its weights are then not needed.

    Raises:
        UsageError: The extractor is to be trained.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        if extractor.trainable:
            raise UsageError("network.extractor.trainable: FrozenFeatures trains no extractor; take VideoNetwork to train a video network")
        self.extractor = extractor
        self.dim = 0

    def build(self, dim: int) -> None:
        """Set the width D of the features."""
        self.dim = dim

    @cached_property
    def frozen_parameters(self) -> int | None:
        """Number of the extractor's parameters; None where its architecture cannot be made because a file is missing."""
        with torch.device("meta"):  # takes no memory
            sketch = copy.deepcopy(self.extractor)
            try:
                sketch.build()
            except UsageError:
                return None
        return sum(p.numel() for p in sketch.parameters())

    def shapes(self, frames: int) -> list[TapShape]:
        """The one shape of the features of T frames. Their spatial cells take the place of joints."""
        return [TapShape(self.dim, self.extractor.steps(frames), self.extractor.cells)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (N, T', S, D), or frames (N, T, 3, H, W) uint8 -> [(N, 1, D, T', S) float32].

        Raises:
            UsageError: The features have another width than those that the head was made for.
        """
        features = self.extractor(x) if x.ndim == 5 else x
        if features.shape[-1] != self.dim:
            raise UsageError(f"features of width {features.shape[-1]}, the head reads a width of {self.dim}: give the same features")
        return [features.float().permute(0, 3, 1, 2)[:, None]]


class VideoNetwork(ClipNetwork):
    """A torchvision video network that is trained whole: a 3D ResNet or a Video Swin Transformer, without its last layer.

    Args:
        model: One of r3d_18, mc3_18, r2plus1d_18, swin3d_t, swin3d_s, swin3d_b.
        weights: File of the weights that a new training starts from, such as torchvision's for Kinetics-400, or ``package:NAME``; None for
            random numbers. Checkpoints hold all weights.
        image_size: Side of the pictures, pixels. Frames of another size are resized (bilinear, antialiased).

    Raises:
        UsageError: There is no such model, or a size is below 1.
    """

    files = ("weights",)

    def __init__(self, model: str = "r3d_18", weights: str | None = None, image_size: int = 112) -> None:
        super().__init__()
        self.model, self.weights, self.image_size = model, weights, image_size
        self.trunk = VideoExtractor(model, weights, grid=1, image_size=image_size, trainable=True)

    def build(self) -> None:
        """Make the weights, as random numbers. Idempotent."""
        self.trunk.build()
        self.train(self.training)

    def begin(self) -> None:
        """Load the starting weights, if ``weights`` names them.

        Raises:
            UsageError: They cannot be read, or belong to another model.
        """
        if self.weights is not None:
            self.trunk.load_weights()

    def train(self, mode: bool = True) -> VideoNetwork:
        """Unlike an extractor's, the batch norms of a network in training take the statistics of the batch."""
        super().train(mode)
        if self.trunk.backbone is not None:
            self.trunk.backbone.train(mode)
        return self

    def shapes(self, frames: int) -> list[TapShape]:
        """The one shape of the features of T frames. Their spatial cells take the place of joints."""
        side = -(-self.image_size // (32 if self.model.startswith("swin") else 16))
        return [TapShape(self.trunk.dim, self.trunk.steps(frames), side**2)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Frames (N, T, 3, H, W) uint8 -> features [(N, 1, D, T', S) float32] of the S cells of each step."""
        found = self.trunk.feature_map(self.trunk.images(x))
        return [found.float().flatten(3).transpose(1, 2)[:, None]]
