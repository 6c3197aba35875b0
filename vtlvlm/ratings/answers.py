"""The answers of raters: a file of JSON lines for each, which only grows. A line is on the disk before the rater's page goes on.

A process that is killed in the middle of a line leaves a torn one at the end, which was never confirmed; it is dropped when the file is
opened again. No name, address, time of day or free text is kept: a rater is eight random characters.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vtlvlm.errors import DataError, UsageError
from vtlvlm.ratings.study_folder import CANNOT_TELL, QUESTIONS, SCALE, Step, Study
from vtlvlm.system.files import sync
from vtlvlm.system.locks import FileLock, Taken
from vtlvlm.system.text import shown

StepName = Literal["identify", "rate"]
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Of codes: none that looks like another"""
CODE = re.compile(f"[{LETTERS}]{{8}}")
LARGEST = 1 << 20
"""Bytes of a rater's file, at most"""
LONGEST_MS = 24 * 3600 * 1000


class Answer(NamedTuple):
    """One answer of a rater."""

    trial: int
    """place in the rater's order"""
    step: StepName
    choice: int
    """place among the clip's choices, -1 for "cannot tell"; 0 for scores"""
    scores: tuple[int, ...]
    """1 to 5 for each question; empty for a choice"""
    ms: int
    """milliseconds from the moment the page showed the question"""


@dataclass(frozen=True)
class Session:
    """What a rater has answered.

    Attributes:
        code: The rater.
        slot: Which of the study's orders.
        answers: In their order.
    """

    code: str
    slot: int
    answers: tuple[Answer, ...]

    def next(self, study: Study) -> tuple[int, StepName] | None:
        """What comes next: a trial and its step; None at the end."""
        place = len(self.answers)
        steps = steps_of(study.orders[self.slot])
        return steps[place] if place < len(steps) else None


def steps_of(order: tuple[Step, ...]) -> list[tuple[int, StepName]]:
    """All steps of a session: a check has scores alone, other trials a choice first."""
    return [(place, name) for place, step in enumerate(order) for name in _names(step)]


def _names(step: Step) -> tuple[StepName, ...]:
    return ("rate",) if step.purpose == "check" else ("identify", "rate")


def new_code() -> str:
    """Eight random characters."""
    return "".join(secrets.choice(LETTERS) for _ in range(8))


def require_code(code: object) -> str:
    """A rater's code, as it may come from outside.

    Raises:
        UsageError: It is none.
    """
    if not isinstance(code, str) or CODE.fullmatch(code) is None:
        raise UsageError(f"{shown(repr(code), 40)}: no code of a rater; it has eight letters and digits, such as {new_code()}")
    return code


