"""All answers as one table, and `ratings.csv`. One row for each score, and one for each choice of an action."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from vtlvlm.ratings.answers import Session
from vtlvlm.ratings.study_folder import CANNOT_TELL, QUESTIONS, Study
from vtlvlm.system.files import replacing
from vtlvlm.system.text import cell

IDENTIFICATION = "identification"


@dataclass(frozen=True)
class Rating:
    """A row of ``ratings.csv``.

    Attributes:
        rater: Code.
        trial: Place in the rater's session, from 1.
        clip: Number of the clip in the study, from 1; 0 for a check.
        kind: ``events``, ``baseline``, ``mismatched``, ``shuffled`` or ``none``.
        purpose: ``practice``, ``main``, ``control``, ``check`` or ``repeat``.
        question: ``coherence``, ``meaningfulness``, ``essence`` or ``identification``.
        score: 1 to 5; for an identification 1 if it is right, and else 0.
        cannot_tell: Whether the rater chose "cannot tell".
        ms: Milliseconds of the step.
        first_seen: Whether the rater sees the clip for the first time.
        target: The score that a check asks for; 0 otherwise.
        recognised: Whether the model recognises the clip.
        study_hash: Of the study.
    """

    rater: str
    trial: int
    clip: int
    kind: str
    purpose: str
    question: str
    score: int
    cannot_tell: int
    ms: int
    first_seen: int
    target: int
    recognised: int
    study_hash: str


def ratings_of(study: Study, sessions: Sequence[Session]) -> list[Rating]:
    """The rows of all sessions."""
    return [row for session in sessions for row in _rows(study, session)]


def _rows(study: Study, session: Session) -> list[Rating]:
    found = []
    order = study.orders[session.slot]
    first = {step.clip: place for place, step in reversed([*enumerate(order)])}
    for answer in session.answers:
        step = order[answer.trial]
        clip = study.clips[step.clip] if step.clip >= 0 else None
        if answer.step == "identify":
            assert clip is not None
            named = answer.choice != CANNOT_TELL
            given = [(IDENTIFICATION, int(named and clip.choices[answer.choice] == clip.action), int(not named))]
        else:
            given = [(question.name, score, 0) for question, score in zip(QUESTIONS, answer.scores, strict=True)]
        found += [
            Rating(
                rater=session.code,
                trial=answer.trial + 1,
                clip=step.clip + 1,
                kind=step.shown,
                purpose=step.purpose,
                question=question,
                score=score,
                cannot_tell=cannot,
                ms=answer.ms,
                first_seen=int(first[step.clip] == answer.trial),
                target=step.target,
                recognised=0 if clip is None else int(clip.right),
                study_hash=study.hash,
            )
            for question, score, cannot in given
        ]
    return found


def write_ratings(path: Path, ratings: Sequence[Rating]) -> None:
    """Write ``ratings.csv``, whole or not at all."""
    names = [field.name for field in fields(Rating)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([cell(getattr(rating, name)) for name in names] for rating in ratings)
