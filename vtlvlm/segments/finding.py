"""Finds the actions of a long video with a recogniser of single clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.data.playing import Frame, playing
from vtlvlm.data.sampling import FrameSampling
from vtlvlm.data.video import Clip, decode_sampled
from vtlvlm.errors import DataError
from vtlvlm.segments.deciding import best_path
from vtlvlm.segments.live import Live, Reading
from vtlvlm.segments.motion import LONG, MotionCurve, clipped, named, reaching, segment_of, windows_of
from vtlvlm.segments.rules import Rule
from vtlvlm.segments.steps import nearest, of_steps
from vtlvlm.segments.timeline import NONE, Segment, to_segments
from vtlvlm.segments.windows import SHORTEST_CLIP, Grid, windows


class Judged(Protocol):
    """Whether a clip is like the training."""

    @property
    def rejected(self) -> bool:
        """Whether it is unlike anything in the training."""


class ClipAnswer(Protocol):
    """What a model says of a clip."""

    @property
    def probabilities(self) -> Tensor:
        """(A,), calibrated."""

    @property
    def familiarity(self) -> Judged | None:
        """None without a rule of rejection."""

    @property
    def motion(self) -> Tensor | None:
        """(N, 2) seconds from the clip's start and motion (``motion.py``); None from a model that does not know when it moves."""


class ClipModel(Protocol):
    """What recognises single clips: an ``ActionRecognizer`` or a ``ProbeRecognizer``."""

    classes: list[str]
    sampling: FrameSampling

    def recognise(self, clip: Clip) -> ClipAnswer:
        """What the model says of a clip."""


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
    motions: list[NDArray[np.float64]]
    """(N, 2) motion of each window; empty from a model that does not know when it moves"""


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
        whole = recognised(model, decode_sampled(file, model.sampling), file)
        rows.append(whole._replace(motion=None))  # its frames lie closer together than those of a window
        grid = Grid(max(end, SHORTEST_CLIP), max(end, SHORTEST_CLIP))
        rule = replace(rule, decide="path") if rule.decide == "hysteresis" else rule  # which needs two steps
    return decided(rows, model.classes, grid, end, rule)


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
    motion = None if answer.motion is None else answer.motion.double().cpu().numpy()
    return Reading(found, answer.familiarity is not None and answer.familiarity.rejected, motion)


def decided(readings: Sequence[Reading], classes: list[str], grid: Grid, end: float, rule: Rule) -> Found:
    """From what a model says of the windows of a video to segments. A rejected window counts as none of the actions.

    Args:
        readings: Of each window, in order.
        classes: The A names.
        grid: The windows.
        end: Seconds of the video.
        rule: How it is decided.
    """
    windows, rejected = np.stack([one.probabilities for one in readings]), np.array([one.rejected for one in readings])
    motions = [one.motion for one in readings if one.motion is not None]
    steps = of_steps if rule.decide != "windows" else nearest
    probabilities = steps(windows, grid, end, rejected)
    if rule.decide == "hysteresis":
        live = Live(classes, grid, rule)
        told = [part for one in readings for part in live.window(one)] + live.end(end)
        segments = [one for one in told if isinstance(one, Segment)]
    elif rule.decide == "path" and rule.motion and len(motions) == len(readings):
        segments = _of_parts(windows, rejected, motions, probabilities, classes, grid, end, rule)
    else:
        labels = rule.tidied(_labels(probabilities, rule), grid.hop)
        segments = [one._replace(end=min(one.end, end)) for one in to_segments(labels, classes, grid.hop, probabilities)]
    return Found(segments, end, grid.hop, probabilities, windows, rejected, motions)


def _labels(probabilities: NDArray[np.float64], rule: Rule) -> NDArray[np.int64]:
    """The labels (S,) of steps (S, A), or ``NONE``: by the best path, or each by itself."""
    with np.errstate(divide="ignore"):
        scores = np.log(np.concatenate([probabilities, np.full((len(probabilities), 1), rule.least)], axis=1))
    labels = best_path(scores, rule.switch) if rule.decide == "path" else scores.argmax(1)
    return np.where(labels == probabilities.shape[1], NONE, labels)


def _of_parts(
    windows: NDArray[np.float64],
    rejected: NDArray[np.bool_],
    motions: Sequence[NDArray[np.float64]],
    steps: NDArray[np.float64],
    classes: list[str],
    grid: Grid,
    end: float,
    rule: Rule,
) -> list[Segment]:
    """The segments of the parts that move. A part that may hold several actions is decided by the best path through its steps."""
    curve = MotionCurve(grid)
    for number, motion in enumerate(motions):
        curve.add(number, motion)
    found: list[Segment] = []
    for part in curve.parts(rule.gap)[0]:
        part = reaching(part, curve, end)
        if part.end - part.start <= LONG * grid.clip:
            if part.moving < rule.shortest:
                continue
            numbers = windows_of(part, len(windows), grid)
            found += segment_of(part, named(part, windows[numbers], rejected[numbers], numbers, curve), classes, rule.least)
            continue
        first, last = int(part.start / grid.hop), min(len(steps), math.ceil(part.end / grid.hop))
        labels = rule.tidied(_labels(steps[first:last], rule), grid.hop)
        found += clipped(to_segments(labels, classes, grid.hop, steps[first:last]), first * grid.hop, part, rule.shortest)
    return found
