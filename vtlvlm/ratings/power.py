"""How many raters and clips a study needs: simulates ratings of a stated true difference and counts how often the test sees it.

A score is a latent normal value, cut into 1 to 5. The latent value is the condition's mean, plus the rater's and the clip's own leaning,
plus the rater's and the clip's own difference between the conditions, plus noise. No simulated score enters a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError

CUTS = (-1.5, -0.5, 0.5, 1.5)
"""Borders between the scores 1 to 5 on the latent scale"""
AT_ONCE = 250
LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """Standard deviations on the latent scale.

    Attributes:
        noise: Of one score.
        leaning: Of raters and of clips, over both conditions.
        slope: Of raters and of clips, in the difference between the conditions.
    """

    noise: float = 1.0
    leaning: float = 0.5
    slope: float = 0.5


class Power(NamedTuple):
    """Of one true difference."""

    latent: float
    """difference of the conditions' latent means"""
    points: float
    """mean difference of the scores that it gives"""
    power: float
    """share of studies with p < 0.05; for a difference of zero the test's size"""
    studies: int


def power(
    raters: int, clips: int, latent: float, *, both: bool = False, studies: int = 1000, seed: int = 0, spread: Spread | None = None
) -> Power:
    """The power of the exact two-sided sign-flip test over raters.

    Args:
        raters: From 2 to 16.
        clips: Rated clips, even.
        latent: Difference of the latent means, in standard deviations of the noise.
        both: Each rater sees each clip in both conditions.
        studies: To simulate.
        seed: Of the simulation.
        spread: Of raters and clips.

    Raises:
        UsageError: A number is out of range.
    """
    if not 2 <= raters <= 16:
        raise UsageError(f"--raters {raters}: from 2 to 16, whose sign flips are all tried")
    if clips < 2 or clips % 2 or clips > 400:
        raise UsageError(f"--clips {clips}: an even number from 2 to 400")
    if not 1 <= studies <= 100_000:
        raise UsageError(f"--studies {studies}: from 1 to 100,000")
    rng, spread = np.random.default_rng(seed), spread or Spread()
    seen = None if both else (np.add.outer(np.arange(raters), np.arange(clips)) % 2 == 0)
    flips = 1 - 2 * ((np.arange(1 << raters)[:, None] >> np.arange(raters)) & 1).astype(np.float64)
    hits, points = 0, 0.0
    for start in range(0, studies, AT_ONCE):
        number = min(AT_ONCE, studies - start)
        differences = _differences(rng, number, raters, clips, latent, seen, spread)
        hits += int((p_values(differences, flips) < LEVEL).sum())
        points += float(differences.mean(1).sum())
    return Power(latent, points / studies, hits / studies, studies)


def p_values(differences: NDArray[np.float64], flips: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two-sided exact p (n,) of raters' differences (n, R), with all flips (2^R, R) of ones."""
    means = np.abs(differences @ flips.T)
    found: NDArray[np.float64] = (means >= means[:, :1] - 1e-9).mean(1)
    return found


def _differences(
    rng: np.random.Generator, number: int, raters: int, clips: int, latent: float, seen: NDArray[np.bool_] | None, spread: Spread
) -> NDArray[np.float64]:
    """(n, R) each rater's mean of events minus that of the baseline, in n studies."""
    shape = number, raters, clips
    base = spread.leaning * (rng.standard_normal((number, raters, 1)) + rng.standard_normal((number, 1, clips)))
    gain = latent + spread.slope * (rng.standard_normal((number, raters, 1)) + rng.standard_normal((number, 1, clips)))
    scores = [_scores(base + sign * gain / 2 + spread.noise * rng.standard_normal(shape)) for sign in (1, -1)]
    if seen is None:
        return np.asarray(scores[0].mean(2) - scores[1].mean(2))
    half = clips / 2
    return np.asarray((scores[0] * seen).sum(2) / half - (scores[1] * ~seen).sum(2) / half)


def _scores(latent: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.searchsorted(CUTS, latent) + 1, dtype=np.float64)
