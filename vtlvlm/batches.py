"""The named batches that the parts of the package pass to each other.

Legend: B clips · T sampled frames · T' feature steps · S spatial cells per step · D feature width · W temporal windows ·
M = W·S event tokens · K codes · E event width · P soft prompt tokens · L language-model width · A actions.

Every batch ends with the same three columns: ``labels`` (B,) int64, the action's position in the class list, -1 if unknown;
``clips`` (B,) int64, the clip's row in the index; ``views`` (B,) int64, the number of the clip's stored view (0 is the plain view).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class VideoBatch(NamedTuple):
    """Sampled frames from the decoder."""

    frames: Tensor
    """(B, T, 3, H, W) uint8 RGB"""
    times: Tensor
    """(B, T) float32, seconds from the start of the clip, non-decreasing"""
    labels: Tensor
    clips: Tensor
    views: Tensor


class FeatureBatch(NamedTuple):
    """Features of a frozen extractor."""

    features: Tensor
    """(B, T', S, D) float16 or float32"""
    times: Tensor
    """(B, T') float32, seconds, the centre of each feature step"""
    targets: Tensor | None
    """(B, T'', S'', E) float16 or float32: features of another extractor from the same frames, which the events reconstruct; None without a
    reconstruction target"""
    labels: Tensor
    clips: Tensor
    views: Tensor


class EventTokens(NamedTuple):
    """An event sentence: M = W·S tokens, window by window, the S cells of a window side by side."""

    ids: Tensor
    """(B, M) int64 code numbers in [0, K); -1 throughout for the identity quantiser"""
    vectors: Tensor
    """(B, M, E) the code vectors, input of the language model's projector"""
    spans: Tensor
    """(B, W, 2) float32, seconds: start and end of each window"""


class EventBatch(NamedTuple):
    """Event sentences from the event cache: code numbers, or vectors for the identity quantiser."""

    ids: Tensor
    """(B, M) int64; -1 throughout if ``vectors`` is given"""
    vectors: Tensor | None
    """(B, M, E) float16 for the identity quantiser, otherwise None: the cache's table maps ``ids`` to vectors"""
    spans: Tensor
    """(B, W, 2) float32 seconds"""
    labels: Tensor
    clips: Tensor
    views: Tensor


class HiddenBatch(NamedTuple):
    """Inputs of the first layer with prompts, from the cache of hidden states."""

    hidden: Tensor
    """(B, C + N, L) in the type of the language model; C context tokens, N nodes of the label tree"""
    labels: Tensor
    clips: Tensor
    views: Tensor


class RecordingBatch(NamedTuple):
    """Recordings of bodies, as long as they are. M bodies, V joints."""

    joints: Tensor
    """(B, 3, T, V, M) float32: metres, or two pixels and a confidence in [0, 1]; zeros from a clip's length on, and for an absent body"""
    lengths: Tensor
    """(B,) int64 frames of each clip"""
    labels: Tensor
    clips: Tensor
    views: Tensor
    training: bool
    """Whether the clips are drawn for training"""
    random: Tensor | None = None
    """(B, n) float32 random numbers in [0, 1) of each clip's draw; None until the batch leaves for its device"""


class SkeletonBatch(NamedTuple):
    """The input of a skeleton network. M bodies, V joints."""

    joints: Tensor
    """(B, 3, T, V, M) float32, a stream of the joints: all clips have T frames; zeros for an absent body"""
    labels: Tensor
    clips: Tensor
    views: Tensor


def split_clips(batch: Any, size: int) -> list[Any]:
    """A batch of B clips -> batches of at most ``size`` clips, in order."""
    if len(batch.clips) <= size:
        return [batch]
    parts = -(-len(batch.clips) // size)
    columns = [column.split(size) if isinstance(column, Tensor) else [column] * parts for column in batch]
    return [type(batch)(*part) for part in zip(*columns, strict=True)]