class Answers:
    """The answers of a study, for one writer at a time.

    Args:
        study: Whose hash all answers carry.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    @contextmanager
    def writing(self) -> Iterator[Answers]:
        """Keep other writers out: a second server, an import, or a withdrawal from the command line.

        Raises:
            UsageError: Another process writes.
        """
        self.study.answers.mkdir(exist_ok=True)
        try:
            lock = FileLock(self.study.answers / ".lock")
        except Taken as error:
            raise UsageError(f"{self.study.folder}: {error.owner or 'this process'} takes answers now; end it first") from error
        try:
            yield self
        finally:
            lock.release()

    # -- reading -----------------------------------------------------------------------------------------------------------------

    def codes(self) -> list[str]:
        """The raters who have begun."""
        folder = self.study.answers
        return sorted(path.stem for path in folder.glob("*.jsonl") if CODE.fullmatch(path.stem)) if folder.is_dir() else []

    def sessions(self) -> list[Session]:
        """All raters, in the order of their codes. One who was cut off before the first line counts as not begun.

        Raises:
            DataError: A file is damaged, or of another study.
        """
        found = [session for code in self.codes() if (session := self.read(code)) is not None]
        slots: dict[int, str] = {}
        for session in found:
            if session.slot in slots:
                raise DataError(
                    f"{self._path(session.code)}: has slot {session.slot + 1}, as {slots[session.slot]} has; withdraw one of them with: "
                    f"vtlvlm study forget {self.study.folder} CODE"
                )
            slots[session.slot] = session.code
        return found

    def read(self, code: str) -> Session | None:
        """A rater's session; None if no whole line is there.

        Raises:
            UsageError: There is no such rater.
            DataError: The file is damaged, or of another study.
        """
        path = self._path(require_code(code))
        if not path.is_file():
            raise UsageError(f"{code}: no rater of this study has this code; look at it again")
        return parse(self.study, path.read_bytes(), str(path), code)

    def _path(self, code: str) -> Path:
        return self.study.answers / f"{code}.jsonl"

    # -- writing -----------------------------------------------------------------------------------------------------------------

    def start(self) -> Session:
        """A new rater, in the first slot that is free.

        Raises:
            UsageError: All slots are taken.
        """
        taken = {session.slot for session in self.sessions()}
        free = [slot for slot in range(len(self.study.orders)) if slot not in taken]
        if not free:
            raise UsageError(f"all {len(self.study.orders)} places of the study are taken; make one for more raters")
        while (path := self._path(code := new_code())).exists():
            pass
        session = Session(code, free[0], ())
        _create(path, head_line(self.study, session))
        return session

    def add(self, code: str, answer: Answer) -> Session:
        """Append an answer. The same answer again changes nothing, since a page sends it again when the confirmation was lost.

        Raises:
            UsageError: There is no such rater, it is not this answer's turn, or the answer is none.
        """
        session = self.resume(code)
        if answer in session.answers:
            return session
        due = session.next(self.study)
        require_answer(self.study, session.slot, answer)
        if due != (answer.trial, answer.step):
            what = "the session has ended" if due is None else f"trial {due[0] + 1} ({due[1]}) comes next"
            raise UsageError(f"trial {answer.trial + 1} ({answer.step}) is not due: {what}; open the page again")
        _append(self._path(code), line(answer))
        return Session(code, session.slot, (*session.answers, answer))

    def resume(self, code: str) -> Session:
        """A rater's session, with a torn last line dropped.

        Raises:
            UsageError: There is no such rater.
        """
        path = self._path(require_code(code))
        session = self.read(code)
        if session is None:
            raise UsageError(f"{code}: this rater was cut off before the start; begin anew")
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
            sync(path)
        return session

    def forget(self, code: str) -> None:
        """Delete all that a rater has answered.

        Raises:
            UsageError: There is no such rater.
        """
        path = self._path(require_code(code))
        if not path.is_file():
            raise UsageError(f"{code}: no rater of this study has this code; look at it again")
        path.unlink()
        sync(path.parent)

    def take(self, content: bytes, source: str) -> Session:
        """Import the answers that a page without a server saved.

        Args:
            content: Of the file.
            source: Its name, for messages.

        Raises:
            UsageError: The rater or the slot is here already with other answers.
            DataError: The file is damaged, or of another study.
        """
        session = parse(self.study, content, source, None)
        if session is None:
            raise DataError(f"{source}: holds no answers; save them from the page again")
        path = self._path(session.code)
        if path.is_file():
            here = self.read(session.code)
            if here is not None and here.slot == session.slot and session.answers[: len(here.answers)] == here.answers:
                for answer in session.answers[len(here.answers) :]:  # the same rater, further on
                    self.add(session.code, answer)
                return session
            raise UsageError(
                f"{source}: rater {session.code} is here already with other answers; nothing was changed, look which file is right"
            )
        others = {other.slot: other.code for other in self.sessions()}
        if session.slot in others:
            raise UsageError(
                f"{source}: page {session.slot + 1} was answered by {others[session.slot]} already; nothing was changed, give each "
                "rater another page"
            )
        _create(path, head_line(self.study, session) + b"".join(map(line, session.answers)))
        return session


# -- lines -----------------------------------------------------------------------------------------------------------------------------


def head_line(study: Study, session: Session) -> bytes:
    """The first line of a rater's file."""
    return _json({"study": study.hash, "rater": session.code, "slot": session.slot})


def line(answer: Answer) -> bytes:
    """An answer as a line."""
    given: dict[str, Any] = {"scores": list(answer.scores)} if answer.step == "rate" else {"choice": answer.choice}
    return _json({"trial": answer.trial, "step": answer.step, **given, "ms": answer.ms})


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode("ascii")


