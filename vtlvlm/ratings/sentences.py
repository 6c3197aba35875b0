"""Sentences of codes for many clips: the event sentences of a run, and the paper's baseline from the same features.

The baseline (Sec. IV-E) is "uniformly sampled and quantized raw features without adaptive pooling or event coherence bias": windows of
equal duration, and k-means of the extractor's features, with as many windows, cells and codes as the event sentences have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.errors import DataError, UsageError
from vtlvlm.vtem.poolers import UniformPooler, window_spans
from vtlvlm.vtem.statistics import kmeans

if TYPE_CHECKING:
    from vtlvlm.data.datamodule import NTUDataModule

AT_ONCE = 64
"""Clips whose features are in memory at once"""
PER_CODE = 64
"""Training vectors that k-means reads for each code, at most"""


@dataclass(frozen=True)
class Sentences:
    """The plain views of n clips as codes.

    Attributes:
        codes: (n, W, S) int64 in [0, K).
        spans: (n, W, 2) float64 seconds.
        num_codes: K.
    """

    codes: NDArray[np.int64]
    spans: NDArray[np.float64]
    num_codes: int

    def of(self, places: NDArray[np.int64]) -> Sentences:
        """Those of some clips."""
        return Sentences(self.codes[places], self.spans[places], self.num_codes)


def event_cache(data: NTUDataModule) -> EventCache:
    """The event cache of a run.

    Raises:
        UsageError: There is none, or its events are continuous.
    """
    if not isinstance(data.events_cache, EventCache):
        raise UsageError("a study is made from event sentences: name an event cache with --events")
    if data.events_cache.table is None:
        raise UsageError(f"{data.events_cache.folder}: its events are continuous (IdentityQuantizer), and have no codes to show")
    return data.events_cache


def event_sentences(data: NTUDataModule, clips: NDArray[np.int64]) -> Sentences:
    """The event sentences of clips, given as rows of the index.

    Raises:
        UsageError: As for :func:`event_cache`.
    """
    cache = event_cache(data)
    rows = cache.rows(data.clip_names(clips), 0)
    spans = cache.spans(rows).double().numpy()
    return Sentences(cache.ids(rows).unflatten(1, (spans.shape[1], -1)).numpy(), spans, cache.num_codes)


def baseline_sentences(
    data: NTUDataModule, features: FeatureCache, clips: NDArray[np.int64], *, windows: int, cells: int, num_codes: int, seed: int
) -> Sentences:
    """The baseline's sentences of clips; its codes are fitted to the training clips alone.

    Args:
        data: Set up.
        features: Those that the run's event sentences were made from.
        clips: (n,) rows of the index.
        windows: W.
        cells: S of the event sentences.
        num_codes: K.
        seed: Of k-means.

    Raises:
        DataError: The features have other cells, lack clips, or are fewer than the codes.
    """
    if features.cells != cells:
        raise DataError(
            f"{features.folder}: has {features.cells} cells, the event sentences have {cells}; name the features they were made from"
        )
    train = data.split.require("train")
    rows = data.plain_rows(features)
    if len(train) * windows * cells < num_codes:
        raise DataError(
            f"the training clips give {len(train) * windows * cells} feature vectors for {num_codes} codes; a baseline needs more clips"
        )
    rng = np.random.default_rng(seed)
    enough = -(-PER_CODE * num_codes // (windows * cells))
    chosen = np.sort(rng.choice(train, min(len(train), enough), replace=False))
    centres, _ = kmeans(torch.cat([vectors.flatten(0, 2) for vectors, _ in _windows(features, rows[chosen], windows)]), num_codes, seed)
    codes, spans = [], []
    for vectors, span in _windows(features, rows[clips], windows):
        codes.append(_nearest(vectors.flatten(0, 2), centres).view(vectors.shape[:3]).numpy())
        spans.append(span.double().numpy())
    return Sentences(np.concatenate(codes), np.concatenate(spans), num_codes)


def _windows(features: FeatureCache, rows: NDArray[np.int64], windows: int) -> Any:
    """Yields the mean features (B, W, S, D) float32 of windows of equal duration, and their spans (B, W, 2)."""
    pooler = UniformPooler(windows)
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        pooled = pooler(features.features(part).float())
        yield pooled.segments, window_spans(pooled.edges, features.times(part))


def _nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre (n,) of each vector (n, D) by squared distance."""
    half = centres.square().sum(1) / 2
    return torch.cat([(part @ centres.T - half).argmax(1) for part in vectors.split(8192)])
