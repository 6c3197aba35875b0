"""What the codes of a sentence say about its action, learned from the training clips of an event cache.

No language model takes part: a logistic regression reads which codes a sentence holds in each third of its time. Near codes stand for each
other, so that a code that no training clip holds still says something.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import softmax

PARTS = 3
"""Parts of a sentence's time, at most one for each window"""
WIDTH = 0.1
"""A code stands for another one with weight exp((cosine - 1) / WIDTH)"""
NEAR = 64
"""Codes that a code stands for, at most"""
STRENGTH = 1.0
"""C of the logistic regression. The three values above were chosen with folds of training people (docs/log.md)"""
MOST_LEARNED = 4000
"""Training clips that are read, at most; more clips are thinned out evenly over the actions"""
BLOCK = 2048


class ActionReader(NamedTuple):
    """A logistic regression on the softened shares of codes."""

    near: NDArray[np.int32]
    """(K, N) the codes that each code stands for, itself among them"""
    shares: NDArray[np.float32]
    """(K, N) with which weight; a row sums to 1"""
    weight: NDArray[np.float32]
    """(A, PARTS·K); rows of actions without training clips are zero"""
    bias: NDArray[np.float32]
    """(A,); far below zero for an action without training clips"""

    def probabilities(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Sentences (n, W, S) → probabilities of the actions (n, A)."""
        blocks = [ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK)]
        found = [softmax(softened(block, self.near, self.shares) @ self.weight.T + self.bias, axis=1) for block in blocks]
        return np.concatenate(found).astype(np.float32)


def neighbourhoods(units: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The codes that each code stands for (K, N), and their shares (K, N), from the directions of the code vectors (K, E)."""
    near, shares = [], []
    for start in range(0, len(units), BLOCK):
        alike = units[start : start + BLOCK] @ units.T
        best = np.argsort(-alike, axis=1, kind="stable")[:, :NEAR]
        weights = np.exp((np.take_along_axis(alike, best, axis=1) - 1) / WIDTH)
        near.append(best.astype(np.int32))
        shares.append((weights / weights.sum(1, keepdims=True)).astype(np.float32))
    return np.concatenate(near), np.concatenate(shares)


def softened(ids: NDArray[np.integer], near: NDArray[np.int32], shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Square roots of the softened shares of the codes in each part of the time: (n, W, S) → (n, PARTS·K).

    Fewer windows than parts are a part each. The root lessens the weight of codes that fill a part.
    """
    codes, windows = len(near), ids.shape[1]
    spread = csr_array((shares.ravel(), near.ravel(), np.arange(0, near.size + 1, near.shape[1])), shape=(codes, codes))
    edges = np.linspace(0, windows, min(PARTS, windows) + 1).round().astype(np.int64)
    found = []
    for start, end in pairwise(edges.tolist()):
        part = ids[:, start:end].reshape(len(ids), -1)
        ones = np.full(part.size, 1 / part.shape[1], dtype=np.float32)
        counts = csr_array((ones, part.ravel().astype(np.int32), np.arange(0, part.size + 1, part.shape[1])), shape=(len(ids), codes))
        found.append(np.sqrt((counts @ spread).toarray()))
    return np.concatenate(found, axis=1)


def learn_actions(ids: NDArray[np.integer], labels: NDArray[np.integer], actions: int, units: NDArray[np.float32]) -> ActionReader:
    """Learn what the codes say about actions.

    Args:
        ids: (n, W, S) sentences of training clips.
        labels: (n,) in [0, A), of at least two actions.
        actions: A.
        units: (K, E) directions of the code vectors.
    """
    from sklearn.linear_model import LogisticRegression

    kept = thinned(labels, MOST_LEARNED)
    near, shares = neighbourhoods(units)
    vectors = softened(ids[kept], near, shares)
    middle, scale = vectors.mean(0), float(vectors.std())
    fitted = LogisticRegression(C=STRENGTH, max_iter=300).fit((vectors - middle) / scale, labels[kept])
    known, weights, biases = fitted.classes_, fitted.coef_, fitted.intercept_
    if len(known) == 2:  # scikit-learn then gives the second one's alone
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    weight, bias = np.zeros((actions, vectors.shape[1]), dtype=np.float32), np.full(actions, -1e9, dtype=np.float32)
    weight[known] = weights / scale
    bias[known] = biases - weight[known] @ middle
    return ActionReader(near, shares, weight, bias)


def thinned(labels: NDArray[np.integer], most: int) -> NDArray[np.int64]:
    """Places of at most ``most`` clips, as evenly over the labels as their numbers allow, and drawn within a label; rising."""
    if len(labels) <= most:
        return np.arange(len(labels))
    drawn = np.random.default_rng(0).permutation(len(labels))
    by_label = drawn[np.argsort(labels[drawn], kind="stable")]
    counts = np.unique(labels, return_counts=True)[1]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_label[np.argsort(rank, kind="stable")[:most]])
