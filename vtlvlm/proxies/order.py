"""Does the order of the events matter to the model? Windows are shuffled and reversed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REVERSED = (
    ("sitting down", "standing up (from sitting position)"),
    ("wear jacket", "take off jacket"),
    ("wear a shoe", "take off a shoe"),
    ("wear on glasses", "take off glasses"),
    ("put on a hat/cap", "take off a hat/cap"),
    ("put on headphone", "take off headphone"),
    ("put on bag", "take off bag"),
    ("put something into a bag", "take something out of a bag"),
    ("walking towards each other", "walking apart from each other"),
)
"""Actions of NTU RGB+D that are each other's reversal in time"""


def in_order(vectors: Tensor, order: NDArray[np.int64], cells: int) -> Tensor:
    """Sentences with their windows in another order.

    Args:
        vectors: (n, M, E), window by window.
        order: (n, W) the window that comes at each place.
        cells: S.
    """
    windows = vectors.unflatten(1, (-1, cells))
    places = torch.from_numpy(order)[:, :, None, None].expand_as(windows)
    return windows.gather(1, places).flatten(1, 2)


def shuffles(number: int, windows: int, seed: int) -> NDArray[np.int64]:
    """(n, W) random orders."""
    return np.random.default_rng([seed, 11]).permuted(np.tile(np.arange(windows), (number, 1)), axis=1)


def backwards(number: int, windows: int) -> NDArray[np.int64]:
    """(n, W) the reversed order."""
    return np.tile(np.arange(windows)[::-1], (number, 1))


def partners(classes: tuple[str, ...]) -> dict[int, int]:
    """For each action with a reversal among the classes, its place → that of the reversal."""
    place = {name: number for number, name in enumerate(classes)}
    found: dict[int, int] = {}
    for one, other in REVERSED:
        if one in place and other in place:
            found |= {place[one]: place[other], place[other]: place[one]}
    return found
