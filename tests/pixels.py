"""A tiny real extractor for tests: no weights, features one can compute by hand."""

from typing import Any

import torch
from torch import Tensor

from vtlvlm.vtem.extractors import FeatureExtractor


class PixelExtractor(FeatureExtractor):
    """The mean colour of each of 2 x 2 cells, ``copies`` times.

    Args:
        image_size: Of the pictures.
        copies: D = 3·copies.
    """

    def __init__(self, image_size: int = 8, copies: int = 4) -> None:
        super().__init__(grid=2, image_size=image_size, chunk=4)
        self.copies = copies

    @property
    def dim(self) -> int:
        return 3 * self.copies

    def build(self) -> None:
        pass

    def load_weights(self) -> None:
        pass

    def fingerprint(self) -> dict[str, Any]:
        return {"extractor": "PixelExtractor"}

    def extract(self, frames: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1).float(), self.grid)
        return pooled.flatten(2).transpose(1, 2).repeat(1, 1, self.copies).unflatten(0, frames.shape[:2])


DIM = 12


def training_features(clips: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(clips, 16, 4, DIM, generator=generator).cumsum(1)
    return walk @ torch.randn(DIM, DIM, generator=generator) * 3 + 5


def step_times(clips: int, steps: int = 16) -> Tensor:
    return ((torch.arange(steps) + 0.5) / 10).expand(clips, -1)
