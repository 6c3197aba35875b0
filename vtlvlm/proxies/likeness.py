"""Do sentences of the same action look alike in clips of other people? By the codes that occur, and by their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from vtlvlm.ratings.cards import inverse_frequency


def tfidf(codes: NDArray[np.int64], rarity: NDArray[np.float64]) -> csr_matrix:
    """Unit vectors (n, K) of sentences (n, W, S): sublinear counts times rarity."""
    flat = codes.reshape(len(codes), -1)
    rows = np.repeat(np.arange(len(flat)), flat.shape[1])
    counts = csr_matrix((np.ones(flat.size), (rows, flat.ravel())), shape=(len(flat), len(rarity)))
    counts.sum_duplicates()
    counts.data = (1 + np.log(counts.data)) * rarity[counts.indices]
    norms = np.sqrt(counts.multiply(counts).sum(1)).A1
    return csr_matrix(counts.multiply(1 / np.maximum(norms, 1e-12)[:, None]))


def by_codes(queries: NDArray[np.int64], gallery: NDArray[np.int64], num_codes: int) -> NDArray[np.float64]:
    """(q, g) cosine of tf-idf vectors; rarity is counted in the gallery."""
    rarity = inverse_frequency(gallery, num_codes)
    found: NDArray[np.float64] = (tfidf(queries, rarity) @ tfidf(gallery, rarity).T).toarray()
    return found


def by_order(queries: NDArray[np.int64], gallery: NDArray[np.int64]) -> NDArray[np.float64]:
    """(q, g) normalised Indel similarity in [0, 1]: twice the longest common subsequence over both lengths, the mean over cells."""
    one, other = np.swapaxes(queries, 1, 2), np.swapaxes(gallery, 1, 2)  # (q, S, W)
    windows = one.shape[2]
    found = np.empty((len(one), len(other)))
    for start in range(0, len(one), 32):
        part = one[start : start + 32, None]  # (b, 1, S, W)
        above = np.zeros((*np.broadcast_shapes(part.shape[:3], other[None].shape[:3]), windows + 1), dtype=np.int16)
        for i in range(windows):
            row = np.zeros_like(above)
            for j in range(windows):
                equal = part[..., i] == other[None, :, :, j]
                row[..., j + 1] = np.where(equal, above[..., j] + 1, np.maximum(above[..., j + 1], row[..., j]))
            above = row
        found[start : start + 32] = above[..., -1].mean(2) / windows
    return found


def retrieval(
    similarity: NDArray[np.float64], labels: NDArray[np.int64], gallery_labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How well the nearest clips share the action.

    Args:
        similarity: (q, g).
        labels: (q,) actions.
        gallery_labels: (g,).

    Returns:
        (q,) whether the nearest clip has the action (among equally near ones, the share), and (q,) the average precision; nan without a
        clip of the action.
    """
    same = labels[:, None] == gallery_labels
    nearest = similarity == similarity.max(1, keepdims=True)
    first = (same & nearest).sum(1) / nearest.sum(1)
    order = np.argsort(-similarity, axis=1, kind="stable")
    hits = np.take_along_axis(same, order, axis=1)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        average = (precision * hits).sum(1) / hits.sum(1)
    known = same.any(1)
    return np.where(known, first, np.nan), np.where(known, average, np.nan)


def chance_precision(relevant: NDArray[np.int64], number: int) -> NDArray[np.float64]:
    """Expected average precision of a random order of ``number`` clips, of which some (q,) are relevant: above their share, most for few.

    The r-th relevant clip is equally likely at each place, so E = ((R - 1) / (n - 1) (n - H) + H) / n, with H = 1 + 1/2 + … + 1/n.
    """
    harmonic = float((1 / np.arange(1, number + 1)).sum())
    found: NDArray[np.float64] = ((relevant - 1) / max(1, number - 1) * (number - harmonic) + harmonic) / number
    return found
