"""Patterns of codes, such as ``17 then 402 within 2 s``, and where they occur in event sentences.

    pattern = step { "then" step [ "within" number "s" ] } [ "in one cell" ]
    step    = code { "or" code }

A step is met in a window that holds one of its codes. ``then`` asks for a later window; ``within 2 s`` for one that starts at most two
seconds after the window before it ended. Without ``in one cell``, the steps may lie in any cells.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import UsageError
from vtlvlm.system.text import shown

MOST_STEPS, MOST_TEXT, BLOCK = 16, 1000, 4096
"""Steps and characters of a pattern, and sentences that are compared at once, at most"""
FORM = "write codes such as 17, or `17 then 402 within 2 s`, `17 or 18 then 402`, and at the end perhaps `in one cell`"
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|\S")


class Step(NamedTuple):
    """One step of a pattern."""

    codes: tuple[int, ...]
    within: float
    """largest number of seconds since the window of the step before ended; infinite if any time may pass"""


class Pattern(NamedTuple):
    """A pattern of codes."""

    steps: tuple[Step, ...]
    one_cell: bool
    """whether all steps lie in the same cell"""


class Matches(NamedTuple):
    """Where a pattern occurs, clip by clip and in the order of time."""

    clips: NDArray[np.int64]
    """(m,) sentence"""
    spans: NDArray[np.float32]
    """(m, 2) seconds: start of the first step's window, end of the last step's"""


def read_pattern(text: str, codes: int) -> Pattern:
    """A pattern from its text; capitals do not matter.

    Args:
        text: As the module's docstring says.
        codes: K; codes are below it.

    Raises:
        UsageError: The text is none.
    """
    if len(text) > MOST_TEXT:
        raise UsageError(f"pattern {shown(text, 60)!r}: {len(text):,} characters, at most {MOST_TEXT:,} are read")
    reader = _Reader(text, codes)
    steps = [Step(reader.codes(), np.inf)]
    while reader.takes("then"):
        found = reader.codes()
        steps.append(Step(found, reader.seconds() if reader.takes("within") else np.inf))
        if len(steps) > MOST_STEPS:
            raise reader.refusal(f"more than {MOST_STEPS} steps")
    one_cell = reader.takes("in")
    if one_cell and not (reader.takes("one") and reader.takes("cell")):
        raise reader.refusal("`in` can only begin `in one cell`")
    if reader.left:
        first = f"`{shown(reader.left[0], 40)}` is unexpected"
        raise reader.refusal(f"{first}: `within` needs a `then` before it" if reader.left[0] == "within" else first)
    return Pattern(tuple(steps), one_cell)


class _Reader:
    """Takes the words of a pattern one after the other."""

    def __init__(self, text: str, codes: int) -> None:
        self.text, self.limit, self.left = text, codes, _WORD.findall(text.lower())

    def takes(self, word: str) -> bool:
        found = self.left[:1] == [word]
        if found:
            self.left.pop(0)
        return found

    def codes(self) -> tuple[int, ...]:
        found = [self._code()]
        while self.takes("or"):
            found.append(self._code())
        return tuple(dict.fromkeys(found))

    def seconds(self) -> float:
        if not self.left or not self.left[0][0].isdecimal():
            raise self.refusal(f"`within` needs a number of seconds{self._instead()}")
        number = float(self.left.pop(0))
        if not any(map(self.takes, ("s", "seconds", "second"))):
            raise self.refusal(f"`within {number:g}` needs the unit s{self._instead()}")
        return number

    def _code(self) -> int:
        if not self.left or not self.left[0].isdecimal():
            raise self.refusal(f"a code is missing{self._instead()}")
        word = self.left.pop(0)
        if int(word) >= self.limit:
            raise self.refusal(f"there is no code {shown(word, 20)}; the codes are 0 to {self.limit - 1}", form=False)
        return int(word)

    def _instead(self) -> str:
        return f" where `{shown(self.left[0], 40)}` stands" if self.left else " at the end"

    def refusal(self, why: str, form: bool = True) -> UsageError:
        return UsageError(f"pattern {shown(self.text, 80)!r}: {why}{f'; {FORM}' if form else ''}")


def match(pattern: Pattern, ids: NDArray[np.integer], spans: NDArray[np.float32]) -> Matches:
    """Where a pattern occurs.

    For each window that ends it, the match is the latest one: each step is as late as it can be before the next.

    Args:
        pattern: Its codes are below K.
        ids: (n, W, S) codes.
        spans: (n, W, 2) start and end of each window in seconds, not falling.
    """
    parts = [_matched(pattern, ids[start : start + BLOCK], spans[start : start + BLOCK], start) for start in range(0, len(ids), BLOCK)]
    return Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _matched(pattern: Pattern, ids: NDArray[np.integer], spans: NDArray[np.float32], first: int) -> Matches:
    asked: list[NDArray[np.bool_]] = [np.isin(ids, step.codes, kind="table") for step in pattern.steps]
    rows = np.flatnonzero(np.logical_and.reduce([found.any(axis=(1, 2)) for found in asked]))
    met = [found[rows] if pattern.one_cell else found[rows].any(axis=2, keepdims=True) for found in asked]  # each (r, W, S) or (r, W, 1)
    start, end = (np.broadcast_to(spans[rows, :, side, None], met[0].shape) for side in (0, 1))
    windows = np.arange(ids.shape[1])[None, :, None]
    reached, began = met[0], start
    for step, here in zip(pattern.steps[1:], met[1:], strict=True):
        latest = np.maximum.accumulate(np.where(reached, windows, -1), axis=1)
        before = np.concatenate([np.full_like(latest[:, :1], -1), latest[:, :-1]], axis=1)  # the latest window that ended the step before
        place = before.clip(min=0)
        reached = here & (before >= 0) & (start - np.take_along_axis(end, place, axis=1) <= step.within)
        began = np.take_along_axis(began, place, axis=1)
    row, window, cell = np.nonzero(reached)
    found = np.stack([rows[row] + first, window], axis=1)
    begins, ends = began[row, window, cell], end[row, window, cell]
    order = np.lexsort((-begins, found[:, 1], found[:, 0]))  # of several cells that end in one window, the tightest
    kept = order[np.append(True, np.any(np.diff(found[order], axis=0) != 0, axis=1))] if len(order) else order
    return Matches(found[kept, 0], np.stack([begins[kept], ends[kept]], axis=1))
