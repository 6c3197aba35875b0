"""Outputs of the Video-to-Event Mapper: event sentences, and the values that its losses need."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vtlvlm.batches import EventTokens
from vtlvlm.vtem.poolers import PooledSegments


class Events(NamedTuple):
    """Event sentences with the values that they were computed from."""

    tokens: EventTokens
    """as in :class:`Encoding`, like all fields here"""
    continuous: Tensor
    pooled: PooledSegments
    commitment: Tensor


class Encoding(NamedTuple):
    """Everything that the losses and the codebook figures of stage 1 read."""

    tokens: EventTokens
    """ids (B, M), vectors (B, M, E) with straight-through gradient in training, spans (B, W, 2) seconds"""
    continuous: Tensor
    """(B, M, E) float32, the event vectors before quantisation"""
    pooled: PooledSegments
    """the windows: segments (B, W, S, D) in standardised units, cumulative salience, edges"""
    commitment: Tensor
    """scalar, already weighted, in the units of the reconstruction"""
    reconstruction: Tensor
    """(B, T', S, D, 2D or E) rebuilt from the tokens, in standardised units: predicting the training mean costs 1.0"""
    target: Tensor
    """(B, T', S, D, 2D or E) the standardised features, with ``abs_delta_weight`` also their absolute change; or the targets in units of
    their training deviation. Without gradient"""
