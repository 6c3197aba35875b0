"""What the missing items of a study would cost: commands, optimiser steps, clips, and hours from runs already made."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from vtlvlm.ablation.items import NETWORKS, TITLES, TRAINING, Item, Kind
from vtlvlm.ablation.network_cost import NetworkLoad, network_operations, steps_of
from vtlvlm.ablation.operations import Load, operations
from vtlvlm.errors import DataError
from vtlvlm.report.runs import Fit, Run
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
        self._lengths: dict[str, list[int]] = {}  # of the networks that trained, by their arms
        for item in items:
            fit = _finished(item) if item.kind in TRAINING else None
            if fit is not None:
                for mark in (_arm(item), ""):
                    self._steps.setdefault((_stage(item), mark), []).append(fit.wall_seconds / fit.steps)
                self._lengths.setdefault(_arm(item), []).append(fit.steps)

    def seconds(self, item: Item) -> float | None:
        """Expected duration: a training's by the steps of the same arm, else of the same stage; None if nothing alike has finished.

        Networks are too different for one to tell another's duration.
        """
        if item.kind not in TRAINING:
            return self._others.get(item.kind)
        known = self._steps.get((_stage(item), _arm(item))) or (None if item.kind in NETWORKS else self._steps.get((_stage(item), "")))
        if known is None:
            return None
        steps = planned_steps(item) or (statistics.median(self._lengths[_arm(item)]) if item.kind in NETWORKS else None)
        return None if steps is None else statistics.median(known) * steps


def planned_steps(item: Item) -> int | None:
    """Optimiser steps of a training: the fixed number, or those of a network's epochs; None if they are not known."""
    return steps_of(item.load) if item.steps is None and isinstance(item.load, NetworkLoad) else item.steps


def _stage(item: Item) -> str:
    return "1" if item.kind == "fit1" else "network" if item.kind in NETWORKS else "2"


def _arm(item: Item) -> str:
    return item.subject.partition(",")[0]


def _finished(item: Item) -> Fit | None:
    """The record of a training that reached its end."""
    try:
        fit = Run(item.folder).fit
    except DataError:
        return None
    return fit if fit is not None and fit.finished and fit.steps else None


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
        planned = [planned_steps(item) for item in items]
        steps = [number for number in planned if number is not None]
        clips = sum((number or 0) * item.batch for number, item in zip(planned, items, strict=True))
        numbers = [f"{sum(steps):,}" if steps else "", f"{clips:,}" if clips else ""]
        time = (
            duration_text(sum(known)) if len(known) == len(items) else "no such run yet" if not known else f"{duration_text(sum(known))} +"
        )
        rows.append([title, str(len(items)), *numbers, _counted(items), time])
    text = as_text(Table(["", "commands", "optimiser steps", "training clips", "operations", "time, one after the other"], rows))
    some = f"{duration_text(total)} for {len(left) - unknown} of them, from the durations in this work folder"
    counted = {type(item.load) for item in left}
    if Load in counted:
        text += "\n\noperations: the language model over the event tokens, forward and backward, counted without text"
    if NetworkLoad in counted:
        text += "\n\noperations of a network: forward and backward, without the losses that its head adds"
    return f"{text}\n\n{len(left)} commands; {some if total else 'no durations yet'}"


def _counted(items: Sequence[Item]) -> str:
    """Operations of trainings of stage 2 and of networks; empty for other items."""
    found: list[float] = []
    lacking = 0
    for item in items:
        if item.load is None:
            continue
        network = isinstance(item.load, NetworkLoad)
        one, steps = network_operations(item.load) if isinstance(item.load, NetworkLoad) else operations(item.load), planned_steps(item)
        if one is None and not network:
            return "not counted: no LLaVA here yet"
        if one is None or (steps is None and network):
            lacking += 1
        else:
            found.append(one * (steps or 0) * item.batch)
    if not found:
        return f"not counted for {lacking}" if lacking else ""
    return f"{sum(found) / 1e12:,.0f} TFLOP{f', {lacking} not counted' if lacking else ''}"
