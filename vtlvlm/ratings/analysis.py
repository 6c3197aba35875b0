"""What the ratings say: Table III with its test, intervals, agreement, identification, controls, and who is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtlvlm.ratings.design import CONDITIONS
from vtlvlm.ratings.making import RULES
from vtlvlm.ratings.significance import Interval, alpha, crossed_bootstrap, holm, mean_interval, sign_flip
from vtlvlm.ratings.study_folder import QUESTIONS, Study
from vtlvlm.ratings.table import IDENTIFICATION, Rating


@dataclass(frozen=True)
class QuestionResult:
    """One question.

    Attributes:
        name: Of the question.
        means: Mean score of events and of the baseline.
        medians: Likewise.
        difference: Events minus baseline, interval over raters and clips.
        p: Of the exact sign-flip test over raters' mean differences.
        p_holm: Corrected for the number of questions.
        raters: Raters with scores in both conditions.
        scores: Scores that count.
        alpha: Ordinal agreement over all described clips.
    """

    name: str
    means: tuple[float, float]
    medians: tuple[float, float]
    difference: Interval
    p: float
    p_holm: float
    raters: int
    scores: int
    alpha: Interval


@dataclass(frozen=True)
class Identification:
    """How often raters name the action from a description alone, before they see the clip.

    Attributes:
        accuracy: Of events and of the baseline, over raters.
        cannot_tell: Share of "cannot tell" in each.
        chance: Of a rater who guesses.
        p_chance: Of each accuracy against chance, sign-flip over raters.
        p: Of their difference.
    """

    accuracy: tuple[Interval, Interval]
    cannot_tell: tuple[float, float]
    chance: float
    p_chance: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Results:
    """Everything that a report shows of some raters."""

    raters: int
    questions: tuple[QuestionResult, ...]
    identification: Identification | None
    controls: dict[str, tuple[float, int]]
    """kind -> mean score over all questions, and the number of trials; ``events`` are those of rated clips"""
    repeated: tuple[float, float, int]
    """share of equal scores when a trial is shown again, mean absolute difference, and number of scores"""
    recognised: dict[bool, tuple[float, float]]
    """whether the model recognises the clip -> mean score of events and of the baseline, over all questions"""


def excluded(ratings: Sequence[Rating]) -> dict[str, str]:
    """The raters whom the rules of the study leave out, with the reason."""
    found: dict[str, str] = {}
    for rater in dict.fromkeys(rating.rater for rating in ratings):
        own = [rating for rating in ratings if rating.rater == rater and rating.question != IDENTIFICATION]
        checks = [rating for rating in own if rating.purpose == "check"]
        scored = [rating for rating in own if rating.purpose in ("main", "repeat")]
        times = [rating.ms for rating in scored if rating.question == QUESTIONS[0].name]
        if any(rating.score != rating.target for rating in checks):
            found[rater] = "failed a check"
        elif times and float(np.median(times)) < 1000 * float(str(RULES["seconds"])):
            found[rater] = f"median time {np.median(times) / 1000:.1f} s"
        elif len(scored) > len(QUESTIONS) and len({rating.score for rating in scored}) == 1:
            found[rater] = "all scores equal"
    return found


def score_grid(ratings: Sequence[Rating], question: str, clips: int) -> NDArray[np.float64]:
    """(2, R, C) scores of a question in rated trials, events first; nan where a rater did not rate a clip. Raters are in order of their
    first row."""
    raters = {rater: place for place, rater in enumerate(dict.fromkeys(rating.rater for rating in ratings))}
    found = np.full((2, len(raters), clips), np.nan)
    for rating in ratings:
        if rating.purpose == "main" and rating.question == question:
            found[CONDITIONS.index(rating.kind), raters[rating.rater], rating.clip - 1] = rating.score
    return found


def analyse(study: Study, ratings: Sequence[Rating]) -> Results:
    """The results of some ratings."""
    clips = int(study.facts["design"]["clips"])
    raters = len({rating.rater for rating in ratings})
    grids = {question.name: score_grid(ratings, question.name, clips) for question in QUESTIONS}
    tested = {name: _differences(grid) for name, grid in grids.items()}
    ps = [sign_flip(tested[name]) for name in grids]
    questions = tuple(
        QuestionResult(
            name=name,
            means=(_mean(grid[0]), _mean(grid[1])),
            medians=(_median(grid[0]), _median(grid[1])),
            difference=crossed_bootstrap(grid),
            p=p,
            p_holm=corrected,
            raters=len(tested[name]),
            scores=int((~np.isnan(grid)).sum()),
            alpha=alpha(np.concatenate([grid[0], grid[1]], axis=1)),
        )
        for (name, grid), p, corrected in zip(grids.items(), ps, holm(ps), strict=True)
    )
    scored = [rating for rating in ratings if rating.question != IDENTIFICATION]
    controls = {
        kind: [r.score for r in scored if r.kind == kind and r.purpose == ("main" if kind == "events" else "control")]
        for kind in ("events", "mismatched", "shuffled")
    }
    recognised = {
        right: tuple(
            _mean(np.array([r.score for r in scored if r.purpose == "main" and r.kind == kind and bool(r.recognised) == right], float))
            for kind in CONDITIONS
        )
        for right in (True, False)
    }
    return Results(
        raters=raters,
        questions=questions,
        identification=_identification(study, ratings),
        controls={kind: (_mean(np.array(scores, float)), len(scores) // len(QUESTIONS)) for kind, scores in controls.items()},
        repeated=_repeated(scored),
        recognised=recognised,  # type: ignore[arg-type]
    )


def _differences(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R',) each rater's mean of events minus that of the baseline, of raters with both."""
    both = (~np.isnan(grid)).any(2).all(0)
    means = np.nanmean(grid[:, both], axis=2)
    found: NDArray[np.float64] = means[0] - means[1]
    return found


