"""The words of event sentences, weighted by tf-idf: single codes, and changes from one code to the next in the same cell.

A change never leads from one cell to another: neighbours in the flat sentence are different places at one moment.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

BLOCK = 8192
"""Sentences whose words are counted at once"""


class Words(NamedTuple):
    """How often each word occurs in each of some sentences, sentence by sentence."""

    rows: NDArray[np.int32]
    """(P,) sentence"""
    words: NDArray[np.int64]
    """(P,) word: a code k is k, a change from a to b is K + a·K + b; rising within a sentence"""
    counts: NDArray[np.int32]
    """(P,) from 1"""


def count_words(ids: NDArray[np.integer], codes: int) -> Words:
    """Count the words of sentences.

    Args:
        ids: (n, W, S) codes in [0, K): n sentences of W windows of S cells.
        codes: K.
    """
    parts = [_counted(ids[start : start + BLOCK], codes, start) for start in range(0, len(ids), BLOCK)]
    return Words(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _counted(ids: NDArray[np.integer], codes: int, first: int) -> Words:
    single = ids.astype(np.int64)
    before, after = single[:, :-1], single[:, 1:]
    changes = np.where(before == after, -1, codes + before * codes + after)  # a code that stays is no word of its own
    words = np.sort(np.concatenate([single.reshape(len(ids), -1), changes.reshape(len(ids), -1)], axis=1), axis=1)
    starts = np.ones(words.shape, dtype=np.bool_)
    starts[:, 1:] = words[:, 1:] != words[:, :-1]
    places = np.flatnonzero(starts)
    counts = np.diff(places, append=words.size)
    rows, found = places // words.shape[1], words.ravel()[places]
    kept = found >= 0
    return Words((first + rows[kept]).astype(np.int32), found[kept], counts[kept].astype(np.int32))


class WordIndex(NamedTuple):
    """For each word, the sentences that hold it and their weights. A sentence's weights have length 1."""

    words: NDArray[np.int64]
    """(F,) rising"""
    starts: NDArray[np.int32]
    """(F + 1,) where the entries of each word begin"""
    clips: NDArray[np.int32]
    """(P,) sentences"""
    weights: NDArray[np.float32]
    """(P,) (1 + ln tf) · idf over the sentence's length, where idf = ln((1 + n) / (1 + df)) + 1"""
    sentences: int
    """n"""

    def scores(self, ids: NDArray[np.integer], codes: int) -> NDArray[np.float32]:
        """Cosine of a sentence (W, S) with every sentence (n,), in [0, 1]. Words that no sentence holds count in its length."""
        _, words, counts = count_words(ids[None], codes)
        places = np.searchsorted(self.words, words).clip(max=len(self.words) - 1)
        known = self.words[places] == words
        held = np.where(known, np.diff(self.starts)[places], 0)
        weights = (1 + np.log(counts)) * _idf(held, self.sentences)
        weights /= np.linalg.norm(weights)
        asked = csr_array((weights[known].astype(np.float32), places[known], [0, int(known.sum())]), shape=(1, len(self.words)))
        holders = csr_array((self.weights, self.clips, self.starts), shape=(len(self.words), self.sentences))
        found: NDArray[np.float32] = (asked @ holders).toarray()[0]
        return found


def _idf(held: NDArray[np.integer], sentences: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log((1 + sentences) / (1 + held)) + 1
    return found


def index_words(ids: NDArray[np.integer], codes: int) -> WordIndex:
    """The index of sentences (n, W, S) with codes in [0, K)."""
    rows, words, counts = count_words(ids, codes)
    order = np.argsort(words, kind="stable")
    rows, words = rows[order], words[order]
    starts = np.flatnonzero(np.diff(words, prepend=-1))
    held = np.diff(starts, append=len(words))
    weights = (1 + np.log(counts[order])) * np.repeat(_idf(held, len(ids)), held)
    weights /= np.sqrt(np.bincount(rows, weights**2))[rows]
    ends = np.append(starts, len(words)).astype(np.int32)
    return WordIndex(words[starts], ends, rows, weights.astype(np.float32), len(ids))
