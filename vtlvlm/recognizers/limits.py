"""The memory that a single clip may take, for models that come from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vtlvlm.data.sampling import FrameSampling
from vtlvlm.errors import UsageError
from vtlvlm.vtem.extractors import FeatureExtractor

MOST_PIXELS = 4 << 30
"""Bytes of a clip's frames, or of any values computed from them, at most"""


def require_modest(sampling: FrameSampling, extractor: FeatureExtractor, views: int = 1) -> None:
    """Refuse a file's settings if a single clip would need too much memory.

    Args:
        sampling: Frame sampling for a file.
        extractor: Reads the frames, up to ``chunk`` of them at once.
        views: Views of a clip that are decoded before they are read.
    """
    pictures = sampling.frames * sampling.size**2 * 3 * views
    seen = min(sampling.frames, extractor.chunk) * extractor.image_size**2 * 3 * 4
    if max(pictures, seen) > MOST_PIXELS:
        several = f" in {views} views" if views > 1 else ""
        raise UsageError(
            f"{sampling.frames} frames of {sampling.size} pixels{several}, {extractor.image_size} in the extractor: more than "
            f"{MOST_PIXELS >> 30} GiB a clip; get the model again, or train it with fewer"
        )


def require_modest_features(sampling: FrameSampling, extractor: FeatureExtractor, path: Path) -> None:
    """Refuse a file's settings if the features of a single clip would need too much memory.

    Args:
        sampling: Frame sampling for a file.
        extractor: Built; it can be without memory.
        path: The file, for the message.
    """
    step = extractor.cells * extractor.dim
    if 4 * step * extractor.steps(sampling.frames) > MOST_PIXELS:
        raise UsageError(
            f"{path}: {sampling.frames} frames of {step:,} features: more than {MOST_PIXELS >> 30} GiB a clip; get the file again, or "
            "make it again with fewer"
        )


def largest_value(compute: Callable[[], object]) -> int:
    """Bytes of the largest tensor that a computation gives or passes on. Nothing is computed, and no memory is taken.

    Args:
        compute: Makes its modules and tensors itself, on torch's default device.
    """
    with torch.device("meta"), torch.inference_mode(), _Largest() as largest:
        compute()
    return largest.bytes


class _Largest(TorchFunctionMode):
    """Notes the bytes of the largest tensor that a function of torch gives."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return found
