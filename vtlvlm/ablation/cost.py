"""What the missing items of a study would cost: commands, optimiser steps, clips, and hours from runs already made."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vtlvlm.ablation.items import TITLES, TRAINING, Item, Kind
from vtlvlm.ablation.operations import operations
from vtlvlm.errors import DataError
from vtlvlm.report.runs import Run
from vtlvlm.report.tables import Table, as_text, duration_text
from vtlvlm.system.files import write_json

DURATIONS = "durations.json"
"""File of a work folder: kind of item -> seconds of each finished command that is no training"""


def keep_duration(work: Path, kind: Kind, seconds: float) -> None:
    """Add the duration of a finished command, for later estimates. A training keeps its own in ``fit.json``."""
    if kind not in TRAINING:
        found = _durations(work)
        write_json(work / DURATIONS, {**found, kind: [*found.get(kind, ()), round(seconds, 1)]})


def _durations(work: Path) -> dict[str, list[float]]:
    with suppress(OSError, ValueError):
        found = json.loads((work / DURATIONS).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {str(kind): [float(number) for number in numbers] for kind, numbers in found.items()}
    return {}


class Estimate:
    """Expected seconds of items, from what the same work folder has finished.

    Args:
        work: The work folder.
        items: All planned items; the finished trainings among them give seconds for each optimiser step.
    """

    def __init__(self, work: Path, items: Iterable[Item]) -> None:
        self._others = {kind: statistics.median(numbers) for kind, numbers in _durations(work).items() if numbers}
        self._steps: dict[tuple[str, str], list[float]] = {}
        for item in items:
            if item.kind in TRAINING and (found := _seconds_of_a_step(item)) is not None:
                for mark in (_arm(item), ""):
                    self._steps.setdefault((_stage(item), mark), []).append(found)

    def seconds(self, item: Item) -> float | None:
        """Expected duration: a training's by the steps of the same arm, else of the same stage; None if nothing alike has finished."""
        if item.kind not in TRAINING:
            return self._others.get(item.kind)
        known = self._steps.get((_stage(item), _arm(item))) or self._steps.get((_stage(item), ""))
        return None if known is None or item.steps is None else statistics.median(known) * item.steps


def _stage(item: Item) -> str:
    return "1" if item.kind == "fit1" else "2"


def _arm(item: Item) -> str:
    return item.subject.partition(",")[0]


def _seconds_of_a_step(item: Item) -> float | None:
    try:
        fit = Run(item.folder).fit
    except DataError:
        return None
    return fit.wall_seconds / fit.steps if fit is not None and fit.finished and fit.steps else None


def cost_table(left: Sequence[Item], estimate: Estimate) -> str:
    """A table of the missing items, one row for each kind of work.

    Args:
        left: The missing items.
        estimate: Expected durations.
    """
    rows, total, unknown = [], 0.0, 0
    for kind, title in TITLES.items():
        items = [item for item in left if item.kind == kind]
        if not items:
            continue
        seconds = [estimate.seconds(item) for item in items]
        known = [value for value in seconds if value is not None]
        total, unknown = total + sum(known), unknown + len(seconds) - len(known)
        steps = [item.steps for item in items if item.steps is not None]
        clips = sum((item.steps or 0) * item.batch for item in items)
        numbers = [f"{sum(steps):,}" if steps else "", f"{clips:,}" if clips else ""]
        time = (
            duration_text(sum(known)) if len(known) == len(items) else "no such run yet" if not known else f"{duration_text(sum(known))} +"
        )
        rows.append([title, str(len(items)), *numbers, _counted(items), time])
    text = as_text(Table(["", "commands", "optimiser steps", "training clips", "operations", "time, one after the other"], rows))
    some = f"{duration_text(total)} for {len(left) - unknown} of them, from the durations in this work folder"
    if any(item.load is not None for item in left):
        text += "\n\noperations: the language model over the event tokens, forward and backward, counted without text"
    return f"{text}\n\n{len(left)} commands; {some if total else 'no durations yet'}"


def _counted(items: Sequence[Item]) -> str:
    """Operations of trainings of stage 2; empty for other items."""
    loads = [item for item in items if item.load is not None]
    if not loads:
        return ""
    found = [(operations(item.load), (item.steps or 0) * item.batch) for item in loads if item.load is not None]
    if any(one is None for one, _ in found):
        return "not counted: no LLaVA here yet"
    return f"{sum((one or 0) * clips for one, clips in found) / 1e12:,.0f} TFLOP"
