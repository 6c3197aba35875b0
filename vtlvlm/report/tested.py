"""Reads the results of runs: metrics, cost, and the answer to each test clip, of a run folder or of the probes beside a stage 1."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import DataError
from vtlvlm.report.grids import Grid, GridRun
from vtlvlm.report.runs import Fit, Metrics, Run
from vtlvlm.system.text import plain_cell

FEATURE_PROBE = "features: linear, mean"
"""Probe of ``vtlvlm probe --vtem`` that stands beside a probe on event sentences"""


@dataclass(frozen=True)
class Answers:
    """The labelled rows of ``predictions_test.csv``, in the order of the clips' names: names, true classes and recognised classes (n,)."""

    clips: NDArray[np.str_]
    truth: NDArray[np.str_]
    recognised: NDArray[np.str_]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether each clip was recognised."""
        return self.truth == self.recognised


@dataclass(frozen=True)
class Tested:
    """A run with results.

    Attributes:
        folder: Its run folder.
        plan: Its place in the grid.
        metrics: Metrics of its test.
        fit: Cost of its training; None for a model that was not trained.
        answers: None without ``predictions_test.csv``, which a test of stage 1 does not write.
    """

    folder: Path
    plan: GridRun
    metrics: Metrics
    fit: Fit | None
    answers: Answers | None


def read_run(grid: Grid, run: GridRun) -> Tested:
    """The results of one run of a grid: of stage 2 or a network, or of the probes beside stage 1 if the grid ends there.

    Raises:
        DataError: There are none, with the reason.
    """
    folder, name = (run.tested, "metrics.json") if grid.stages > 1 else (run.stage1, "probes.json")
    if folder is None or (run.status != "done" and not (grid.work / folder / name).is_file()):
        raise DataError(f"{run.status}: {run.reason}" if run.reason else run.status)
    return read_tested(grid.work / folder, run) if grid.stages > 1 else read_probed(grid.work / folder, grid.metric, run)


def read_probed(folder: Path, metric: str, run: GridRun) -> Tested:
    """The probe that ``vtlvlm probe --vtem`` fitted on the event sentences of a stage 1.

    Args:
        folder: Run folder of stage 1, with ``probes.json``.
        metric: Name of the probe.
        run: Its place in the grid.

    Raises:
        DataError: The file is missing, damaged, or lacks the probe.
    """
    path = folder / "probes.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        probe, raw = content["probes"][metric], content["probes"][FEATURE_PROBE]
        columns = (content["clips"], content["truth"], probe["guesses"])
        if len({*map(len, columns)}) > 1:
            raise ValueError("columns of different lengths")
        clips, truth, recognised = (np.array([*map(str, column)], dtype=np.str_) for column in columns)
        order = np.argsort(clips, kind="stable")
        metrics = Metrics(
            content["protocol"],
            "test",
            len(clips),
            run.seed,
            {metric: float(probe["top1"])},
            {"split": dict(content["split"]), "environment": dict(content["environment"])},
            probe={"name": FEATURE_PROBE, "top1": float(raw["top1"])},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not this version's probes, or without {metric} ({what}); delete it, and the probe runs again") from error
    return Tested(folder, run, metrics, Run(folder).fit, Answers(clips[order], truth[order], recognised[order]))


def read_tested(folder: Path, run: GridRun | None = None) -> Tested:
    """The results of a run folder.

    Raises:
        DataError: It is missing, half-written, damaged or of another version.
    """
    opened = Run.open(folder)
    metrics, fit = opened.test, opened.fit
    if metrics is None:
        raise DataError(f"{folder}: {untested(folder, fit)}")
    if not isinstance(metrics.metrics, dict) or not isinstance(metrics.num_clips, int) or not isinstance(metrics.provenance, dict):
        raise DataError(f"{folder / 'metrics.json'}: not the format of this version; run the test again")
    if fit is not None and not fit.finished:
        raise DataError(f"{folder}: tested before the end of its training (step {fit.steps}); continue it, and test again")
    table = folder / "predictions_test.csv"
    answers = read_answers(table) if table.is_file() else None
    if answers is not None and len(answers.clips) > metrics.num_clips:
        raise DataError(f"{table}: {len(answers.clips)} clips, and metrics.json has {metrics.num_clips}; run the test again")
    return Tested(folder, run or GridRun(metrics.seed, status="done"), metrics, fit, answers)


def untested(folder: Path, fit: Fit | None) -> str:
    """What a run folder without test metrics is, in words."""
    if fit is None:
        return "half-written, its training wrote no checkpoint" if (folder / "config.yaml").is_file() else "no run folder: no metrics.json"
    return "trained, but not tested" if fit.finished else f"half-written, its training stopped at step {fit.steps}"


def read_answers(path: Path) -> Answers:
    """The clips, true and recognised classes of a table of predictions, without their probabilities. Clips without a label are left out.

    Raises:
        DataError: The file is not such a table.
    """
    import pyarrow as pa
    import pyarrow.csv

    wanted = ["f0", "f1", "f2"]
    try:
        if _header(path)[:3] != ["clip", "truth", "recognised"]:
            raise DataError(f"{path}: not a table of predictions of this version; run the test again")
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(skip_rows=1, autogenerate_column_names=True, use_threads=False),
            convert_options=pyarrow.csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError, StopIteration) as error:
        raise DataError(f"{path}: a damaged table ({str(error)[:200]}); run the test again") from error
    clips, truth, recognised = (np.array([plain_cell(text) for text in table[name].to_pylist()], dtype=np.str_) for name in wanted)
    order = np.argsort(clips, kind="stable")
    order = order[truth[order] != ""]
    return Answers(clips[order], truth[order], recognised[order])


def read_classes(path: Path) -> list[str]:
    """The classes of a table of predictions, in the order of its columns."""
    return [plain_cell(name) for name in _header(path)[3:]]


def read_confidence(path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The probability of the recognised class of each labelled clip (n,), and whether it was right (n,)."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(max(map(float, row[3:])), row[1] == row[2]) for number, row in enumerate(csv.reader(file)) if number and row[1]]
    confidence, right = zip(*rows, strict=True) if rows else ((), ())
    return np.array(confidence, dtype=np.float64), np.array(right, dtype=np.bool_)


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))
