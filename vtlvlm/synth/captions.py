"""True captions of rendered clips: what the rig knows of a clip, in three forms of words."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vtlvlm.synth.dataset import ClipSpec, write

FILE = "captions.csv"
FORMS = 3
"""Captions of a clip"""
SEEN = {
    1: ("seen from the front", "from the front", "the camera is in front"),
    2: ("seen from the right", "from the right", "the camera is at the right"),
    3: ("seen from the left", "from the left", "the camera is at the left"),
}
"""For each camera and form; right and left as the performer has them"""
NUMBERS = ("no", "one", "two", "three", "four", "five")
WORDS: dict[int, tuple[str, str, str]] = {
    6: (
        "a person picks up a box with the {hand} hand",
        "somebody bends down and takes a box from the floor with the {hand} hand",
        "with the {hand} hand, a person lifts a box off the floor",
    ),
    8: ("a person sits down on a chair", "somebody lowers themselves onto a chair", "a standing person takes a seat"),
    9: ("a person stands up from a chair", "somebody gets up from a chair", "a seated person rises"),
    10: (
        "a person claps {times} times",
        "somebody claps both hands together {times} times",
        "a person applauds, with {times} claps",
    ),
    14: ("a person puts on a jacket", "somebody gets dressed in a jacket", "one sleeve after the other, a person puts a jacket on"),
    15: ("a person takes off a jacket", "somebody slips out of a jacket", "one sleeve after the other, a person takes a jacket off"),
    22: (
        "a person cheers and pumps both fists {times} times",
        "somebody raises both arms and cheers {times} times",
        "with both fists up, a person cheers {times} times",
    ),
    23: (
        "a person waves the {hand} hand {times} times",
        "somebody raises the {hand} hand and waves it {times} times",
        "with the {hand} hand, a person waves {times} times",
    ),
    24: (
        "a person kicks a ball with the {hand} foot",
        "somebody swings the {hand} leg and kicks a ball away",
        "with the {hand} foot, a person shoots a ball",
    ),
    27: ("a person jumps up {times} times", "somebody leaps into the air {times} times", "a person crouches and jumps, {times} times"),
    43: ("a person falls to the floor", "somebody collapses and stays on the floor", "a person loses balance and falls down"),
    58: (
        "two people shake hands {times} times",
        "two people face each other and shake hands {times} times",
        "a handshake of two people, {times} times up and down",
    ),
    97: (
        "a person swings both arms in circles {times} times",
        "somebody draws {times} big circles with both arms",
        "with straight arms, a person makes {times} circles",
    ),
    99: ("a person runs on the spot", "somebody runs without moving forward", "a person lifts the knees in turn and runs on the spot"),
}
"""Three forms for each rendered action"""


def captions_of(clip: ClipSpec) -> list[str]:
    """The captions of a clip: action, working hand or foot, repetitions, prop, number of people, and viewpoint."""
    performance = clip.performance()
    facts = {"hand": performance.working[0], "times": NUMBERS[performance.times]}
    said = [words.format(**facts) for words in WORDS[clip.action]]
    first, second, third = SEEN[clip.camera]
    return [f"{said[0]}, {first}", f"{second}, {said[1]}", f"{said[2]}; {third}"]


def clips_of(manifest: Mapping[str, Any]) -> list[ClipSpec]:
    """The clips of a set's manifest."""
    names = [re.findall(r"\d+", clip["name"]) for clip in manifest["clips"]]
    return [ClipSpec(manifest["seed"], *map(int, numbers)) for numbers in names]


def write_captions(output: Path, clips: Iterable[ClipSpec]) -> int:
    """Write ``captions.csv`` (clip,caption; three rows a clip), whole or not at all. Returns the number of rows."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["clip", "caption"])
    rows = [[clip.name, caption] for clip in clips for caption in captions_of(clip)]
    table.writerows(rows)
    write(output / FILE, text.getvalue())
    return len(rows)
