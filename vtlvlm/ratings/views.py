"""What a rater's page gets: no condition, no clip's name, no reason of a trial. Both ways in send the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtlvlm.ratings.answers import Session, StepName, steps_of
from vtlvlm.ratings.study_folder import QUESTIONS, SCALE, Study

PAGE = Path(__file__).parent / "page"
FILES = ("index.html", "study.js", "study.css")
KINDS = {".webp": "image/webp", ".mp4": "video/mp4"}
TEXT = (
    "You will see short descriptions of video clips: a row of steps, each shown by pictures from other clips. First you name the action "
    "from the description alone. Then you see the clip itself, and judge how well the description fits."
)
CONSENT = (
    "Taking part is free and takes about half an hour. You can stop at any time and continue later with your code.",
    "Only your choices, your scores and how long each took are kept, under a random code. No name, address or time of day is kept.",
    "You can withdraw at any time: the button at the bottom, or your code given to the person who invited you, deletes all your answers.",
    "The clips show everyday movements of people, without sound.",
)


def about(study: Study) -> dict[str, Any]:
    """The first page, the questions and the scale."""
    questions = [{"name": question.name, "text": question.text} for question in QUESTIONS]
    return {"text": TEXT, "consent": CONSENT, "questions": questions, "scale": SCALE}


def view(study: Study, session: Session) -> dict[str, Any]:
    """What comes next for a rater."""
    due, trials = session.next(study), len(study.orders[session.slot])
    found = None if due is None else step_view(study, session.slot, *due)
    return {"code": session.code, "done": trials if due is None else due[0], "trials": trials, "step": found}


def step_view(study: Study, slot: int, trial: int, name: StepName) -> dict[str, Any]:
    """One step. The clip comes with the scores alone, so that the action is named before it is seen."""
    step = study.orders[slot][trial]
    found: dict[str, Any] = {"number": trial + 1, "name": name, "practice": step.purpose == "practice", "check": step.target}
    if step.purpose == "check":
        return found
    clip = study.clips[step.clip]
    found["cards"] = study.cards(step)
    if name == "identify":
        return found | {"choices": [study.classes[place] for place in clip.choices]}
    return found | {"video": clip.video}


def all_views(study: Study, slot: int) -> list[dict[str, Any]]:
    """Every step of a slot, for a page without a server."""
    return [step_view(study, slot, trial, name) for trial, name in steps_of(study.orders[slot])]
