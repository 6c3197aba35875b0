"""Finds the actions of a long video with a recogniser of single clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.batches import EventTokens
from vtlvlm.data.playing import Frame, playing
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip, decode_sampled
from vtlvlm.errors import DataError, UsageError
from vtlvlm.segments.deciding import Hysteresis, best_path, tidied
from vtlvlm.segments.timeline import NONE, Segment, to_segments
from vtlvlm.segments.trimming import Parts, reaching, trimmed
from vtlvlm.segments.windows import Grid, windows

MODES = ("path", "windows", "hysteresis")
BELOW = 0.2
"""An action ends this far below the probability with which it begins, with hysteresis"""


class Judged(Protocol):
    """Whether a clip is like the training."""

    @property
    def rejected(self) -> bool:
        """Whether it is unlike anything in the training."""


class Reading(NamedTuple):
    """What a model says of a window."""

    probabilities: NDArray[np.float64]
    """(A,)"""
    rejected: bool
    spans: NDArray[np.float64] | None
    """(W, 2) seconds from the window's start; None from a model without event sentences"""


class ClipAnswer(Protocol):
    """What a model says of a clip."""

    @property
    def probabilities(self) -> Tensor:
        """(A,), calibrated."""

    @property
    def familiarity(self) -> Judged | None:
        """None without a rule of rejection."""

    @property
    def events(self) -> EventTokens | None:
        """The event sentence; None from a model without one."""


class ClipModel(Protocol):
    """What recognises single clips: an ``ActionRecognizer`` or a ``ProbeRecognizer``."""

    classes: list[str]
    sampling: FrameSampling

    def recognise(self, clip: Clip) -> ClipAnswer:
        """What the model says of a clip."""


@dataclass(frozen=True)
class Rule:
    """From probabilities to segments.

    Attributes:
        least: An action needs at least this probability to be likelier than none, in (0, 1).
        switch: Price of a change of label, in nats.
        shortest: Seconds; shorter segments are left out.
        gap: Seconds; shorter gaps within one action are closed.
        decide: ``path`` takes the best path through the whole video. ``windows`` takes the best label of each step by itself.
            ``hysteresis`` goes step by step, with what is known so far: an action begins after two steps at ``least``, and ends at the
            first step 0.2 below it.
        trim: Cut each segment to where something moves, by the event sentences (``trimming.py``).

    Raises:
        UsageError: A number is out of range.
    """

    least: float = 0.5
    switch: float = 1.0
    shortest: float = 0.5
    gap: float = 0.5
    decide: str = "path"
    trim: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.least < 1 or not self.switch >= 0 or not min(self.shortest, self.gap) >= 0:
            raise UsageError(
                f"least={self.least}, switch={self.switch}, shortest={self.shortest}, gap={self.gap}: least in (0, 1), others from 0"
            )
        if self.decide not in MODES:
            raise UsageError(f"decide={self.decide!r}: use one of {', '.join(MODES)}")

    def hysteresis(self) -> Hysteresis:
        """The decision step by step."""
        return Hysteresis(self.least, max(0.0, self.least - BELOW))

    def tidied(self, labels: NDArray[np.int64], hop: float) -> NDArray[np.int64]:
        """Labels (T,) of steps of ``hop`` seconds without short gaps and short segments."""
        return tidied(labels, round(self.shortest / hop), round(self.gap / hop))


class Found(NamedTuple):
    """The actions of a video."""

    segments: list[Segment]
    seconds: float
    """length of the video"""
    step: float
    """seconds of a step: the windows' hop, or the whole video if it is shorter than a window"""
    probabilities: NDArray[np.float64]
    """(steps, A) of the actions"""
    windows: NDArray[np.float64]
    """(windows, A) probabilities of each window"""
    rejected: NDArray[np.bool_]
    """(windows,) whether a window is unlike anything in the training; False throughout without a rule of rejection"""
    parts: list[Parts]
    """the parts of each window's event sentence; empty from a model without one"""


def find(model: ClipModel, file: str | Path, grid: Grid, rule: Rule, progress: Callable[[float], object] | None = None) -> Found:
    """The actions of a video file. Its frames are decoded once, and only those of the open windows are held.

    Args:
        model: Recognises clips.
        file: A video.
        grid: The windows.
        rule: From probabilities to segments.
        progress: Called with the seconds that were read so far.

    Raises:
        DataError: The file cannot be read, or the model gives no probabilities.
    """
    file, end = Path(file), 0.0
    rows: list[Reading] = []
    with playing(file, model.sampling) as video:

        def watched(frames: Iterable[Frame]) -> Iterator[Frame]:
            nonlocal end
            for frame in frames:
                end = frame.time + 1 / video.rate
                if progress is not None:
                    progress(end)
                yield frame

        for window in windows(watched(video.frames), video.rate, grid, model.sampling):
            rows.append(recognised(model, window.clip, file))
    if not rows:  # shorter than a window: the whole video is one clip, as for classify
        rows.append(recognised(model, decode_sampled(file, model.sampling), file))
        grid = Grid(end, end)
    parts = [Parts(number * grid.hop, one.spans) for number, one in enumerate(rows) if one.spans is not None]
    rejected = np.array([one.rejected for one in rows])
    return decided(np.stack([one.probabilities for one in rows]), model.classes, grid, end, rule, rejected, parts)


