"""The Video-to-Event Mapper (Sec. III-A): frames or features -> event sentences."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vtlvlm.batches import EventTokens
from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.encoding import Encoding, Events
from vtlvlm.vtem.extractors import FeatureExtractor
from vtlvlm.vtem.poolers import TemporalPooler, TokenInputs, abs_delta, at_steps, delta, window_spans
from vtlvlm.vtem.quantizers import FSQQuantizer, IdentityQuantizer, Quantizer
from vtlvlm.vtem.statistics import KMEANS_SAMPLES_PER_CODE, Spread, discriminants, least_squares, moments, principal_components, variances

PCA_SAMPLES = 20_000
"""The start of the projection takes the covariance over at most this many token vectors (more if k-means needs them)"""
MOST_TOKENS = 2**20
"""Largest number of tokens of a clip (windows times cells)"""
ROWS_PER_INPUT = 4
"""With fewer training vectors for each input than this, a least-squares map overfits"""
Target = Literal["features", "llava"]


class VTEM(nn.Module):
    """Extracts, standardises, pools, projects and quantises; decodes for the reconstruction loss.

    :meth:`fit_statistics` starts everything from training features: the standardisation, the projection at their principal components
    (scaled as one, so that event vectors have a root mean square of 1), the decoder as its least-squares inverse, and the codebook.

    ``target="llava"`` has no decoder. The event vectors have to equal the features that the CLIP tower of a LLaVA computes from the same
    frames, in the tower's own units, because LLaVA's projector was trained on these. The projection starts at the least-squares map to
    them. Errors and the projection's weights are in units of the targets' training deviation, so that losses and learning rates mean the
    same for every target.

    Args:
        extractor: frames -> features; runs only if frames are given.
        pooler: features -> windows.
        quantizer: event vectors -> codes.
        event_dim: E, the width the language model's projector expects.
        inputs: further inputs of the projection, beside the mean of each window.
        target: the tokens rebuild either the standardised ``features`` (through the decoder) or the tower's features (``llava``).
    """

    mean: Tensor
    std: Tensor
    delta_std: Tensor
    abs_delta_mean: Tensor
    abs_delta_std: Tensor
    target_scale: Tensor
    """scalar, the root of the training targets' mean variance; only with ``target="llava"``"""
    fitted: Tensor

    def __init__(
        self,
        extractor: FeatureExtractor,
        pooler: TemporalPooler,
        quantizer: Quantizer,
        event_dim: int = 1024,
        inputs: TokenInputs = TokenInputs(),  # noqa: B008 - frozen
        target: Target = "features",
    ) -> None:
        super().__init__()
        if event_dim < 1:
            raise UsageError(f"VTEM: event_dim={event_dim}: need at least 1")
        if target not in ("features", "llava"):
            raise UsageError(f"VTEM: target={target!r} must be 'features' or 'llava'")
        for name in ("subtract_clip_mean", "lda_weight"):
            if target == "llava" and (value := getattr(inputs, name)):
                raise UsageError(f"VTEM: inputs.{name}={value} does not go with target 'llava': set {name} to 0")
        if pooler.windows * extractor.cells > MOST_TOKENS:
            raise UsageError(f"VTEM: {pooler.windows} windows of {extractor.cells} cells: at most {MOST_TOKENS:,} tokens a clip")
        self.extractor = extractor
        self.pooler = pooler
        self.quantizer = quantizer
        self.event_dim = event_dim
        self.inputs = inputs
        self.target: Target = target
        self.projection: nn.Linear | None = None
        self.decoder: nn.Linear | nn.Identity | None = None
        self._fitted_before = False

    @property
    def num_tokens(self) -> int:
        """M = W·S."""
        return self.pooler.windows * self.extractor.cells

    @property
    def num_codes(self) -> int:
        """K; 0 without a codebook."""
        return self.quantizer.num_codes

    def build(self) -> None:
        """Makes all weights and buffers, with widths read from the parts. Idempotent. Call it after the process group exists, if there
        will be one."""
        if self.projection is not None:
            return
        self.extractor.build()
        dim = self.extractor.dim
        self.pooler.build(dim)
        self.quantizer.build(self.event_dim)
        self.projection = nn.Linear(dim * self.inputs.parts, self.event_dim)
        if self.target == "llava":
            self.decoder = nn.Identity()
            self.register_buffer("target_scale", torch.tensor(1.0))
        else:
            self.decoder = nn.Linear(self.event_dim, dim * (1 + bool(self.inputs.abs_delta_weight)))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        if self.inputs.delta_weight:
            self.register_buffer("delta_std", torch.ones(dim))
        if self.inputs.abs_delta_weight:
            self.register_buffer("abs_delta_mean", torch.zeros(dim))
            self.register_buffer("abs_delta_std", torch.ones(dim))
        self.register_buffer("fitted", torch.tensor(False))

    def require_fit(self, shapes: Mapping[str, torch.Size], source: str | Path) -> None:
        """Refuse a file whose tensors do not fit this VTEM. Builds nothing and takes no memory for the weights.

        Args:
            shapes: The shapes in a file, by the names of :meth:`state_dict`. The tensors of a frozen extractor may all be missing.
            source: The file, for the message.

        Raises:
            UsageError: Names the first tensor that does not fit.
        """
        with torch.device("meta"):
            plan = copy.deepcopy(self)
            if isinstance(plan.quantizer, FSQQuantizer):  # building it needs numbers, and its own tensors are few
                plan.quantizer = IdentityQuantizer()
            plan.build()
        frozen = not any(name.startswith("extractor.") for name in shapes)
        for name, tensor in plan.state_dict().items():
            if shapes.get(name) != tensor.shape and not (frozen and name.startswith("extractor.")):
                there = tuple(shapes[name]) if name in shapes else "missing"
                raise UsageError(
                    f"{source}: its weights do not fit its settings ({name} is {there}, the settings need {tuple(tensor.shape)}); "
                    "get the file again, or make it again"
                )

    def forward(self, frames: Tensor, times: Tensor) -> EventTokens:
        """Frames (B, T, 3, H, W) uint8 at times (B, T) seconds -> event sentences."""
        return self.tokens(self.extractor(frames), self.extractor.step_times(times))

    def tokens(self, features: Tensor, times: Tensor, mask: Tensor | None = None) -> EventTokens:
        """Raw features (B, T', S, D) at times (B, T') seconds -> event sentences; ``mask`` (B, T') is False on padding."""
        return self.events(features, times, mask).tokens

    def events(self, features: Tensor, times: Tensor, mask: Tensor | None = None) -> Events:
        """Raw features (B, T', S, D) at times (B, T') seconds -> event sentences with their continuous vectors and windows."""
        return self._events(self._standardise(features), times, mask)

    def encode(self, features: Tensor, times: Tensor, mask: Tensor | None = None, targets: Tensor | None = None) -> Encoding:
        """Raw features (B, T', S, D) at times (B, T') seconds -> tokens and everything that the losses need.

        Args:
            features: (B, T', S, D).
            times: (B, T') seconds.
            mask: (B, T'), False on padding.
            targets: (B, T'', S, E) with ``target="llava"``, None otherwise. More steps are averaged onto the features' steps.

        Raises:
            UsageError: stage 1 has not been trained, or features or targets have another width or grid.
            DataError: a clip is all padding; or, outside training, features are NaN or infinite (a training has ``stages.nan_guard``).
        """
        standardised = self._standardise(features)
        self._require_target_shape(features, targets)
        events = self._events(standardised, times, mask)
        with torch.autocast(features.device.type, enabled=False):
            assert self.decoder is not None
            # The decoder is affine and a step's unpooling weights sum to one: decoding windows instead of steps is the same and cheaper.
            decoded = self.decoder(events.tokens.vectors).unflatten(1, (self.pooler.windows, -1))
            rebuilt = self.pooler.unpool(decoded, events.pooled.cumulative)
            target = standardised
            if self.inputs.abs_delta_weight and targets is None:
                target = self._beside(standardised, self._moved(abs_delta(standardised, mask)))
            if targets is not None:
                targets = at_steps(targets, features.shape[1], self.extractor.frame_stride).float()
                rebuilt, target = rebuilt / self.target_scale, targets / self.target_scale
        return Encoding(*events, rebuilt, target.detach())  # with a gradient, the target itself would be trained

    def require_targets_that_fit(self, cells_and_width: tuple[int, int] | None) -> None:
        """Refuse targets that this VTEM cannot rebuild or does not use.

        Args:
            cells_and_width: S and E of the targets; None without targets.

        Raises:
            UsageError: names the culprit and the remedy.
        """
        if cells_and_width is None:
            if self.target == "llava":
                raise UsageError(
                    "target 'llava' rebuilds the features of LLaVA's own tower: fill a feature cache of the same clips and views with "
                    "ClipExtractor, and give it as data.target_features, beside data.features"
                )
            return
        cells, width = cells_and_width
        if self.target != "llava":
            raise UsageError(f"target {self.target!r} uses no targets: leave data.target_features out, or set target to 'llava'")
        if cells != self.extractor.cells:
            theirs, ours = (f"{round(count**0.5)} x {round(count**0.5)}" for count in (cells, self.extractor.cells))
            raise UsageError(f"targets of {theirs} cells for features of {ours}: extract them with the same extractor.grid")
        if width != self.event_dim:
            raise UsageError(f"targets are {width} wide, event_dim={self.event_dim}: set model.init_args.event_dim to {width}")

    @torch.no_grad()
    def fit_statistics(self, features: Tensor, targets: Tensor | None = None, seed: int = 0, labels: Tensor | None = None) -> None:
        """Starts VTEM from training clips only; deterministic by seed.

        Args:
            features: (N, T', S, D).
            targets: (N, T'', S, E) with ``target="llava"``, None otherwise.
            seed: of the choice of clips and of the codebook's start.
            labels: (N,) the clips' actions, -1 where unknown; used only with ``lda_weight``.

        Raises:
            DataError: features are NaN or infinite, all features are equal, or there are fewer token vectors than codes.
            UsageError: features have another width or number of cells than the extractor's; targets do not fit
                (:meth:`require_targets_that_fit`); with ``lda_weight``, fewer than two actions, or more than fit into an event vector.
        """
        self.build()
        self._require_feature_shape(features)
        self._require_target_shape(features, targets)
        assert self.projection is not None
        if features.shape[1] < 2 * self.pooler.windows:
            warnings.warn(f"{features.shape[1]} feature steps for {self.pooler.windows} windows: pooling needs twice as many", stacklevel=2)
        found = moments(features)
        self.mean.copy_(found.mean)
        self.std.copy_(found.std)
        limit = max(PCA_SAMPLES, KMEANS_SAMPLES_PER_CODE * self.num_codes)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[: -(-limit // self.num_tokens)]
        parts, shares, changes = [], [], []
        for part in features[order.to(features.device)].split(64):
            scaled = self._scaled(part.to(self.mean.device))
            pooled = self.pooler(scaled)
            parts.append(pooled.segments)
            shares.append(pooled.cumulative)
            if self.inputs.abs_delta_weight:
                changes.append(self.pooler.pool(abs_delta(scaled), pooled.cumulative))
        windows = torch.cat(parts)
        parts.clear()
        moved = None
        if self.inputs.abs_delta_weight:
            change = torch.cat(changes)
            changes.clear()
            size = moments(change)
            self.abs_delta_mean.copy_(size.mean)
            self.abs_delta_std.copy_(size.std)
            moved = change.sub_(self.abs_delta_mean).div_(self.abs_delta_std)
        if self.inputs.delta_weight:
            deviation = delta(windows).square().flatten(0, 2).mean(dim=0).sqrt()
            self.delta_std.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
        inputs = self._projection_inputs(windows, moved).flatten(0, 2)
        if targets is None:
            actions = None
            if self.inputs.lda_weight:
                if labels is None:
                    raise UsageError("inputs.lda_weight needs the actions of the training clips: give labels, or set lda_weight to 0")
                actions = labels[order.to(labels.device)].to(inputs.device).repeat_interleave(self.num_tokens)
            vectors = self._start_at_components(inputs, windows, moved, actions)
        else:
            targets = at_steps(targets, features.shape[1], self.extractor.frame_stride)
            self.target_scale.copy_(variances(targets)[1].mean().sqrt())
            chosen = targets[order.to(targets.device)].split(64)
            aims = [self.pooler.pool(part.to(self.mean.device), share) for part, share in zip(chosen, shares, strict=True)]
            vectors = self._start_at_targets(inputs, torch.cat(aims).flatten(0, 2))
            del aims
        del inputs, windows, moved  # k-means needs as much memory: half a gigabyte each at the demo's size
        self.quantizer.initialise(vectors, seed)
        self.fitted.fill_(True)

    def _start_at_components(self, inputs: Tensor, windows: Tensor, moved: Tensor | None, actions: Tensor | None) -> Tensor:
        """Starts the projection of inputs (N, D, 2D or 3D) at their principal components, followed by the discriminants of actions (N,).
        Starts the decoder at the least-squares map back to the windows (B, W, S, D) and to the change within them. Returns the event
        vectors (N, E)."""
        assert self.projection is not None
        assert isinstance(self.decoder, nn.Linear)
        spread = Spread.of(inputs)
        discriminant_rows = inputs.new_zeros(0, inputs.shape[1]) if actions is None else discriminants(inputs, actions, spread=spread)
        if len(discriminant_rows) >= self.event_dim:
            raise UsageError(
                f"{len(discriminant_rows)} actions, event_dim={self.event_dim}: discriminants leave no room for principal components"
            )
        components = principal_components(inputs, self.event_dim - len(discriminant_rows), spread)
        total = components.variances.sum()
        if not bool(total > 0):
            raise DataError("all training features are equal: nothing to learn from; look at the videos and the sampling")
        scale = (self.event_dim / (total * (1 + self.inputs.lda_weight**2))).sqrt()
        rank = components.directions.shape[1]
        self.projection.weight.zero_()
        self.projection.weight[:rank] = scale * components.directions.T
        if len(discriminant_rows):
            self.projection.weight[-len(discriminant_rows) :] = scale * self.inputs.lda_weight * total.sqrt() * discriminant_rows
        self.projection.bias.copy_(-self.projection.weight @ components.mean)
        vectors, dim = self.projection(inputs), windows.shape[-1]
        spread = Spread.of(vectors)
        for part, (aim, weight) in enumerate(zip((windows, moved), self._weights(), strict=True)):
            if aim is not None:  # one after the other: both side by side would be the largest tensor of all
                inverse = least_squares(vectors, aim.flatten(0, 2), spread)
                self.decoder.weight[part * dim : (part + 1) * dim] = weight * inverse.weight
                self.decoder.bias[part * dim : (part + 1) * dim] = weight * inverse.bias
        return vectors

    def _start_at_targets(self, inputs: Tensor, aims: Tensor) -> Tensor:
        """Starts the projection of inputs (N, D, 2D or 3D) at the least-squares map to the targets' windows (N, E). Returns event vectors
        (N, E)."""
        assert self.projection is not None
        for name, values in (("features", inputs), ("targets", aims)):
            if not bool(values.var(dim=0, correction=0).sum() > 0):
                raise DataError(f"all training {name} are equal: nothing to learn from; look at the videos and the sampling")
        if len(inputs) < ROWS_PER_INPUT * inputs.shape[1]:
            warnings.warn(
                f"{len(inputs)} training windows and cells for {inputs.shape[1]} inputs: the projection's start will generalise less to "
                "new people; extract more clips or views",
                stacklevel=3,
            )
        found = least_squares(inputs, aims)
        self.projection.weight.copy_(found.weight / self.target_scale)
        self.projection.bias.copy_(found.bias / self.target_scale)
        return self._project(inputs)

    def _events(self, standardised: Tensor, times: Tensor, mask: Tensor | None) -> Events:
        pooled = self.pooler(standardised, mask)
        with torch.autocast(standardised.device.type, enabled=False):
            moved = None
            if self.inputs.abs_delta_weight:
                moved = self._moved(self.pooler.pool(abs_delta(standardised, mask), pooled.cumulative))
            continuous = self._project(self._projection_inputs(pooled.segments, moved)).flatten(1, 2)
            quantized = self.quantizer(continuous)
            spans = window_spans(pooled.edges, times, mask)
            commitment = quantized.loss / self.target_scale.square() if self.target == "llava" else quantized.loss
        return Events(EventTokens(quantized.ids, quantized.vectors, spans), continuous, pooled, commitment)

    def _project(self, inputs: Tensor) -> Tensor:
        """Inputs (..., D, 2D or 3D) -> event vectors (..., E); with target 'llava' in the tower's units."""
        assert self.projection is not None
        vectors: Tensor = self.projection(inputs)
        return vectors * self.target_scale if self.target == "llava" else vectors

    def _projection_inputs(self, segments: Tensor, moved: Tensor | None = None) -> Tensor:
        """Windows (B, W, S, D) and the change within them (B, W, S, D) -> the projection's inputs (B, W, S, D, 2D or 3D)."""
        mean_weight = self.inputs.subtract_clip_mean
        parts = [segments - mean_weight * segments.mean(dim=1, keepdim=True) if mean_weight else segments]
        if self.inputs.delta_weight:
            parts.append(self.inputs.delta_weight * delta(segments) / self.delta_std)
        if moved is not None:
            parts.append(self.inputs.abs_delta_weight * moved)
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def _moved(self, change: Tensor) -> Tensor:
        """Standardises the absolute change (..., D) of steps, or its mean over windows."""
        return (change - self.abs_delta_mean) / self.abs_delta_std

    def _weights(self) -> tuple[float, float]:
        """Weights of features and of their absolute change in the target: in the ratio of the token's inputs, with a mean square of 1
        together."""
        scale = (2 / (1 + self.inputs.abs_delta_weight**2)) ** 0.5 if self.inputs.abs_delta_weight else 1.0
        return scale, scale * self.inputs.abs_delta_weight

    def _beside(self, values: Tensor, moved: Tensor) -> Tensor:
        """Features (..., D) and their absolute change (..., D), weighted and side by side: (..., 2D)."""
        there, moving = self._weights()
        return torch.cat([there * values, moving * moved], dim=-1)

    def _standardise(self, features: Tensor) -> Tensor:
        if not self._fitted_before and (self.projection is None or not bool(self.fitted)):
            raise UsageError("this VTEM has not been trained: train stage 1 (vtlvlm fit with a stage1 config), or load its checkpoint")
        self._fitted_before = True  # asking the buffer makes the host wait for the GPU
        self._require_feature_shape(features)
        if not self.training and not bool(torch.isfinite(features).all()):
            bad = (~torch.isfinite(features).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise DataError(
                f"NaN or infinite features in row {bad[0]} of a batch of {len(features)}: look at that clip and at the extractor"
            )
        return self._scaled(features)

    def _scaled(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) / self.std

    def _require_feature_shape(self, features: Tensor) -> None:
        expected = (self.extractor.cells, len(self.mean))
        if features.ndim != 4 or tuple(features.shape[2:]) != expected:
            found, wanted = tuple(features.shape), f"(clips, steps, {expected[0]}, {expected[1]})"
            raise UsageError(f"features of shape {found}, expected {wanted}: made by another extractor?")

    def _require_target_shape(self, features: Tensor, targets: Tensor | None) -> None:
        if targets is not None and (targets.ndim != 4 or len(targets) != len(features)):
            raise UsageError(f"targets of shape {tuple(targets.shape)}, expected ({len(features)}, steps, cells, event_dim)")
        self.require_targets_that_fit(None if targets is None else (targets.shape[2], targets.shape[3]))
