"""The table of a grid: each arm's accuracy, its difference to the first arm on the same clips, and the linear probe beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtlvlm.ablation.grid import Arm, Grid
from vtlvlm.ablation.planned import Plan, PlannedRun
from vtlvlm.errors import DataError
from vtlvlm.metrics.paired import Difference, paired_difference
from vtlvlm.report.runs import Run
from vtlvlm.report.tables import Table, as_text

NOT_RUN = "not run"


@dataclass(frozen=True)
class Tested:
    """One run's test.

    Attributes:
        right: Clip -> whether it was recognised.
        metric: The grid's metric.
        probe: Top-1 of the linear probe on the same clips; None without one.
    """

    right: dict[str, bool]
    metric: float
    probe: float | None


@dataclass(frozen=True)
class Outcome:
    """An arm's tests by seed: of all folds together, for seeds with no fold missing.

    Attributes:
        right: Seed -> clip -> whether it was recognised.
        metric: Seed -> mean of the metric over clips.
        probe: Mean top-1 of the linear probe over seeds and clips; None if a test has none.
        done: Number of runs that are done.
        total: Number of runs that are planned.
    """

    right: dict[int, dict[str, bool]]
    metric: dict[int, float]
    probe: float | None
    done: int
    total: int


def table(work: Path, grid: Grid, plan: Plan) -> str:
    """The table as text, with what its columns mean."""
    found = {arm.name: outcome(work, grid, plan.runs[arm.name], plan) for arm in grid.arms}
    first = grid.compare[0]
    rows = [_row(arm, found[arm.name], found[first], arm.name in grid.compare[1:]) for arm in grid.arms]
    header = ["", grid.metric, "clips", "seeds", f"minus {first}", "linear probe", "paper"]
    what = "mean and standard deviation over seeds; difference on the same clips and seeds, 95 % over clips (paired bootstrap)"
    return f"{grid.title}: {plan.protocol}\n\n{as_text(Table(header, rows, frozenset({0})))}\n\n{what}"


def outcome(work: Path, grid: Grid, runs: Sequence[PlannedRun], plan: Plan) -> Outcome:
    """Gather the runs of an arm that are done."""
    tests: dict[int, list[Tested]] = {}
    done = 0
    seeds = {run.seed: sum(other.seed == run.seed for other in runs) for run in runs}
    for run in runs:
        if run.final is not None and plan.items[run.final].done():
            tests.setdefault(run.seed, []).append(tested(work, grid, run))
            done += 1
    whole = {seed: found for seed, found in tests.items() if len(found) == seeds[seed]}
    every = [one for found in whole.values() for one in found]
    probes = [one.probe for one in every]
    return Outcome(
        right={seed: {clip: mark for one in found for clip, mark in one.right.items()} for seed, found in whole.items()},
        metric={seed: _mean([one.metric for one in found], found) for seed, found in whole.items()},
        probe=_mean([probe for probe in probes if probe is not None], every) if every and None not in probes else None,
        done=done,
        total=len(runs),
    )


def _mean(values: Sequence[float], tests: Sequence[Tested]) -> float:
    return float(np.average(values, weights=[len(one.right) for one in tests]))


def tested(work: Path, grid: Grid, run: PlannedRun) -> Tested:
    """The results of one run: of stage 2, or of the probe on its events.

    Raises:
        DataError: Its files are damaged, of an older version, or lack the metric.
    """
    if not grid.stage2:
        return _probed(work / run.stage1 / "probes.json", grid.metric)
    assert run.stage2 is not None
    folder = work / run.stage2
    found, path = Run(folder).test, folder / "predictions_test.csv"
    if found is None or grid.metric not in found.metrics:
        known = "" if found is None else f"; there are {', '.join(sorted(found.metrics))}"
        raise DataError(f"{folder / 'metrics.json'}: has no metric {grid.metric}{known}")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            right = {row["clip"]: row["truth"] == row["recognised"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: not readable ({type(error).__name__}); delete {folder / 'metrics.json'}, and the test runs again"
        ) from error
    metric = found.metrics[grid.metric]
    return Tested(right, float("nan") if metric is None else metric, None if found.probe is None else float(found.probe["top1"]))


def _probed(path: Path, metric: str) -> Tested:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        probes, clips, truth = content["probes"], content["clips"], content["truth"]
        guesses = probes[metric]["guesses"]
        right = {clip: guess == label for clip, guess, label in zip(clips, guesses, truth, strict=True)}
        return Tested(right, float(probes[metric]["top1"]), float(probes["features: linear, mean"]["top1"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not this version's probes, or without {metric} ({error}); delete it, and the probe runs again") from error


def difference(ours: Outcome, theirs: Outcome) -> tuple[Difference, int] | None:
    """The mean of ``ours - theirs`` over the clips and seeds that both have, and the number of these seeds; None if they share none."""
    seeds = sorted(ours.right.keys() & theirs.right.keys())
    if not seeds:
        return None
    clips = sorted(set.intersection(*(set(outcome.right[seed]) for outcome in (ours, theirs) for seed in seeds)))
    if not clips:
        return None
    one, other = (_marks(outcome, seeds, clips) for outcome in (ours, theirs))
    return paired_difference(one, other), len(seeds)


def _marks(found: Outcome, seeds: Sequence[int], clips: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([[found.right[seed][clip] for clip in clips] for seed in seeds], dtype=np.bool_)


def _row(arm: Arm, found: Outcome, first: Outcome, compared: bool) -> list[str]:
    paper = "" if arm.paper is None else f"{arm.paper:.1f}"
    if not found.metric:
        missing = f"{NOT_RUN}" if not found.done else f"{found.done} of {found.total} runs done"
        return [arm.label, missing, "", "", "", "", paper]
    values = np.array(list(found.metric.values()))
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    clips = max(len(marks) for marks in found.right.values())
    gain = difference(found, first) if compared else None
    seeds = f"{len(values)}" + (f" of {found.total}" if found.done < found.total else "")
    probe = "" if found.probe is None else f"{found.probe:.3f}"
    return [arm.label, f"{values.mean():.3f}{spread}", f"{clips:,}", seeds, "" if gain is None else str(gain[0]), probe, paper]
