"""Is a sentence more than a bag of codes? Bigrams of codes, and how long codes stay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HELD = (0.7, 0.25, 0.05)
"""Weights of bigram, unigram and uniform probabilities"""


def sequences(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, W, S) sentences → (n, S, W): one sequence for each cell."""
    return np.swapaxes(codes, 1, 2)


class Bigrams:
    """Probabilities of the next code in a cell, from training sentences: mixed with unigrams and a uniform distribution.

    Args:
        codes: (n, W, S) training sentences.
        num_codes: K.
        changes_only: Count only places where the code changes, so that a code that stays does not count as coherent.
    """

    def __init__(self, codes: NDArray[np.int64], num_codes: int, changes_only: bool) -> None:
        self.num_codes, self.changes_only = num_codes, changes_only
        before, after = _pairs(codes)
        kept = before != after if changes_only else np.ones_like(before, dtype=bool)
        keys, counts = np.unique(before[kept] * num_codes + after[kept], return_counts=True)
        self.keys, self.counts = keys, counts.astype(np.float64)
        self.of_before = np.bincount(keys // num_codes, weights=self.counts, minlength=num_codes)
        self.of_after = (
            np.bincount(keys % num_codes, weights=self.counts, minlength=num_codes) if changes_only else _unigrams(codes, num_codes)
        )

    def surprise(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Mean nats per step of each sentence (n, W, S) → (n,); nan for one without a step that counts."""
        before, after = _pairs(codes)
        place = np.searchsorted(self.keys, keys := before * self.num_codes + after).clip(max=max(0, len(self.keys) - 1))
        counts = np.where(self.keys[place] == keys, self.counts[place], 0.0) if len(self.keys) else np.zeros(keys.shape)
        bigram = counts / np.maximum(self.of_before[before], 1)
        unigram = self.of_after[after] / max(1.0, self.of_after.sum())
        nats = -np.log(HELD[0] * bigram + HELD[1] * unigram + HELD[2] / self.num_codes)
        counted = (before != after) if self.changes_only else np.ones(before.shape, dtype=bool)
        axes = tuple(range(1, before.ndim))
        with np.errstate(invalid="ignore", divide="ignore"):
            found: NDArray[np.float64] = (nats * counted).sum(axes) / counted.sum(axes)
        return found


def _pairs(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n, W - 1, S) each code and the next one in its cell."""
    return codes[:, :-1], codes[:, 1:]


def _unigrams(codes: NDArray[np.int64], num_codes: int) -> NDArray[np.float64]:
    return np.bincount(codes.ravel(), minlength=num_codes).astype(np.float64)


def shuffled_windows(codes: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Sentences (n, W, S) with their windows in random order, the same for all cells of a clip."""
    order = np.random.default_rng([seed, 12]).permuted(np.tile(np.arange(codes.shape[1]), (len(codes), 1)), axis=1)
    return np.take_along_axis(codes, order[:, :, None], axis=1)


def run_length(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean windows that a code stays in its cell, for each sentence (n, W, S) → (n,)."""
    runs = 1 + (codes[:, 1:] != codes[:, :-1]).sum(1)  # (n, S)
    found: NDArray[np.float64] = codes.shape[1] * codes.shape[2] / runs.sum(1)
    return found
