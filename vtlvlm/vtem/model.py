"""The Video-to-Event Mapper (Sec. III-A): frames or features -> event sentences."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vtlvlm.batches import EventTokens
from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.extractors import FeatureExtractor
from vtlvlm.vtem.poolers import PooledSegments, TemporalPooler
from vtlvlm.vtem.quantizers import Quantizer
from vtlvlm.vtem.statistics import KMEANS_SAMPLES_PER_CODE, least_squares, moments, principal_components

PCA_SAMPLES = 20_000
"""the covariance of the projection's start is taken over at most this many token vectors (more if the k-means start needs them)"""


class Encoding(NamedTuple):
    """Everything the losses and the health figures of stage 1 read."""

    tokens: EventTokens
    """ids (B, M), vectors (B, M, E) with straight-through gradient in training, spans (B, W, 2) seconds"""
    continuous: Tensor
    """(B, M, E) float32, the event vectors before quantisation"""
    pooled: PooledSegments
    """the windows: segments (B, W, S, D) in standardised units, cumulative salience, edges"""
    commitment: Tensor
    """scalar, already weighted"""
    reconstruction: Tensor
    """(B, T', S, D) standardised units: the features rebuilt from the tokens"""
    target: Tensor
    """(B, T', S, D) standardised features, without gradient"""


