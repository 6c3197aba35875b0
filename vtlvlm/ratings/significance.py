"""Statistics of ratings: an exact test over raters, intervals over raters and clips, agreement. Scores are ordinal, 1 to 5."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError

DRAWS = 10_000
COVERED = 0.95
MOST_EXACT = 16
"""Raters up to whom all sign flips are tried (65,536); beyond, as many are drawn"""
AT_ONCE = 1 << 21
"""Numbers in memory at once"""
ENOUGH_RATERS = 6
"""Fewer can never reach p < 0.05: the smallest p of n raters is 2 / 2^n"""


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def sign_flip(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p of a mean difference: the share of sign flips whose mean is as far from zero. Exact for up to 16 raters.

    Under the null hypothesis a rater would score both conditions alike, so that each rater's difference is as likely with the other sign.

    Args:
        differences: (R,) one for each rater, without nan.
        seed: Of the flips that are drawn for more raters.

    Returns:
        p in (0, 1]; nan without raters.
    """
    from scipy.stats import permutation_test

    if not len(differences):
        return float("nan")
    if len(differences) == 1:
        return 1.0  # both signs are as far from zero
    exact = len(differences) <= MOST_EXACT
    found = permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if exact else (1 << MOST_EXACT) - 1,
        batch=max(1, AT_ONCE // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979). nan stays and does not count."""
    real = sorted((p, place) for place, p in enumerate(ps) if not np.isnan(p))
    found, largest = list(ps), 0.0
    for rank, (p, place) in enumerate(real):
        largest = max(largest, min(1.0, (len(real) - rank) * p))
        found[place] = largest
    return found


def crossed_bootstrap(scores: NDArray[np.float64], seed: int = 0) -> Interval:
    """The difference of two conditions' mean scores, with an interval over raters and clips: both are drawn with replacement.

    Args:
        scores: (2, R, C), nan where a rater has not seen a clip in a condition.
        seed: Of the draws.

    Returns:
        First minus second; nan where a condition has no score.
    """
    rng = np.random.default_rng(seed)
    raters, clips = scores.shape[1:]
    by_rater = rng.multinomial(raters, np.full(raters, 1 / raters), DRAWS).astype(float)
    by_clip = rng.multinomial(clips, np.full(clips, 1 / clips), DRAWS).astype(float)
    seen, filled = ~np.isnan(scores), np.nan_to_num(scores)

    def difference(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            first, second = (((one @ filled[n]) * two).sum(1) / ((one @ seen[n]) * two).sum(1) for n in (0, 1))
        return np.asarray(first - second)

    value = float(difference(np.ones((1, raters)), np.ones((1, clips)))[0])
    drawn = difference(by_rater, by_clip)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [(1 - COVERED) / 2, (1 + COVERED) / 2]) if len(drawn) else (np.nan, np.nan)
    return Interval(value, float(low), float(high))


def mean_interval(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """The mean of independent values (n,) with its bootstrap interval; nan of none."""
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    weights = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), DRAWS)
    low, high = np.quantile(weights @ values / len(values), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def require_agreement() -> None:
    """Refuse to go on without the package of the extra ``study``.

    Raises:
        UsageError: It is missing.
    """
    if importlib.util.find_spec("krippendorff") is None:
        raise UsageError("krippendorff is not installed; install it with: pip install 'vtlvlm[study]'")


def alpha(scores: NDArray[np.float64], seed: int = 0, draws: int = 500) -> Interval:
    """Krippendorff's ordinal alpha of raters, with a bootstrap interval over items.

    Args:
        scores: (R, n) scores 1 to 5, nan where a rater has not seen an item.
        seed: Of the draws.
        draws: Of items.

    Returns:
        1 for perfect agreement, 0 for chance; nan where no item has two scores or all scores are equal.
    """
    value = _alpha(scores)
    rng = np.random.default_rng(seed)
    items = scores.shape[1]
    drawn = np.array([_alpha(scores[:, rng.integers(0, items, items)]) for _ in range(draws if np.isfinite(value) else 0)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [(1 - COVERED) / 2, (1 + COVERED) / 2]) if len(drawn) else (np.nan, np.nan)
    return Interval(value, float(low), float(high))


def _alpha(scores: NDArray[np.float64]) -> float:
    import krippendorff

    paired = (~np.isnan(scores)).sum(0) > 1
    values = scores[:, paired]
    if not paired.any() or len(np.unique(values[~np.isnan(values)])) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(krippendorff.alpha(reliability_data=values, level_of_measurement="ordinal", value_domain=[1, 2, 3, 4, 5]))
