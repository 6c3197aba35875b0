"""A small study with real pictures and clips, written by hand, and raters who answer by a rule. For tests alone."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from videos import encode, moving_block

from vtlvlm.ratings.answers import Answer, Answers, Session
from vtlvlm.ratings.design import Design, orders
from vtlvlm.ratings.making import RULES
from vtlvlm.ratings.study_folder import Step, Study, digest_of, open_study

SMALL = Design(clips=4, raters=4, controls=2, practice=1, checks=1, repeats=1, seed=5)
CLASSES = ["fall down", "slide right", "clap", "wave"]
SECRET = ("events", "baseline", "mismatched", "shuffled", "control", "repeat", "S001")
"""Words that tell a rater how a description was made, or what its clip is"""


def picture(shade: int) -> bytes:
    """A square of one shade as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((292, 292, 3), shade, np.uint8)).save(buffer, format="WEBP")
    return buffer.getvalue()


def small_study(folder: Path, design: Design = SMALL, classes: list[str] = CLASSES) -> Study:
    """A study of that design: two pictures, one clip file for each clip, two cards for each description."""
    media = folder / "media"
    media.mkdir(parents=True)
    pictures = [f"{number:016x}.webp" for number in (1, 2)]
    for number, name in enumerate(pictures):
        (media / name).write_bytes(picture(80 + 90 * number))
    clips = []
    for number in range(design.all_clips):
        video = f"{100 + number:016x}.mp4"
        encode(media / video, moving_block(20, falls=number % 2 == 0, shade=10 * number % 250))
        action = number % len(classes)
        choices = [(action + place) % len(classes) for place in range(len(classes))]
        clip = {"name": f"S001C001P003R001A{number:03}", "action": action, "choices": choices, "right": number % 3 > 0}
        clips.append({**clip, "person": "P003", "video": video})
    tokens: dict[tuple[int, str], str] = {}
    rows = []
    for order in orders(design):
        rows.append([])
        for trial in order:
            key = trial.clip, trial.shown
            token = "" if trial.purpose == "check" else tokens.setdefault(key, f"{1000 + len(tokens):016x}")
            rows[-1].append({**trial._asdict(), "description": token})
    descriptions = {}
    for (clip, what), token in tokens.items():
        cards = [
            {"start": 0.0, "end": 0.5, "mark": 0, "code": 17, "picture": pictures[0], "words": []},
            {"start": 0.5, "end": 0.8, "mark": 1, "code": 3, "picture": pictures[1] if clip % 2 else None, "words": []},
        ]
        descriptions[token] = {"clip": clip, "shown": what, "joined": 0, "cards": cards}
    facts = {
        "format": 1,
        "design": asdict(design),
        "rules": RULES,
        "words": False,
        "classes": classes,
        "origin": {"protocol": "xsub60", "windows": 4, "cells": 1, "codes": 8},
        "clips": clips,
        "descriptions": descriptions,
        "orders": rows,
        "media": {path.name: digest_of(path) for path in sorted(media.iterdir())},
    }
    (folder / "study.json").write_text(json.dumps(facts))
    return open_study(folder)


Rule = Callable[[Step, str], tuple[int, ...]]
"""A step and ``identify`` or ``rate`` → the scores, or the choice alone"""


def answer(study: Study, session: Session, rule: Rule, ms: int = 5000) -> Answer | None:
    """The next answer by a rule; checks are passed."""
    due = session.next(study)
    if due is None:
        return None
    step = study.orders[session.slot][due[0]]
    if step.purpose == "check":
        return Answer(due[0], "rate", 0, (step.target,) * 3, ms)
    given = rule(step, due[1])
    return Answer(due[0], "rate", 0, given, ms) if due[1] == "rate" else Answer(due[0], "identify", given[0], (), ms)


def fill(study: Study, answers: Answers, rule: Rule, ms: int = 5000) -> Session:
    """A whole session of a new rater."""
    session = answers.start()
    while (given := answer(study, session, rule, ms)) is not None:
        session = answers.add(session.code, given)
    return session
