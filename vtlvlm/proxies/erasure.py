"""Do the steps of a sentence matter to the model as much as it seems? Deletion and insertion of steps, by their importance.

All subsets of a clip's steps (at most 8) are evaluated, so that the best, the worst and the mean of all orders are exact. An area is stated
between the worst order (0) and the best order (1) of its clip, since raw areas of different models or clips cannot be compared (NAOPC,
arXiv 2408.08137).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.ratings.cards import Stay


class Areas(NamedTuple):
    """Of one clip: an order's area between the clip's worst (0) and best (1) order; nan where all orders are equal."""

    deletion: float
    """most important step removed first"""
    insertion: float
    """most important step shown first"""
    random_deletion: float
    """mean over all orders"""
    random_insertion: float


def subsets(steps: int) -> NDArray[np.bool_]:
    """(2^n, n) whether each step is kept; row m has the bits of m."""
    found: NDArray[np.bool_] = (np.arange(1 << steps)[:, None] >> np.arange(steps)) & 1 > 0
    return found


def with_subsets(vectors: Tensor, replacement: Tensor, stays: list[Stay], cells: int) -> Tensor:
    """A sentence with every subset of its steps; the events of other steps are replaced.

    Args:
        vectors: (M, E), window by window.
        replacement: (M, E) events to put in place of removed ones.
        stays: A partition of the windows into n steps.
        cells: S.

    Returns:
        (2^n, M, E) in the order of :func:`subsets`.
    """
    step_of = np.concatenate([np.full((stay.last - stay.first + 1) * cells, number) for number, stay in enumerate(stays)])
    kept = torch.from_numpy(subsets(len(stays))[:, step_of])
    return torch.where(kept[..., None], vectors, replacement)


def areas(values: NDArray[np.float64]) -> Areas:
    """The areas of one clip.

    Args:
        values: (2^n,) log-probability of the class for each subset of the n steps, in the order of :func:`subsets`.
    """
    number = len(values).bit_length() - 1
    full, empty = len(values) - 1, 0
    masks = 1 << np.arange(number)
    importance = values[full] - values[full - masks]
    order = np.argsort(-importance, kind="stable")
    away = full - np.cumsum(masks[order])
    shown = np.cumsum(masks[order])
    sizes = subsets(number).sum(1)
    means = np.array([values[sizes == size].mean() for size in range(number + 1)])
    deletion = values[full] - values[away].mean(), values[full] - means[:number].mean()
    insertion = values[shown].mean() - values[empty], means[1:].mean() - values[empty]
    low, high = (_extreme(values, -1), _extreme(values, 1))
    # the chain of a deletion visits sizes n - 1 to 0, that of an insertion 1 to n
    fewest, most = values[full] - high / number, values[full] - low / number
    worst, best = (
        (low - values[empty] + values[full]) / number - values[empty],
        (high - values[empty] + values[full]) / number - values[empty],
    )
    return Areas(
        _between(deletion[0], fewest, most),
        _between(insertion[0], worst, best),
        _between(deletion[1], fewest, most),
        _between(insertion[1], worst, best),
    )


def _between(value: float, low: float, high: float) -> float:
    return float((value - low) / (high - low)) if high - low > 1e-9 else float("nan")


def _extreme(values: NDArray[np.float64], sign: int) -> float:
    """The largest (or smallest) sum of values along a chain of subsets, from n - 1 steps down to none; exact over all n! orders."""
    number = len(values).bit_length() - 1
    best = np.full(len(values), -np.inf)
    best[0] = sign * values[0]
    for mask in np.argsort(subsets(number).sum(1), kind="stable")[1:].tolist():
        smaller = max(best[mask ^ (1 << bit)] for bit in range(number) if mask >> bit & 1)
        best[mask] = smaller + (sign * values[mask] if mask != len(values) - 1 else 0.0)
    return float(sign * best[-1])


def erasure(
    log_probabilities: Callable[[Tensor], Tensor],
    vectors: Tensor,
    replacement: Tensor,
    stays: list[Stay],
    cells: int,
) -> Areas | None:
    """The areas of one clip for the class that the model recognises.

    Args:
        log_probabilities: (B, M, E) → (B, A).
        vectors: (M, E) the clip's events.
        replacement: (M, E).
        stays: Its steps.
        cells: S.

    Returns:
        None for a clip of one step.
    """
    if len(stays) < 2:
        return None
    found = log_probabilities(with_subsets(vectors, replacement, stays, cells)).double().numpy()
    return areas(found[:, int(found[-1].argmax())])
