"""How fast the features of a clip change, and how far they are from those of the training: what tells rest and strange scenes."""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 1e-6
"""Seconds; steps that are not so far apart show one picture"""


def change_rate(features: Tensor, times: Tensor, deviation: Tensor) -> Tensor:
    """The change of features in a second, between one step and the next: in each cell the root mean square over the features, in units of
    their deviation over the training clips; then the largest cell's, so that a small moving body counts.

    Args:
        features: (B, T', S, D), raw.
        times: (B, T') seconds, ascending.
        deviation: (D,) of the training clips.

    Returns:
        (B, T'-1, 2) float32: the seconds of the middle between two steps, and the change; NaN between steps of one picture, which a clip of
        few pictures has.
    """
    change = (features.float().diff(dim=1) / deviation.float()).square().mean(-1).sqrt().amax(-1)
    seconds = times.float().diff(dim=1)
    rate = torch.where(seconds > SHORTEST, change / seconds, torch.nan)
    return torch.stack([(times[:, 1:] + times[:, :-1]).float() / 2, rate], dim=-1)


def distance(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """How far clips look from the training clips: the mean square of their mean features, less the mean of the training clips, in units
    of the deviation there.

    Args:
        features: (B, T', S, D), raw.
        mean: (D,) of the training clips.
        deviation: (D,) of the training clips.

    Returns:
        (B,) float32, about 0.5 for training clips, since the mean over time takes part of their deviation away.
    """
    return ((features.float().mean(1) - mean.float()) / deviation.float()).square().mean((1, 2))
