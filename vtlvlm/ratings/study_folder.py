"""The folder of a study: `study.json` with everything that raters see and in what order, and `media/` with its pictures and clips.

All names of media are random, since raters' browsers see them. Answers carry the study's hash, so that a study that has changed since is
noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from vtlvlm.errors import DataError, UsageError
from vtlvlm.ratings.design import MOST, Purpose, Shown
from vtlvlm.system.text import shown

FORMAT = 1
FILE, MEDIA, ANSWERS = "study.json", "media", "answers"
LARGEST = 64 << 20
"""Bytes of `study.json`, at most"""
TOKEN = re.compile(r"[0-9a-f]{16}(\.webp|\.mp4)?")
CANNOT_TELL = -1
"""The answer "cannot tell" to "Which action is this?\""""
SCALE = ("very poor", "poor", "fair", "good", "excellent")
"""Words of the scores 1 to 5"""


class Question(NamedTuple):
    """A question with the scale 1 to 5."""

    name: str
    text: str


QUESTIONS = (
    Question("coherence", "Coherence: the steps follow each other like one event."),
    Question("meaningfulness", "Meaningfulness: each step shows something that I can recognise and name."),
    Question("essence", "Essence and progression: the description captures what the action in the clip is, and how it proceeds."),
)
"""Coherence and meaningfulness are the columns of Table III; the third is the question that Sec. IV-E quotes"""


@dataclass(frozen=True)
class StudyClip:
    """A clip that raters see.

    Attributes:
        name: Its name in the data set, which raters never see.
        action: Place of its action in the classes.
        choices: Places of the actions that a rater chooses from.
        right: Whether the model recognises it.
        person: Its group in the data set; "" if unknown.
        video: Its file in `media`.
    """

    name: str
    action: int
    choices: tuple[int, ...]
    right: bool
    person: str
    video: str


@dataclass(frozen=True)
class Step:
    """A trial of a rater.

    Attributes:
        purpose: Why it is there.
        clip: Number of its clip; -1 for a check.
        shown: What describes the clip.
        target: The score that a check asks for.
        description: Token of its description; "" for a check.
    """

    purpose: Purpose
    clip: int
    shown: Shown
    target: int
    description: str


@dataclass(frozen=True)
class Study:
    """A study, as `vtlvlm study make` wrote it.

    Attributes:
        folder: Its place.
        facts: What `study.json` holds.
        hash: Of `study.json`, 16 hexadecimal digits.
        clips: All clips.
        orders: The trials of each slot.
    """

    folder: Path
    facts: dict[str, Any]
    hash: str
    clips: tuple[StudyClip, ...]
    orders: tuple[tuple[Step, ...], ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the actions."""
        return tuple(self.facts["classes"])

    @property
    def answers(self) -> Path:
        """Folder of the raters' answers."""
        return self.folder / ANSWERS

    def media(self, name: str) -> Path:
        """A file of the media, by its random name.

        Raises:
            KeyError: There is none of this name.
        """
        if name not in self.facts["media"]:
            raise KeyError(name)
        return self.folder / MEDIA / name

    def cards(self, step: Step) -> list[dict[str, Any]]:
        """The cards of a trial's description, as raters may see them: without the numbers of their codes."""
        if not step.description:
            return []
        cards = self.facts["descriptions"][step.description]["cards"]
        return [{name: card[name] for name in ("start", "end", "mark", "picture", "words")} for card in cards]

    def require_unchanged(self) -> None:
        """Compare all media with their hashes.

        Raises:
            DataError: One is missing or has changed.
        """
        for name, digest in self.facts["media"].items():
            try:
                now = digest_of(self.folder / MEDIA / name)
            except OSError as error:
                raise DataError(f"{self.folder / MEDIA / name}: is missing; copy the study's folder again") from error
            if now != digest:
                raise DataError(f"{self.folder / MEDIA / name}: has changed since the study was made; copy the study's folder again")


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def study_hash(content: bytes) -> str:
    """The hash of the bytes of `study.json`."""
    return hashlib.sha256(content).hexdigest()[:16]


def open_study(folder: Path) -> Study:
    """Read a study and check its form. The media are compared by :meth:`Study.require_unchanged`.

    Raises:
        UsageError: The folder is no study, or of another version.
        DataError: `study.json` is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"{folder}: holds no study; make one with: vtlvlm study make RUN {folder}")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("too large")
        content = path.read_bytes()
        facts = json.loads(content)
        version = facts["format"]
        found = None if version != FORMAT else _checked(folder, facts, study_hash(content))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({shown(error, 80)}); copy the study's folder again") from error
    if found is None:
        raise UsageError(f"{path}: a study of another version; make it again")
    return found


def _checked(folder: Path, facts: dict[str, Any], digest: str) -> Study:
    classes, media, descriptions = facts["classes"], facts["media"], facts["descriptions"]
    _require(isinstance(classes, list) and 0 < len(classes) <= 1 << 14 and all(isinstance(name, str) for name in classes), "classes")
    _require(isinstance(media, dict) and all(TOKEN.fullmatch(name) and isinstance(sum_, str) for name, sum_ in media.items()), "media")
    clips = tuple(_clip(row, len(classes), media) for row in facts["clips"])
    _require(0 < len(clips) <= 2 * MOST, "clips")
    for token, description in descriptions.items():
        _require(TOKEN.fullmatch(token) is not None and description["shown"] in get_args(Shown), "descriptions")
        for card in description["cards"]:
            good = all(isinstance(card[name], int | float) and math.isfinite(card[name]) for name in ("start", "end"))
            good = good and isinstance(card["mark"], int) and (card["picture"] is None or card["picture"] in media)
            _require(good and all(isinstance(word, str) for word in card["words"]), "cards")
    orders = tuple(tuple(_step(row, len(clips), descriptions) for row in order) for order in facts["orders"])
    _require(0 < len(orders) <= MOST and all(orders), "orders")
    return Study(folder, facts, digest, clips, orders)


def _require(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"its {what} are not as they were written")


def _clip(row: dict[str, Any], classes: int, media: dict[str, str]) -> StudyClip:
    found = StudyClip(row["name"], row["action"], tuple(row["choices"]), row["right"], row["person"], row["video"])
    good = isinstance(found.name, str) and isinstance(found.right, bool) and isinstance(found.person, str) and found.video in media
    good = good and all(isinstance(place, int) and 0 <= place < classes for place in (found.action, *found.choices))
    _require(good and found.action in found.choices, "clips")
    return found


def _step(row: dict[str, Any], clips: int, descriptions: dict[str, Any]) -> Step:
    found = Step(row["purpose"], row["clip"], row["shown"], row["target"], row["description"])
    good = found.purpose in get_args(Purpose) and found.shown in get_args(Shown) and isinstance(found.target, int)
    if found.purpose == "check":
        good = good and 1 <= found.target <= len(SCALE) and found.description == ""
    else:
        good = good and isinstance(found.clip, int) and 0 <= found.clip < clips and descriptions[found.description]["clip"] == found.clip
    _require(good, "orders")
    return found
