"""A measure beside its control, paired over people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtlvlm.ratings.significance import COVERED, DRAWS, Interval, sign_flip

TINY = 1e-9
"""Differences up to it are rounding"""


@dataclass(frozen=True)
class Comparison:
    """One measure and one control.

    Attributes:
        measure: What was measured.
        control: What it must beat.
        value: Mean over clips.
        control_value: Likewise.
        difference: Value minus control in the direction that is better, with a 95 % interval over people.
        p: Two-sided sign-flip test over people's means; nan where people do not enter.
        number: Of clips, or of what else was measured.
        groups: Of people, or of what else was drawn for the interval.
        beats: Whether the interval lies above zero.
        better: ``higher`` or ``lower``.
        note: A line on how to read it.
        what: Plural names of ``number`` and ``groups``.
    """

    measure: str
    control: str
    value: float
    control_value: float
    difference: Interval
    p: float
    number: int
    groups: int
    beats: bool
    better: str = "higher"
    note: str = ""
    what: tuple[str, str] = ("clips", "people")

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "difference": list(self.difference)}


def compare(
    measure: str,
    control: str,
    values: NDArray[np.float64],
    controls: NDArray[np.float64],
    people: NDArray[Any],
    *,
    better: str = "higher",
    note: str = "",
    what: tuple[str, str] = ("clips", "people"),
) -> Comparison:
    """Compare values of clips with those of a control on the same clips. Clips with nan in either are left out.

    The interval draws people, since clips of one person are alike.

    Args:
        measure: Name.
        control: Name.
        values: (n,).
        controls: (n,).
        people: (n,) the person of each clip.
        better: ``higher`` or ``lower``.
        note: See ``Comparison``.
        what: See ``Comparison``.
    """
    known = np.isfinite(values) & np.isfinite(controls)
    values, controls, people = values[known], controls[known], people[known]
    if not len(values):
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        return Comparison(measure, control, float("nan"), float("nan"), nothing, float("nan"), 0, 0, False, better, note, what)
    gains = (values - controls) * (1 if better == "higher" else -1)
    names, place = np.unique(people.astype(str), return_inverse=True)
    totals, counts = np.bincount(place, weights=gains), np.bincount(place)
    weights = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    low, high = np.quantile((weights @ totals) / (weights @ counts), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    difference = Interval(float(gains.mean()), float(low), float(high))
    p = sign_flip(totals / counts)
    means = float(values.mean()), float(controls.mean())
    return Comparison(measure, control, *means, difference, p, len(values), len(names), bool(low > TINY), better, note, what)