def answer_of(value: Any) -> Answer:
    """An answer from JSON.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, dict) or value.get("step") not in ("identify", "rate"):
        raise ValueError("not an answer")
    given = {"trial", "step", "ms", "scores" if value["step"] == "rate" else "choice"}
    scores, choice = value.get("scores", []), value.get("choice", 0)
    whole = all(type(number) is int for number in (value.get("trial"), value.get("ms"), choice))
    if value.keys() != given or not whole or not isinstance(scores, list) or not all(type(score) is int for score in scores):
        raise ValueError("not an answer")
    return Answer(value["trial"], value["step"], choice, tuple(scores), value["ms"])


def require_answer(study: Study, slot: int, answer: Answer) -> None:
    """Refuse an answer that its page cannot have given.

    Raises:
        UsageError: A score or a choice is out of range.
    """
    order = study.orders[slot]
    if not 0 <= answer.trial < len(order) or answer.step not in _names(order[answer.trial]):
        raise UsageError(f"trial {answer.trial + 1} ({shown(answer.step, 20)}): no such question in this session")
    if not 0 <= answer.ms <= LONGEST_MS:
        raise UsageError(f"trial {answer.trial + 1}: a time of {answer.ms} ms cannot be")
    if answer.step == "rate" and (len(answer.scores) != len(QUESTIONS) or not all(1 <= score <= len(SCALE) for score in answer.scores)):
        raise UsageError(f"trial {answer.trial + 1}: {len(QUESTIONS)} scores from 1 to {len(SCALE)} are wanted")
    if answer.step == "identify":
        choices = len(study.clips[order[answer.trial].clip].choices)
        if not CANNOT_TELL <= answer.choice < choices:
            raise UsageError(f"trial {answer.trial + 1}: choice {answer.choice} is none of {choices}")


def parse(study: Study, content: bytes, source: str, code: str | None) -> Session | None:
    """A session from the lines of a file; a torn last line is left out.

    Args:
        study: Whose hash it must carry.
        content: The file.
        source: Its name, for messages.
        code: The rater it must be of; None for any.

    Returns:
        None if not even the first line is whole.

    Raises:
        DataError: The lines are damaged, in another order, or of another study.
    """
    if len(content) > LARGEST:
        raise DataError(f"{source}: larger than a rater's answers can be; this is another file")
    lines = content.split(b"\n")[:-1]  # what follows the last line end is torn
    if not lines:
        return None
    number = 0
    try:
        head = json.loads(lines[0])
        rater, slot, of = require_code(head["rater"]), head["slot"], head["study"]
        if type(slot) is not int or not 0 <= slot < len(study.orders) or (code is not None and rater != code):
            raise ValueError("no such slot")
        if of != study.hash:
            raise DataError(
                f"{source}: answers study {shown(of, 20)}, but this one is {study.hash}: it has changed since, or the file is of another "
                "study"
            )
        answers = []
        for text in lines[1:]:
            number += 1
            answers.append(answer_of(json.loads(text)))
            require_answer(study, slot, answers[-1])
        due_steps = steps_of(study.orders[slot])
        if len(answers) > len(due_steps):
            raise ValueError("more answers than questions")
        number = 0
        for answer, due in zip(answers, due_steps, strict=False):
            number += 1
            if (answer.trial, answer.step) != due:
                raise ValueError("out of order")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{source}: line {number + 1} is damaged; take the file from a backup, or forget this rater") from error
    return Session(rater, slot, tuple(answers))


def _create(path: Path, content: bytes) -> None:
    """A new file, whole on the disk or not there."""
    path.parent.mkdir(exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            _write(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _full(path, error) from error
    sync(path.parent)


def _append(path: Path, content: bytes) -> None:
    """A line at the end, on the disk when this returns. If it cannot be written whole, the file is as before."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        before = os.fstat(handle).st_size
        try:
            _write(handle, content)
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, before)
            raise _full(path, error) from error
    finally:
        os.close(handle)


def _full(path: Path, error: OSError) -> DataError:
    return DataError(f"{path.parent}: the answer cannot be stored ({error.strerror}); free space there, then answer again. Nothing is lost")


def _write(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]
