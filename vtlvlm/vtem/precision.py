"""The precision of an extractor's products and convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16", "float16"]


@contextmanager
def computing(precision: Precision, device: str) -> Iterator[None]:
    """Let products and convolutions compute in a precision. Weights keep their type; autocast converts them for 16 bits.

    ``float32`` excludes TF32, which PyTorch allows in cuDNN's convolutions. A CPU computes ``tf32`` as float32. On the
    meta device, where nothing is computed, there is no autocast.
    """
    short = precision in ("bfloat16", "float16")
    before = [(place, name, getattr(place, name)) for place, name, _, _ in _switches()]
    try:
        for place, name, exact, rounded in _switches():
            setattr(place, name, exact if precision == "float32" else rounded)
        with torch.autocast(device, getattr(torch, precision) if short else None, enabled=short) if device != "meta" else nullcontext():
            yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _switches() -> list[tuple[Any, str, Any, Any]]:
    """PyTorch's switches for TF32 in products and convolutions: holder, attribute, value without TF32, value with it."""
    products, library = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(library, "conv"):  # PyTorch 2.9 and later, which refuse to mix these with the older ones
        return [(place, "fp32_precision", "ieee", "tf32") for place in (products, library.conv)]
    return [(place, "allow_tf32", False, True) for place in (products, library)]
