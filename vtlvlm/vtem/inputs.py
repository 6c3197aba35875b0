"""What the tokens of a window hold: its mean, and how it changes (Sec. III-A leaves the pooling of eq. 2 open)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlvlm.errors import UsageError


@dataclass(frozen=True)
class TokenInputs:
    """What the projection reads for each window and cell, beside the window's mean. All zeros is the paper's form.

    Attributes:
        delta_weight: Weight of the signed change between windows, in units of its own standard deviation, so that a code can encode the
            direction of time. The change of window w is (p_{w+1} - p_{w-1}) / 2, with the window itself in place of a missing neighbour.
            The reconstruction target stays the same.
        abs_delta_weight: Weight of how much moves within a window: the mean over its steps of the absolute change from the step before,
            feature by feature and cell by cell, in units of its own standard deviation. The reconstruction then has to rebuild it too.
            Fast movement back and forth cancels out in a mean, and in ``delta_weight``.
        subtract_clip_mean: Fraction of the clip's own mean, cell by cell, that is subtracted from its windows, in [0, 1]. A codebook of few
            codes then spends fewer of them on who does it where. Must be 0 with ``target: llava``.
        lda_weight: Weight of linear discriminants of the training clips' actions in the projection's start, beside the principal
            components. The discriminants' outputs together have the square of this weight times the variance of all components. k-means
            then spends codes on what separates actions, and not on what varies most, which in uncontrolled video is the scene. The paper's
            stage 1 does not know the actions. Must be 0 with ``target: llava``.

    Raises:
        UsageError: A value out of range.
    """

    delta_weight: float = 0.0
    abs_delta_weight: float = 0.0
    subtract_clip_mean: float = 0.0
    lda_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delta_weight", "abs_delta_weight", "lda_weight"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"inputs.{name}={getattr(self, name)}: use 0 or more")
        if not 0 <= self.subtract_clip_mean <= 1:
            raise UsageError(f"inputs.subtract_clip_mean={self.subtract_clip_mean}: use a number from 0 to 1")

    @property
    def parts(self) -> int:
        """Vectors of width D that the projection reads side by side."""
        return 1 + bool(self.delta_weight) + bool(self.abs_delta_weight)


def delta(segments: Tensor) -> Tensor:
    """Central difference over windows (B, W, ...): (p_{w+1} - p_{w-1}) / 2, a missing neighbour replaced by the window itself."""
    after = torch.cat([segments[:, 1:], segments[:, -1:]], dim=1)
    before = torch.cat([segments[:, :1], segments[:, :-1]], dim=1)
    return (after - before) / 2


def abs_delta(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much each step (B, T', ...) differs from the one before, number by number. The first step has what the second has. A clip of one
    step has none, nor has padding (``mask`` (B, T') is False on it, at the end)."""
    change = torch.zeros_like(values)
    if values.shape[1] > 1:
        change[:, 1:] = (values[:, 1:] - values[:, :-1]).abs()
        if mask is not None:
            change = change * mask.reshape(mask.shape + (1,) * (values.ndim - 2))
        change[:, 0] = change[:, 1]
    return change


def at_steps(values: Tensor, steps: int) -> Tensor:
    """Values (B, T'', S, C) averaged onto feature steps (B, T', S, C), as :meth:`FeatureExtractor.step_times` averages times; in
    float32, or as they are where the numbers of steps agree."""
    if values.shape[1] == steps:
        return values
    flat = F.adaptive_avg_pool1d(values.flatten(2).transpose(1, 2).float(), steps)
    return flat.transpose(1, 2).unflatten(2, values.shape[2:])
