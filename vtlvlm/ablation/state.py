"""The plan and the state of a grid, as the file ``grids/NAME.json`` of a work folder, which ``vtlvlm report`` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtlvlm.ablation.grid import Grid
from vtlvlm.ablation.planned import Plan, PlannedRun
from vtlvlm.report.grids import VERSION
from vtlvlm.system.files import write_json


def write_state(work: Path, grid: Grid, plan: Plan, failed: Mapping[str, str]) -> None:
    """Replace the file of a grid.

    Args:
        work: The work folder.
        grid: The grid.
        plan: Its plan.
        failed: Name -> error of the items that failed.
    """
    arms = [
        {
            "name": arm.name,
            "label": arm.label,
            "paper": arm.paper,
            "settings": plan.settings[arm.name],
            "runs": [_run(run, plan, arm.name, failed) for run in plan.runs[arm.name]],
        }
        for arm in grid.arms
    ]
    head = {"version": VERSION, "name": grid.name, "table": grid.table, "title": grid.title, "protocol": plan.protocol}
    content = {
        **head,
        "metric": grid.metric,
        "stages": 1 if grid.stage1 and not grid.stage2 else 2,
        "arms": arms,
        "compare": list(grid.compare),
    }
    write_json(state_file(work, grid.name), content)


def state_file(work: Path, name: str) -> Path:
    """The file of a grid in a work folder."""
    return work / "grids" / f"{name}.json"


def _run(run: PlannedRun, plan: Plan, arm: str, failed: Mapping[str, str]) -> dict[str, Any]:
    status, reason = "not run", None
    if run.final is None:
        reasons = [failed[name] for name in plan.trials.get(arm, ()) if name in failed]
        reasons += [plan.hopeless[arm]] if arm in plan.hopeless else []
        status, reason = ("failed", reasons[0]) if reasons else (status, "its learning rate is not chosen yet")
    elif run.final in failed:
        status, reason = "failed", failed[run.final]
    elif plan.items[run.final].done():
        status = "done"
    found = {name: value for name, value in asdict(run).items() if name != "final"}
    return {**found, "status": status, "reason": reason}
