"""Which rater sees which description of which clip, and in what order. Pure arithmetic.

Half-and-half Latin square: rater r sees the events of clip c if r + c is even, and otherwise the baseline. Over a pair of raters each clip
is seen once in each condition, and each rater sees half the clips in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from vtlvlm.errors import UsageError

Condition = Literal["events", "baseline"]
Shown = Literal["events", "baseline", "mismatched", "shuffled", "none"]
"""What a trial describes a clip by: its events, the baseline, the events of a clip of another action, its own events in another order, or
nothing (a check)"""
Purpose = Literal["practice", "main", "control", "check", "repeat"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
CONTROLS: tuple[Shown, ...] = ("mismatched", "shuffled")
LONGEST_RUN = 3
"""Trials in a row that show the same thing, at most"""
APART = 8
"""Trials between two that show one clip, at least"""
TRIES = 20_000
MOST = 400
"""Clips, and raters, of a study, at most"""


class Trial(NamedTuple):
    """One page of a rater's session."""

    purpose: Purpose
    clip: int
    """number of the clip: 0 to C - 1 are rated, then come those of controls, then those of practice; -1 for a check"""
    shown: Shown
    target: int = 0
    """the score that a check asks for; 0 for other trials"""


@dataclass(frozen=True)
class Design:
    """The size of a study.

    Attributes:
        clips: C, rated clips; even, so that each rater sees half of them in each condition.
        raters: Even, since raters come in pairs.
        controls: Trials that must score low: half show the events of another clip, half the clip's own in another order.
        practice: Trials at the start, which do not count.
        checks: Trials that ask for a certain score.
        repeats: Trials that show an earlier one again.
        both: Each rater sees each clip in both conditions, at least eight trials apart. More power, less blind.
        seed: Of all orders.
    """

    clips: int = 20
    raters: int = 10
    controls: int = 4
    practice: int = 2
    checks: int = 2
    repeats: int = 2
    both: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("clips", 2, MOST), ("raters", 2, MOST), ("controls", 0, 40), ("practice", 0, 40)):
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"--{name} {getattr(self, name)}: from {least} to {most}")
        if self.clips % 2 or self.raters % 2:
            name, why = ("clips", "half of them are seen in each condition") if self.clips % 2 else ("raters", "they come in pairs")
            raise UsageError(f"--{name} {getattr(self, name)}: an even number, since {why}")
        if not 0 <= self.checks <= 10:
            raise UsageError(f"--checks {self.checks}: from 0 to 10")
        if not 0 <= self.repeats <= self.clips // 4:
            raise UsageError(f"--repeats {self.repeats}: from 0 to {self.clips // 4}, a quarter of the clips")
        if self.both and self.clips <= APART:
            raise UsageError(f"--both: needs more than {APART} clips, since the two trials of a clip are so far apart")

    @property
    def all_clips(self) -> int:
        """Clips of all kinds."""
        return self.clips + self.controls + self.practice


def condition(rater: int, clip: int) -> Condition:
    """What a rater sees a clip by: (r + c) even is events."""
    return CONDITIONS[(rater + clip) % 2]


def orders(design: Design) -> list[list[Trial]]:
    """The trials of each rater, in order. The same design gives the same orders."""
    return [_order(design, rater) for rater in range(design.raters)]


def _order(design: Design, rater: int) -> list[Trial]:
    rng = np.random.default_rng([design.seed, rater])
    main = [Trial("main", clip, condition(rater, clip)) for clip in range(design.clips)]
    first = design.clips
    more = [Trial("control", first + place, CONTROLS[(place + rater) % 2]) for place in range(design.controls)]
    more += [Trial("check", -1, "none", int(rng.integers(1, 6))) for _ in range(design.checks)]
    practice = [Trial("practice", first + design.controls + place, CONDITIONS[place % 2]) for place in range(design.practice)]
    for _ in range(TRIES):
        found = _twice(main, rng) if design.both else _shuffled(main, rng)
        found = _with(found, more, rng)
        found = _with_repeats(found, design.repeats, rng)
        if found and _good(found):
            return practice + found
    raise UsageError("no order of so few trials keeps its rules; take more clips, or fewer controls, checks and repeats")


def _shuffled(trials: Sequence[Trial], rng: np.random.Generator) -> list[Trial]:
    return [trials[place] for place in rng.permutation(len(trials))]


def _twice(main: Sequence[Trial], rng: np.random.Generator) -> list[Trial]:
    """Each clip once in a first half, and in the other condition in a second half, at least ``APART`` trials later.

    The second half starts in the order of the first, which keeps the distance, and is shuffled by exchanges that keep it too.
    """
    first = _shuffled(main, rng)
    number, second = len(first), list(range(len(first)))
    for _ in range(20 * number):
        one, other = (int(place) for place in rng.integers(0, number, 2))
        if number + other - second[one] >= APART and number + one - second[other] >= APART:
            second[one], second[other] = second[other], second[one]
    flipped = {"events": "baseline", "baseline": "events"}
    return first + [first[place]._replace(shown=flipped[first[place].shown]) for place in second]  # type: ignore[arg-type]


def _with(trials: list[Trial], more: Sequence[Trial], rng: np.random.Generator) -> list[Trial]:
    """Trials with some more mixed in; the order of the first stays."""
    places = set(rng.choice(len(trials) + len(more), len(more), replace=False).tolist())
    rest, added = iter(trials), iter(_shuffled(more, rng))
    return [next(added) if place in places else next(rest) for place in range(len(trials) + len(more))]


def _with_repeats(trials: list[Trial], repeats: int, rng: np.random.Generator) -> list[Trial]:
    """Trials with some early ones again, at least ``APART`` later; at the end if the session is too short for that."""
    early = [place for place, trial in enumerate(trials[: len(trials) // 2]) if trial.purpose == "main"]
    if len(early) < repeats:
        return []
    chosen = sorted(rng.choice(early, repeats, replace=False).tolist(), reverse=True) if repeats else []
    found = list(trials)
    for place in chosen:
        at = int(rng.integers(min(place + APART, len(found)), len(found) + 1))
        found.insert(at, trials[place]._replace(purpose="repeat"))
    return found


def _good(trials: Sequence[Trial]) -> bool:
    """Whether no run is too long, and no check follows another or comes first."""
    run = 0
    for before, trial in zip([None, *trials], trials, strict=False):
        run = run + 1 if before is not None and before.shown == trial.shown else 1
        if run > LONGEST_RUN or (trial.purpose == "check" and (before is None or before.purpose == "check")):
            return False
    return True