def _mean(values: NDArray[np.float64]) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _median(values: NDArray[np.float64]) -> float:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _identification(study: Study, ratings: Sequence[Rating]) -> Identification | None:
    """Of rated trials whose clip the rater had not seen."""
    rows = [r for r in ratings if r.purpose == "main" and r.question == IDENTIFICATION and r.first_seen]
    if not rows:
        return None
    chance = float(np.mean([1 / len(study.clips[r.clip - 1].choices) for r in rows]))
    shares: dict[str, dict[str, list[int]]] = {kind: {} for kind in CONDITIONS}
    for row in rows:
        shares[row.kind].setdefault(row.rater, []).append(row.score)
    means = {kind: {rater: float(np.mean(values)) for rater, values in own.items()} for kind, own in shares.items()}
    accuracy = tuple(mean_interval(np.array([*means[kind].values()])) for kind in CONDITIONS)
    both = [rater for rater in means["events"] if rater in means["baseline"]]
    tell = tuple(float(np.mean([float(r.cannot_tell) for r in rows if r.kind == kind] or [float("nan")])) for kind in CONDITIONS)
    return Identification(
        accuracy=accuracy,  # type: ignore[arg-type]
        cannot_tell=tell,  # type: ignore[arg-type]
        chance=chance,
        p_chance=tuple(sign_flip(np.array([*means[kind].values()]) - chance) for kind in CONDITIONS),  # type: ignore[arg-type]
        p=sign_flip(np.array([means["events"][rater] - means["baseline"][rater] for rater in both])),
    )


def _repeated(scored: Sequence[Rating]) -> tuple[float, float, int]:
    first = {(r.rater, r.clip, r.kind, r.question): r.score for r in scored if r.purpose == "main"}
    gaps = np.array([abs(r.score - first[r.rater, r.clip, r.kind, r.question]) for r in scored if r.purpose == "repeat"], float)
    return (float((gaps == 0).mean()), float(gaps.mean()), len(gaps)) if len(gaps) else (float("nan"), float("nan"), 0)
