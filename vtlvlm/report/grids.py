"""Reads the plans of grids: ``WORK/grids/NAME.json``, which ``vtlvlm ablate`` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtlvlm.errors import DataError
from vtlvlm.report.networks import VIDEO, input_text, marked

VERSION = 1
"""Version of the format"""


@dataclass(frozen=True)
class GridRun:
    """One run of an arm. ``stage1``, ``events``, ``stage2`` and ``recognition`` are folders relative to the work folder.

    Attributes:
        seed: Seed of the training.
        fold: Name of the fold; None without folds.
        learning_rate: Rate that was tried; None if the arm has one rate.
        stage1: Run folder of stage 1.
        events: Event cache.
        stage2: Run folder of stage 2.
        status: ``done``, ``failed`` or ``not run``.
        reason: Why a run failed, in a line.
        recognition: Run folder of a network; None for the stages, and in plans of older versions.
    """

    seed: int | None = None
    fold: str | None = None
    learning_rate: float | None = None
    stage1: str | None = None
    events: str | None = None
    stage2: str | None = None
    status: str = "not run"
    reason: str | None = None
    recognition: str | None = None

    @property
    def tested(self) -> str | None:
        """The run folder whose test counts: of the network, or of stage 2."""
        return self.recognition or self.stage2


@dataclass(frozen=True)
class GridArm:
    """An arm of a grid: one row of its table.

    Attributes:
        name: Short name, unique in the grid.
        label: Name in the table.
        runs: Its runs.
        paper: The paper's top-1 in percent; None if the paper has no such arm.
        settings: Values that a figure or the table needs: ``windows``, ``codes``; of a network ``method``, ``reads`` and ``stream``.
    """

    name: str
    label: str
    runs: Sequence[GridRun]
    paper: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> bool:
        """Whether the arm is a recognition network."""
        return "reads" in self.settings

    @property
    def reads(self) -> str:
        """What it reads at test, and the stream of a skeleton."""
        return input_text(str(self.settings.get("reads", VIDEO)), str(self.settings.get("stream", "")))

    @property
    def method(self) -> str:
        """The method of a network, marked if it is our reconstruction; empty for the stages."""
        return marked(str(self.settings.get("method", "")), bool(self.settings.get("reconstruction")))


@dataclass(frozen=True)
class Grid:
    """A plan and its state.

    Attributes:
        work: The work folder.
        name: Name of the grid.
        title: Heading.
        table: The paper's table, such as ``II``; empty for a grid that the paper does not have.
        protocol: Split of training and test.
        metric: Name of the compared metric, such as ``top1``.
        arms: The rows; the first one is the full model.
        compare: Names of arms; the first one is compared with each other one.
        stages: 1 if the grid ends with probes on the event sentences of stage 1; 2 if its runs are tested.
    """

    work: Path
    name: str
    title: str
    table: str
    protocol: str | None
    metric: str
    arms: Sequence[GridArm]
    compare: Sequence[str]
    stages: int = 2

    @property
    def paired(self) -> bool:
        """Whether the metric is the share of right clips, so that arms can be compared clip by clip."""
        return self.stages == 1 or self.metric == "top1"

    def arm(self, name: str) -> GridArm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


def open_grids(work: Path) -> list[Grid]:
    """The grids of a work folder, by name.

    Raises:
        DataError: The folder has none, or a plan is damaged or of another version.
    """
    files = sorted((work / "grids").glob("*.json"))
    if not files:
        raise DataError(f"{work}: holds no grids/*.json; `vtlvlm ablate GRID.yaml` writes them")
    return [open_grid(file, work) for file in files]


def open_grid(file: Path, work: Path) -> Grid:
    """Read one plan.

    Raises:
        DataError: It is damaged or of another version.
    """
    remedy = "run `vtlvlm ablate` again, which writes it anew and repeats no finished run"
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error}); {remedy}") from error
    if not isinstance(plan, dict) or plan.get("version") != VERSION:
        found = plan.get("version") if isinstance(plan, dict) else None
        raise DataError(f"{file}: a plan of version {found}, and this report reads version {VERSION}; {remedy}")
    try:
        arms = [_arm(arm) for arm in plan["arms"]]
        names = [arm.name for arm in arms]
        compare = list(plan.get("compare") or names)
        grid = Grid(
            work,
            str(plan["name"]),
            str(plan.get("title") or plan["name"]),
            str(plan.get("table") or ""),
            plan.get("protocol"),
            str(plan.get("metric") or "top1"),
            arms,
            compare,
            int(plan.get("stages", 2)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{file}: a damaged plan ({type(error).__name__}: {error}); {remedy}") from error
    if not arms or len(set(names)) < len(names) or not set(compare) <= set(names):
        raise DataError(f"{file}: its arms are none, have equal names, or lack one of {', '.join(map(str, compare))}; {remedy}")
    return grid


def _arm(plan: Mapping[str, Any]) -> GridArm:
    runs = [GridRun(**{key: run.get(key) for key in GridRun.__dataclass_fields__ if key in run}) for run in plan["runs"]]
    paper = plan.get("paper")
    name = str(plan["name"])
    settings = dict(plan.get("settings") or {})
    label = marked(str(plan.get("label") or name), bool(settings.get("reconstruction")))
    return GridArm(name, label, runs, None if paper is None else float(paper), settings)


def is_work(folder: Path) -> bool:
    """Whether a folder is a work folder of grids."""
    return (folder / "grids").is_dir()
