"""Whole grids on a tiny pipeline, as a user runs them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vtlvlm.cli import main

Write = Callable[..., Path]


def changed(work: Path) -> dict[str, int]:
    """When each result and log below a work folder was written."""
    kept = [path for path in work.rglob("*") if path.is_file() and path.parent not in (work, work / "grids")]
    return {str(path): path.stat().st_mtime_ns for path in kept}


def test_a_grid_runs_once(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    grid = write(arms=[{"name": "full", "paper": 94.1}, {"name": "zero_shot", "label": "untuned", "stage2": "untuned.yaml"}])
    assert main(["ablate", str(grid), "--work", str(work)]) == 0
    said = capsys.readouterr().out
    assert "[1/6] videos to features: full" in said
    state = json.loads((work / "grids" / "grid.json").read_text())
    runs = {arm["name"]: arm["runs"] for arm in state["arms"]}
    assert [run["status"] for found in runs.values() for run in found] == ["done", "done"]
    assert runs["full"][0]["stage1"] == runs["zero_shot"][0]["stage1"]  # one stage 1 for both
    assert state["arms"][0]["settings"] == {"windows": 4, "tokens": 16, "codes": 8}
    assert state["protocol"] == "xsub60"
    tests = {name: json.loads((work / found[0]["stage2"] / "metrics.json").read_text()) for name, found in runs.items()}
    for name, label in (("full", "* full"), ("zero_shot", "  untuned")):
        row = next(line for line in said.splitlines() if line.startswith(label))
        assert f"{tests[name]['metrics']['top1']:.3f}" in row
        assert f"{tests[name]['probe']['top1']:.3f}" in row
        assert ("94.1" in row) == (name == "full")
    before = changed(work)
    assert main(["ablate", str(grid), "--work", str(work)]) == 0
    assert changed(work) == before
    assert "[1/" not in (again := capsys.readouterr().out)
    assert again.strip() == said[said.index("Tiny") :].strip()
    other = write("other", arms=[{"name": "same"}])
    assert main(["ablate", str(other), "--work", str(work), "--dry-run"]) == 0
    assert "nothing to run" in capsys.readouterr().out  # the runs of another grid
    os.truncate(work / runs["full"][0]["stage2"] / "metrics.json", 20)
    assert main(["ablate", str(grid), "--work", str(work)]) == 1
    assert "metrics.json: not JSON" in capsys.readouterr().err
