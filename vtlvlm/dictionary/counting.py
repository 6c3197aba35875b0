"""Counts what the codes of event sentences do: how often and how long they occur, in which actions, and what follows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.metrics.codebook import UNKNOWN, CodebookHealth, CodeTally, run_lengths

SHOWN = 5
"""Neighbours, and followers, of a code"""
QUANTILES = (0.1, 0.5, 0.9)


class Counts(NamedTuple):
    """What was counted of K codes and A actions. A run is a code that stays in its cell from window to window."""

    tally: CodeTally
    clips: Tensor
    """(K,) int64, clips in which each code occurs"""
    runs: Tensor
    """(K,) int64"""
    seconds: Tensor
    """(K, 3) float32, the 10 %, 50 % and 90 % quantiles of a run's length; nan for a code that never occurs"""
    followers: Tensor
    """(K, 5) int64, the codes that most often come next in the same cell; -1 for none"""
    follower_shares: Tensor
    """(K, 5) float32 in [0, 1], of all that comes next"""


def count(sentences: Iterable[tuple[Tensor, Tensor, Tensor]], num_codes: int, num_classes: int, windows: int) -> Counts:
    """Count event sentences.

    Args:
        sentences: Batches of codes (B, M) int64 in [0, K), spans (B, W, 2) in seconds, and labels (B,) int64, -1 for unknown.
        num_codes: K.
        num_classes: A.
        windows: W.
    """
    health = CodebookHealth(num_codes, num_classes, windows)
    clips = torch.zeros(num_codes, dtype=torch.int64)
    lengths: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    nexts = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for ids, spans, labels in sentences:
        health.update(ids, labels)
        occurs = ids.new_zeros(len(ids), num_codes + 1).scatter_(1, ids.where(ids != UNKNOWN, num_codes), 1)
        clips += occurs[:, :-1].sum(0)
        codes = ids.unflatten(1, (windows, -1))
        steps, ends = run_lengths(codes)
        clip, window, cell = ends.nonzero(as_tuple=True)
        first = window - steps[clip, window, cell] + 1
        seconds = spans[clip, window, 1] - spans[clip, first, 0]
        lengths.append((codes[clip, window, cell].int().numpy(), seconds.float().numpy()))
        nexts = _added(nexts, _changes(codes))
    followers, shares = _most(nexts, num_codes)
    runs, quantiles = _quantiles(lengths, num_codes)
    return Counts(health.tally(), clips, runs, quantiles, followers, shares)


def _changes(codes: Tensor) -> Tensor:
    """(n, 2) the codes before and after each change within a cell, from (B, W, S)."""
    before, after = codes[:, :-1], codes[:, 1:]
    changed = (before != after) & (before != UNKNOWN) & (after != UNKNOWN)
    return torch.stack([before[changed], after[changed]], dim=1)


def _added(known: tuple[Tensor, Tensor], pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs and their numbers, with some more pairs."""
    all_pairs, place = torch.cat([known[0], pairs]).unique(dim=0, return_inverse=True)
    numbers = torch.cat([known[1], torch.ones(len(pairs), dtype=torch.int64)])
    return all_pairs, torch.zeros(len(all_pairs), dtype=torch.int64).index_add_(0, place, numbers)


def _most(nexts: tuple[Tensor, Tensor], num_codes: int) -> tuple[Tensor, Tensor]:
    """The most frequent followers (K, 5) of each code and their shares; equal ones in the order of their numbers."""
    pairs, numbers = nexts
    codes, shares = torch.full((num_codes, SHOWN), -1), torch.zeros(num_codes, SHOWN)
    totals = torch.zeros(num_codes, dtype=torch.int64).index_add_(0, pairs[:, 0], numbers)
    order = np.lexsort((pairs[:, 1].numpy(), -numbers.numpy(), pairs[:, 0].numpy()))
    pairs, numbers = pairs[order], numbers[order]
    starts = torch.searchsorted(pairs[:, 0].contiguous(), torch.arange(num_codes))
    rank = torch.arange(len(pairs)) - starts[pairs[:, 0]]
    kept = rank < SHOWN
    codes[pairs[kept, 0], rank[kept]] = pairs[kept, 1]
    shares[pairs[kept, 0], rank[kept]] = numbers[kept] / totals[pairs[kept, 0]]
    return codes, shares


def _quantiles(lengths: list[tuple[NDArray[np.int32], NDArray[np.float32]]], num_codes: int) -> tuple[Tensor, Tensor]:
    """Number of runs (K,), and quantiles (K, 3) of their seconds: the nearest value below."""
    codes = np.concatenate([code for code, _ in lengths]) if lengths else np.zeros(0, np.int32)
    seconds = np.concatenate([second for _, second in lengths]) if lengths else np.zeros(0, np.float32)
    order = np.lexsort((seconds, codes))
    runs = np.bincount(codes, minlength=num_codes)
    starts = np.cumsum(runs) - runs
    places = starts[:, None] + np.floor(np.asarray(QUANTILES) * np.maximum(runs - 1, 0)[:, None]).astype(np.int64)
    found = np.full((num_codes, len(QUANTILES)), np.nan, np.float32)
    used = runs > 0
    found[used] = seconds[order][places[used]]
    return torch.from_numpy(runs.astype(np.int64)), torch.from_numpy(found)


def neighbours(table: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """The used codes whose vectors point most in a code's direction.

    Args:
        table: (K, E) code vectors.
        used: (K,) bool, codes that occur.

    Returns:
        (K, 5) int64 codes, -1 for none, and (K, 5) float32 cosines in [-1, 1], falling.
    """
    units = F.normalize(table.float(), dim=1)
    near = units @ units.T
    near.fill_diagonal_(-torch.inf)
    near[:, ~used] = -torch.inf
    shown = min(SHOWN, len(table))
    cosines, codes = near.topk(shown, dim=1)
    codes = codes.where(cosines.isfinite(), -1)
    cosines = cosines.where(cosines.isfinite(), 0.0)
    return F.pad(codes, (0, SHOWN - shown), value=-1), F.pad(cosines, (0, SHOWN - shown))
