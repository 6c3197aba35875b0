"""Changes the look of training clips on the device, in the same way for all frames of a clip.

The sampling chooses frames, cut and mirroring, because these are cheapest while decoding. The changes here need the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor

from vtlvlm.errors import UsageError


@dataclass(frozen=True)
class ClipAugmentation:
    """Colour, blur and erasing, drawn once for each clip. Zero switches a change off.

    Args:
        brightness: Largest relative change, at least 0: factors from 1 - b to 1 + b; likewise ``contrast`` and ``saturation``.
        contrast: As ``brightness``.
        saturation: As ``brightness``.
        hue: Largest turn of the colour circle, in [0, 0.5].
        grayscale: Probability of removing all colour, in [0, 1].
        blur: Probability of a Gaussian blur of 0.1 to 2 pixels, in [0, 1].
        erase: Probability of blackening a rectangle of 2 to 33 % of the picture, in [0, 1].
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        highest = {"brightness": float("inf"), "contrast": float("inf"), "saturation": float("inf"), "hue": 0.5}
        for name in self.__dataclass_fields__:
            value, limit = getattr(self, name), highest.get(name, 1.0)
            if not 0 <= value <= limit:
                raise UsageError(f"augmentation: {name}={value}: at least 0" + (f" and at most {limit:g}" if limit < float("inf") else ""))

    def __call__(self, frames: Tensor, seeds: Sequence[str]) -> Tensor:
        """Change clips.

        Args:
            frames: (B, T, 3, H, W) uint8.
            seeds: B texts. Each seeds the draw of its clip, which depends neither on the batch nor on the number of processes.

        Returns:
            (B, T, 3, H, W) uint8.
        """
        return torch.stack([self._clip(clip, seed) for clip, seed in zip(frames, seeds, strict=True)])

    def _clip(self, clip: Tensor, seed: str) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # the transforms draw from the CPU's generator on every device
            torch.random.default_generator.manual_seed(int.from_bytes(blake2b(seed.encode(), digest_size=8).digest(), "little"))
            changed: Tensor = self._transforms(clip)
            return changed

    @cached_property
    def _transforms(self) -> torch.nn.Module:
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue),
                v2.RandomGrayscale(self.grayscale),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], self.blur),
                v2.RandomErasing(self.erase),
            ]
        )