class VTEM(nn.Module):
    """Extract, standardise, pool, project, quantise; and back, for the reconstruction loss.

    :meth:`fit_statistics` starts everything from training features: the standardisation, the projection at their principal
    components (scaled as one, so that event vectors have a root mean square of 1), the decoder as its least-squares inverse, and the
    codebook.

    Args:
        extractor: frames -> features; only asked when frames are given.
        pooler: features -> windows.
        quantizer: event vectors -> codes.
        event_dim: E, the width the language model's projector expects.
        motion: weight of the change between windows in a token, so that a code can tell the direction of time; 0 is the paper's.
            The projection then reads [p_w, motion·(p_{w+1} - p_{w-1})/2] per cell, the change in units of its own standard
            deviation, a missing neighbour replaced by the window itself. The reconstruction's target stays the same.
        centre: share in [0, 1] of the clip's own mean, cell by cell, that is taken off its windows before they are projected, so that
            a codebook of few codes spends them on what happens rather than on who does it where; 0 is the paper's.
    """

    mean: Tensor
    std: Tensor
    motion_std: Tensor
    fitted: Tensor

    def __init__(
        self,
        extractor: FeatureExtractor,
        pooler: TemporalPooler,
        quantizer: Quantizer,
        event_dim: int = 1024,
        motion: float = 0.0,
        centre: float = 0.0,
    ) -> None:
        super().__init__()
        if event_dim < 1 or motion < 0 or not 0 <= centre <= 1:
            raise UsageError(f"VTEM: event_dim={event_dim}, motion={motion}, centre={centre}: need at least 1, at least 0, and 0 to 1")
        self.extractor = extractor
        self.pooler = pooler
        self.quantizer = quantizer
        self.event_dim = event_dim
        self.motion = motion
        self.centre = centre
        self.projection: nn.Linear | None = None
        self.decoder: nn.Linear | None = None

    @property
    def num_tokens(self) -> int:
        """M = W·S."""
        return self.pooler.windows * self.extractor.cells

    @property
    def num_codes(self) -> int:
        """K; 0 without a codebook."""
        return self.quantizer.num_codes

    def build(self) -> None:
        """Makes all weights and buffers, reading widths from the parts. Idempotent; after the process group exists, if there is one."""
        if self.projection is not None:
            return
        self.extractor.build()
        dim = self.extractor.dim
        self.pooler.build(dim)
        self.quantizer.build(self.event_dim)
        self.projection = nn.Linear(2 * dim if self.motion else dim, self.event_dim)
        self.decoder = nn.Linear(self.event_dim, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        if self.motion:
            self.register_buffer("motion_std", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, frames: Tensor, times: Tensor) -> EventTokens:
        """Frames (B, T, 3, H, W) uint8 at times (B, T) seconds -> event sentences."""
        return self.tokens(self.extractor(frames), self.extractor.step_times(times))

    def tokens(self, features: Tensor, times: Tensor, mask: Tensor | None = None) -> EventTokens:
        """Raw features (B, T', S, D) at times (B, T') seconds -> event sentences; ``mask`` (B, T') is False on padding."""
        return self._events(self._standardise(features), times, mask)[0]

    def encode(self, features: Tensor, times: Tensor, mask: Tensor | None = None) -> Encoding:
        """Raw features (B, T', S, D) at times (B, T') seconds -> tokens and everything their losses need.

        Raises:
            UsageError: stage 1 has not been trained, or features of another width.
        """
        standardised = self._standardise(features)
        target = standardised.detach()  # a target that is itself trained would make the loss meaningless
        tokens, continuous, pooled, commitment = self._events(standardised, times, mask)
        with torch.autocast(features.device.type, enabled=False):
            assert self.decoder is not None
            # The decoder is affine and a step's unpooling weights sum to one: decoding windows instead of steps is the same and cheaper.
            decoded = self.decoder(tokens.vectors).unflatten(1, (self.pooler.windows, -1))
            rebuilt = self.pooler.unpool(decoded, pooled.cumulative)
        return Encoding(tokens, continuous, pooled, commitment, rebuilt, target)

    @torch.no_grad()
    def fit_statistics(self, features: Tensor, seed: int = 0) -> None:
        """Starts VTEM from features (N, T', S, D) of training clips, and of those only; deterministic by seed.

        Raises:
            DataError: NaN or infinite features, or fewer token vectors than codes.
            UsageError: features of another width or number of cells than the extractor's.
        """
        self.build()
        self._check(features)
        assert self.projection is not None
        assert self.decoder is not None
        if features.shape[1] < 2 * self.pooler.windows:
            warnings.warn(f"{features.shape[1]} feature steps for {self.pooler.windows} windows: pooling needs twice as many", stacklevel=2)
        found = moments(features)
        self.mean.copy_(found.mean)
        self.std.copy_(found.std)

        limit = max(PCA_SAMPLES, KMEANS_SAMPLES_PER_CODE * self.num_codes)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[: -(-limit // self.num_tokens)]
        parts = features[order.to(features.device)].split(64)
        windows = torch.cat([self.pooler(self._scaled(part.to(self.mean.device))).segments for part in parts])
        if self.motion:
            spread = change_between(windows).square().flatten(0, 2).mean(dim=0).sqrt()
            self.motion_std.copy_(torch.where(spread > 1e-6, spread, 1.0))
        inputs, windows = self._projection_inputs(windows).flatten(0, 2), windows.flatten(0, 2)

        components = principal_components(inputs, self.event_dim)
        energy = float(components.variances.sum())
        if energy <= 0:
            raise DataError("all training features are equal: nothing to learn from; look at the videos and the sampling")
        scale = (self.event_dim / energy) ** 0.5
        rank = components.directions.shape[1]
        self.projection.weight.zero_()
        self.projection.weight[:rank] = scale * components.directions.T
        self.projection.bias.copy_(-self.projection.weight @ components.mean)
        vectors = self.projection(inputs)
        inverse = least_squares(vectors, windows)
        del inputs, windows  # half a gigabyte each at the demo's size, before k-means needs as much
        self.decoder.weight.copy_(inverse.weight)
        self.decoder.bias.copy_(inverse.bias)
        self.quantizer.initialise(vectors, seed)
        self.fitted.fill_(True)

    def _events(self, target: Tensor, times: Tensor, mask: Tensor | None) -> tuple[EventTokens, Tensor, PooledSegments, Tensor]:
        pooled = self.pooler(target, mask)
        with torch.autocast(target.device.type, enabled=False):
            assert self.projection is not None
            continuous = self.projection(self._projection_inputs(pooled.segments)).flatten(1, 2)
            quantized = self.quantizer(continuous)
            spans = window_spans(pooled.edges, times, mask)
        return EventTokens(quantized.ids, quantized.vectors, spans), continuous, pooled, quantized.loss

    def _projection_inputs(self, segments: Tensor) -> Tensor:
        """Windows (B, W, S, D) -> what the projection reads, (B, W, S, D or 2D)."""
        centred = segments - self.centre * segments.mean(dim=1, keepdim=True) if self.centre else segments
        if not self.motion:
            return centred
        return torch.cat([centred, self.motion * change_between(segments) / self.motion_std], dim=-1)

    def _standardise(self, features: Tensor) -> Tensor:
        if self.projection is None or not bool(self.fitted):
            raise UsageError("this VTEM knows no features yet: train stage 1 (vtlvlm fit with a stage1 config), or load its checkpoint")
        self._check(features)
        return self._scaled(features)

    def _scaled(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) / self.std

    def _check(self, features: Tensor) -> None:
        expected = (self.extractor.cells, len(self.mean))
        if features.ndim != 4 or tuple(features.shape[2:]) != expected:
            shape = tuple(features.shape)
            raise UsageError(
                f"features of shape {shape}, expected (clips, steps, {expected[0]}, {expected[1]}): made by another extractor?"
            )


def change_between(segments: Tensor) -> Tensor:
    """Central difference over windows (B, W, ...): (p_{w+1} - p_{w-1}) / 2, a missing neighbour replaced by the window itself."""
    after = torch.cat([segments[:, 1:], segments[:, -1:]], dim=1)
    before = torch.cat([segments[:, :1], segments[:, :-1]], dim=1)
    return (after - before) / 2


def window_spans(edges: Tensor, times: Tensor, mask: Tensor | None = None) -> Tensor:
    """Window edges (B, W+1) in feature steps -> start and end of each window (B, W, 2) in seconds, never below zero.

    Steps meet half-way between their centres ``times`` (B, T'); the outer ones are as long as their neighbours. Padding
    (mask False, at the end) takes no time.
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
