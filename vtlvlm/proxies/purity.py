"""Do the pictures of a code show one thing? An odd one among them is looked for, by features of an extractor that was not trained with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EACH = 3
"""Pictures of a code beside the odd one"""
CHANCE = 1 / (EACH + 1)


def odd_one_out(features: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the last of each group is the least similar to the others: (n, 4, D) → (n,). Equal ones count as wrong."""
    units = features / np.maximum(np.linalg.norm(features, axis=2, keepdims=True), 1e-12)
    likeness = (units @ np.swapaxes(units, 1, 2)).sum(2) - 1
    found: NDArray[np.bool_] = likeness[:, -1] < likeness[:, :-1].min(1)
    return found


def groups_of(codes: NDArray[np.int64], clips: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Choose pictures for the task: for each code, three of its tokens in different clips, and one token of another code and clip.

    Args:
        codes: (n,) the code of each token.
        clips: (n,) its clip.
        seed: Of the choice.

    Returns:
        (g, 4) places of tokens, the odd one last; a row for each code that occurs in three clips.
    """
    rng = np.random.default_rng([seed, 13])
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    starts = np.flatnonzero(np.r_[True, np.diff(codes[order]) != 0])
    found = []
    for own in np.split(order, starts[1:]):
        _, first = np.unique(clips[own], return_index=True)
        if len(first) < EACH:
            continue
        chosen = own[rng.permutation(first)[:EACH]]
        for _ in range(100):
            odd = int(rng.integers(len(codes)))
            if codes[odd] != codes[own[0]] and clips[odd] not in clips[chosen]:
                found.append([*chosen.tolist(), odd])
                break
    return np.array(found, dtype=np.int64).reshape(-1, EACH + 1)