@torch.inference_mode()
def recognised(model: ClipModel, clip: Clip, file: str | Path) -> Reading:
    """What a model says of a window.

    Raises:
        DataError: The model gives no probabilities.
    """
    answer = model.recognise(clip)
    found: NDArray[np.float64] = answer.probabilities.double().numpy()
    if not np.isfinite(found).all():
        raise DataError(f"{file}: the model gives no probabilities for it (NaN); its weights are damaged")
    spans = None if answer.events is None else answer.events.spans[0].double().cpu().numpy()
    return Reading(found, answer.familiarity is not None and answer.familiarity.rejected, spans)


def decided(
    windows: NDArray[np.float64],
    classes: list[str],
    grid: Grid,
    end: float,
    rule: Rule,
    rejected: NDArray[np.bool_] | None = None,
    parts: Sequence[Parts] = (),
) -> Found:
    """From the probabilities (windows, A) of the windows of a video to segments. A rejected window counts as none of the actions.

    Args:
        windows: Of each window, in order.
        classes: The A names.
        grid: The windows.
        end: Seconds of the video.
        rule: How it is decided.
        rejected: (windows,) whether a window is unlike anything in the training; None for none.
        parts: Of the windows' event sentences, to trim segments with.
    """
    rejected = np.zeros(len(windows), dtype=np.bool_) if rejected is None else rejected
    probabilities = of_steps(windows, grid, end, rejected) if rule.decide != "windows" else _nearest(windows, grid, end, rejected)
    with np.errstate(divide="ignore"):
        scores = np.log(np.concatenate([probabilities, np.full((len(probabilities), 1), rule.least)], axis=1))
    if rule.decide == "hysteresis":
        decide = rule.hysteresis()
        labels = np.array([decide(row) for row in probabilities])
    else:
        labels = best_path(scores, rule.switch) if rule.decide == "path" else scores.argmax(1)
        labels = np.where(labels == len(classes), NONE, labels)
    labels = rule.tidied(labels, grid.hop)
    segments = [one._replace(end=min(one.end, end)) for one in to_segments(labels, classes, grid.hop, probabilities)]
    if rule.trim and parts:
        segments = [trimmed(one, reaching(parts, one, grid.clip)) for one in segments]
    return Found(segments, end, grid.hop, probabilities, windows, rejected, list(parts))


def of_steps(rows: NDArray[np.float64], grid: Grid, end: float, rejected: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Probabilities of steps of ``hop`` seconds: the normalised geometric mean over the windows that cover a step, weighted by how near
    their middles are (a triangle). What lies behind the last window counts as its end. Rejected windows have no part in the mean, and their
    share of the weights is taken off all actions: it is the probability of none.

    Args:
        rows: (windows, A).
        grid: The windows.
        end: Seconds of the video.
        rejected: (windows,); None for none.

    Returns:
        (steps, A).
    """
    told = np.zeros(len(rows), dtype=np.bool_) if rejected is None else rejected
    return some_steps(rows, told, 0, np.arange(number_of_steps(grid, end)), len(rows), grid)


def some_steps(
    rows: NDArray[np.float64], rejected: NDArray[np.bool_], first: int, steps: NDArray[np.int64], number: int, grid: Grid
) -> NDArray[np.float64]:
    """As :func:`of_steps`, for some of the steps (S,), from the windows that cover them. The result is the same to the bit.

    Args:
        rows: (n, A) of consecutive windows.
        rejected: (n,)
        first: Number of the first of them.
        steps: Their numbers.
        number: Windows in all.
        grid: The windows.

    Returns:
        (S, A).
    """
    near, weights = _near(steps, number, grid)
    at = (near - first).clip(0, len(rows) - 1)
    weights = weights * ~rejected[at]
    known = weights.sum(1, keepdims=True)
    mean = ((weights / np.where(known > 0, known, 1))[:, :, None] * np.log(np.clip(rows, 1e-12, None))[at]).sum(1)
    found = np.exp(mean - mean.max(1, keepdims=True))
    result: NDArray[np.float64] = known * found / found.sum(1, keepdims=True)
    return result


def number_of_steps(grid: Grid, end: float) -> int:
    """Steps of a video of ``end`` seconds."""
    return max(1, math.ceil(end / grid.hop - 1e-9))


def reach_of(grid: Grid) -> int:
    """A step is covered by windows of at most so much smaller numbers than its own."""
    return math.ceil(grid.clip / grid.hop) + 1


def _near(steps: NDArray[np.int64], number: int, grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The windows (S, N) that may cover each step, and their weights, which sum to one."""
    middles = np.minimum((steps + 0.5) * grid.hop, (number - 1) * grid.hop + grid.clip - grid.hop / 2)
    first = np.floor((middles - grid.clip) / grid.hop).astype(np.int64)
    near = first[:, None] + np.arange(reach_of(grid) + 1)
    distance = np.abs(middles[:, None] - near * grid.hop - grid.clip / 2)
    weights = np.clip(1 - distance / (grid.clip / 2 + 1e-9), 0, None) * ((near >= 0) & (near < number))
    return near.clip(0, number - 1), weights / weights.sum(1, keepdims=True)


def _nearest(rows: NDArray[np.float64], grid: Grid, end: float, rejected: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(steps, A) the probabilities of the window whose middle is nearest; 0 if it is rejected."""
    near, weights = _near(np.arange(number_of_steps(grid, end)), len(rows), grid)
    chosen = near[np.arange(len(near)), weights.argmax(1)]
    return rows[chosen] * ~rejected[chosen, None]
