"""Do the automatic measures say what raters say? Rank correlation over clips, once there are ratings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vtlvlm.proxies.document import number, p_text
from vtlvlm.ratings.study_folder import QUESTIONS, Study
from vtlvlm.ratings.table import Rating
from vtlvlm.report.document import Section
from vtlvlm.report.tables import Table

FEWEST = 5
"""Clips that a correlation needs"""


def values_of(facts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measures of single clips: name of the measure → name of the clip → value."""
    found = {"average precision of the action": dict(facts.get("agreement", {}).get("average_precision", {}))}
    for clip, areas in facts.get("erasure", {}).get("areas", {}).items():
        for replacement, (deletion, *_) in areas.items():
            found.setdefault(f"deletion, {replacement}", {})[clip] = deletion
    known = {name: {clip: float(value) for clip, value in rows.items() if value is not None} for name, rows in found.items()}
    return {name: rows for name, rows in known.items() if rows}


def correlations(study: Study, ratings: Sequence[Rating], facts: dict[str, Any]) -> Section | None:
    """Spearman's rank correlation of each measure with the mean scores of event sentences.

    Args:
        study: The study.
        ratings: Its rows; those of rated trials that show events count.
        facts: Of ``auto.json``.

    Returns:
        None without ratings, or with too few clips that have both.
    """
    from scipy.stats import spearmanr

    scores: dict[str, dict[str, list[int]]] = {question.name: {} for question in QUESTIONS}
    for rating in ratings:
        if rating.purpose == "main" and rating.kind == "events" and rating.question in scores:
            scores[rating.question].setdefault(study.clips[rating.clip - 1].name, []).append(rating.score)
    rows = []
    for measure, values in values_of(facts).items():
        for question, given in scores.items():
            clips = sorted(given.keys() & values.keys())
            if len(clips) < FEWEST:
                continue
            pairs = np.array([[float(np.mean(given[clip])), values[clip]] for clip in clips])
            if (pairs.min(0) == pairs.max(0)).any():
                continue
            found = spearmanr(pairs[:, 0], pairs[:, 1])
            rows.append([measure, question, number(float(found.statistic), sign=True), p_text(float(found.pvalue)), str(len(clips))])
    if not rows:
        return None
    text = "Spearman's rank correlation over clips of the mean score of event sentences with the automatic measure of the same clip."
    return Section(
        "Ratings and automatic measures", text, tables=[Table(["measure", "question", "rho", "p", "clips"], rows, name="study_auto")]
    )
