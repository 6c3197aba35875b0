"""Adaptive temporal pooling (eq. 2): T' feature steps -> W windows of equal cumulative salience, and back.

c_t is the normalised cumulative salience. The weight of step t in window w is W times the overlap of [c_{t-1}, c_t] and [w/W, (w+1)/W]. The
interior c_t and w/W together cut [0, 1] into T' + W - 1 pieces, each of one step and one window. The weights are therefore a sparse matrix
with T' + W - 1 entries: memory and time are linear in T' + W, and no two large sums are ever subtracted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlvlm.errors import DataError, UsageError


class PooledSegments(NamedTuple):
    """Windows of a clip and their positions."""

    segments: Tensor
    """(B, W, S, D) float32, the salience-weighted mean of each window and cell"""
    cumulative: Tensor
    """(B, T'+1) float64 in [0, 1], non-decreasing: the fraction of salience before the start of each step; the last entry is 1"""
    edges: Tensor
    """(B, W+1) float32, feature steps: window w spans edge w to edge w+1; step t spans t to t+1"""


class Pieces(NamedTuple):
    """The N = T' + W - 1 pieces of [0, 1] between neighbouring cuts, in order."""

    steps: Tensor
    """(B, N) int64, non-decreasing: the step each piece belongs to"""
    windows: Tensor
    """(B, N) int64, non-decreasing: the window each piece belongs to"""
    lengths: Tensor
    """(B, N) float64, differentiable; sum to one"""


class TemporalPooler(nn.Module, ABC):
    """Features (B, T', S, D) -> windows (B, W, S, D): an exact partition of the clip in temporal order, shared by its cells.

    Args:
        windows: W >= 1; may exceed T' (a step then covers several windows).
    """

    def __init__(self, windows: int = 16) -> None:
        super().__init__()
        if windows < 1:
            raise UsageError(f"pooler.windows={windows}: must be at least 1")
        self.windows = windows

    def build(self, dim: int) -> None:
        """Makes the weights for features of width D. Idempotent."""

    @abstractmethod
    def salience(self, features: Tensor) -> Tensor:
        """Features (B, T', S, D) float32 -> positive salience (B, T')."""

    def forward(self, features: Tensor, mask: Tensor | None = None) -> PooledSegments:
        """Pools standardised features (B, T', S, D); float32 also under autocast.

        Args:
            features: (B, T', S, D), finite on padding too.
            mask: (B, T') bool, False on padding, which must be at the end of a clip; None for no padding.

        Raises:
            DataError: a clip is all padding.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            cumulative = cumulate(self.salience(features), mask)
            segments = self.pool(features, cumulative)
            return PooledSegments(segments, cumulative, window_edges(cumulative.detach(), self.windows))

    def pool(self, values: Tensor, cumulative: Tensor) -> Tensor:
        """The mean over each window, for the features or any other values on the same steps.

        Args:
            values: (B, T', S, C), any width C.
            cumulative: (B, T'+1) from :meth:`forward`.

        Returns:
            (B, W, S, C) float32.
        """
        with torch.autocast(values.device.type, enabled=False):
            pieces = cut(cumulative, self.windows)
            flat = weighted_sums(values.float().flatten(2), pieces.steps, pieces.windows, self.windows * pieces.lengths, self.windows)
            return flat.unflatten(2, values.shape[2:])

    def unpool(self, segments: Tensor, cumulative: Tensor) -> Tensor:
        """Spreads windows over steps with the transposed weights, normalised for each step: a step gets the mean of its windows, weighted
        by its overlap with each.

        Args:
            segments: (B, W, S, C), any width C.
            cumulative: (B, T'+1) from :meth:`forward`.

        Returns:
            (B, T', S, C) float32; zero on padding.
        """
        with torch.autocast(segments.device.type, enabled=False):
            pieces = cut(cumulative, self.windows)
            share = cumulative.diff(dim=1).gather(1, pieces.steps)
            weights = torch.where(share > 0, pieces.lengths / share.clamp(min=torch.finfo(share.dtype).tiny), 0.0)
            flat = weighted_sums(segments.float().flatten(2), pieces.windows, pieces.steps, weights, cumulative.shape[1] - 1)
            return flat.unflatten(2, segments.shape[2:])


class EqualSaliencePooler(TemporalPooler):
    """Learned salience: s_t = softplus(f([h_t, h_t - h_{t-1}])) on the mean over cells, f a two-layer network.

    The last layer starts at zero, so that training starts at uniform pooling. The change of the first step is zero.

    Args:
        windows: W.
        hidden: width of the salience network.
    """

    floor = 1e-4
    """added to the salience, so that the fraction of no step underflows to zero"""

    def __init__(self, windows: int = 16, hidden: int = 64) -> None:
        super().__init__(windows)
        if hidden < 1:
            raise UsageError(f"pooler.hidden={hidden}: must be at least 1")
        self.hidden = hidden
        self.inner: nn.Linear | None = None
        self.outer: nn.Linear | None = None

    def build(self, dim: int) -> None:
        if self.inner is None:
            self.inner = nn.Linear(2 * dim, self.hidden)
            self.outer = nn.Linear(self.hidden, 1)
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)

    def salience(self, features: Tensor) -> Tensor:
        if self.inner is None or self.outer is None:
            raise UsageError("the pooler has no weights yet: call build(dim) first")
        mean = features.mean(dim=2) if features.shape[2] > 1 else features.squeeze(2)
        # [value, change] @ h_t = (value + change) @ h_t - change @ h_{t-1}: no (B, T', 2D) copy of a long video.
        value, change = self.inner.weight.chunk(2, dim=1)
        moved = F.linear(mean, change)
        before = torch.cat([moved[:, :1], moved[:, :-1]], dim=1)
        hidden = F.gelu(F.linear(mean, value, self.inner.bias) + moved - before)
        return F.softplus(self.outer(hidden)).squeeze(-1) + self.floor


class UniformPooler(TemporalPooler):
    """Windows of equal duration, the "fixed sampling" arm of Table II: constant salience."""

    def salience(self, features: Tensor) -> Tensor:
        return features.new_ones(features.shape[:2])


def cumulate(salience: Tensor, mask: Tensor | None) -> Tensor:
    """Salience (B, T') -> normalised cumulative salience (B, T'+1) float64, from 0 to 1.

    Raises:
        DataError: a clip is all padding.
    """
    salience = salience.double()  # at 54,000 steps, float32 would keep three digits of a step's fraction
    if mask is not None:
        if not bool(mask.any(dim=1).all()):
            raise DataError(f"clip {int((~mask.any(dim=1)).nonzero()[0])} of the batch is all padding: leave it out")
        salience = salience * mask
    cumulative = salience.cumsum(dim=1)
    return F.pad(cumulative / cumulative[:, -1:], (1, 0))


def cut(cumulative: Tensor, windows: int) -> Pieces:
    """Cuts [0, 1] at the interior of ``cumulative`` (B, T'+1) and at w/W."""
    batch, inner = cumulative.shape[0], cumulative.shape[1] - 2
    borders = torch.arange(1, windows, device=cumulative.device, dtype=cumulative.dtype) / windows
    cuts, order = torch.cat([cumulative[:, 1:-1], borders.expand(batch, -1)], dim=1).sort(dim=1, stable=True)
    is_border = order >= inner
    lengths = F.pad(cuts, (0, 1), value=1.0) - F.pad(cuts, (1, 0))
    return Pieces(F.pad((~is_border).cumsum(dim=1), (1, 0)), F.pad(is_border.cumsum(dim=1), (1, 0)), lengths)


def weighted_sums(values: Tensor, rows: Tensor, bags: Tensor, weights: Tensor, num_bags: int) -> Tensor:
    """Sums weights[b, n]·values[b, rows[b, n]] over the n of each bag.

    Args:
        values: (B, R, C) float32.
        rows: (B, N) int64 in [0, R).
        bags: (B, N) int64, non-decreasing, with every number of [0, num_bags) present.
        weights: (B, N), differentiable.
        num_bags: number of sums.

    Returns:
        (B, num_bags, C).
    """
    clip = torch.arange(values.shape[0], device=values.device)[:, None]
    numbers = torch.arange(num_bags, device=values.device).expand(values.shape[0], -1).contiguous()
    offsets = torch.searchsorted(bags, numbers) + clip * rows.shape[1]
    sums = F.embedding_bag(
        (rows + clip * values.shape[1]).flatten(),
        values.flatten(0, 1),
        offsets.flatten(),
        mode="sum",
        per_sample_weights=weights.to(values.dtype).flatten(),
    )
    return sums.unflatten(0, (values.shape[0], num_bags))


def window_edges(cumulative: Tensor, windows: int) -> Tensor:
    """Positions where cumulative salience (B, T'+1) reaches w/W, in feature steps: (B, W+1) float32, from 0 to the number of unpadded
    steps."""
    levels = torch.arange(windows + 1, device=cumulative.device, dtype=cumulative.dtype) / windows
    levels = levels.expand(cumulative.shape[0], -1).contiguous()
    ends = cumulative[:, 1:].contiguous()
    step = torch.searchsorted(ends, levels).clamp(max=ends.shape[1] - 1)
    start, end = cumulative.gather(1, step), ends.gather(1, step)
    return (step + (levels - start) / (end - start).clamp(min=torch.finfo(end.dtype).tiny)).float()


def window_spans(edges: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
    """Window edges (B, W+1) in feature steps -> start and end of each window (B, W, 2) in seconds, at least 0.

    Steps meet half-way between their centres ``times`` (B, T'); the first and last step are as long as their neighbours. Padding (mask
    False, at the end) has no duration.
    """
    times = times.float()
    if mask is not None:
        times = times.masked_fill(~mask, -torch.inf).cummax(dim=1).values
    middles = (times[:, 1:] + times[:, :-1]) / 2
    first, last = times[:, :1], times[:, -1:]
    if times.shape[1] > 1:
        first, last = 2 * first - middles[:, :1], 2 * last - middles[:, -1:]
    borders = torch.cat([first, middles, last], dim=1).clamp(min=0)  # (B, T'+1)
    step = edges.floor().long().clamp(0, times.shape[1] - 1)
    seconds = borders.gather(1, step) + (edges - step) * (borders.gather(1, step + 1) - borders.gather(1, step))
    return torch.stack([seconds[:, :-1], seconds[:, 1:]], dim=-1)


# -- the projection's inputs ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenInputs:
    """Inputs of the projection for each window and cell, beside the window's mean. All zeros is the paper's form.

    Attributes:
        delta_weight: Weight of the signed change between windows, in units of its own standard deviation. With it, a code can encode the
            direction of time. The change of window w is (p_{w+1} - p_{w-1}) / 2; the window itself replaces a missing neighbour. The
            reconstruction target stays the same.
        abs_delta_weight: Weight of the absolute change within a window, in units of its own standard deviation: the mean over the window's
            steps of the absolute difference from the step before, for each feature and cell. The reconstruction target then includes it.
            Fast movement back and forth cancels out in a mean and in ``delta_weight``, but not here.
        subtract_clip_mean: Fraction in [0, 1] of the clip's own mean that is subtracted from its windows, for each cell. A small codebook
            then spends fewer codes on person and background. Must be 0 with ``target: llava``.
        lda_weight: Weight of linear discriminants of the training clips' actions in the projection's start, beside the principal
            components. The discriminants' outputs together have the square of this weight times the variance of all components. k-means
            then spends codes on what separates actions, not on the scene, which varies most in uncontrolled video. The paper's stage 1 does
            not use the actions. Must be 0 with ``target: llava``.

    Raises:
        UsageError: A value is out of range.
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
        """Number of width-D vectors that the projection reads side by side."""
        return 1 + bool(self.delta_weight) + bool(self.abs_delta_weight)


def delta(segments: Tensor) -> Tensor:
    """Central difference over windows (B, W, ...): (p_{w+1} - p_{w-1}) / 2. The window itself replaces a missing neighbour."""
    after = torch.cat([segments[:, 1:], segments[:, -1:]], dim=1)
    before = torch.cat([segments[:, :1], segments[:, :-1]], dim=1)
    return (after - before) / 2


def abs_delta(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Absolute difference of each step (B, T', ...) from the step before. The first step copies the second. It is zero for a clip of one
    step and on padding (``mask`` (B, T') is False there, at the end)."""
    change = torch.zeros_like(values)
    if values.shape[1] > 1:
        change[:, 1:] = (values[:, 1:] - values[:, :-1]).abs()
        if mask is not None:
            change = change * mask.reshape(mask.shape + (1,) * (values.ndim - 2))
        change[:, 0] = change[:, 1]
    return change


def at_steps(values: Tensor, steps: int, stride: int = 1) -> Tensor:
    """Averages values (B, T'', S, C) onto feature steps (B, T', S, C), like :meth:`FeatureExtractor.step_times` averages times. The result
    is float32, or unchanged if the numbers of steps agree.

    Args:
        values: one for each frame, or any other number of steps.
        steps: T'.
        stride: frames per feature step. An incomplete stride repeats its last frame.
    """
    if values.shape[1] == steps:
        return values
    lacking = steps * stride - values.shape[1]
    if 0 < lacking < stride:
        values = torch.cat([values, values[:, -1:].expand(-1, lacking, -1, -1)], dim=1)
    flat = F.adaptive_avg_pool1d(values.flatten(2).transpose(1, 2).float(), steps)
    return flat.transpose(1, 2).unflatten(2, values.shape[2:])
