"""The demo's report: it names the linear probe that is hardest to beat."""

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("av")

from vtlvlm.commands.demo_report import _rows, _summary
from vtlvlm.report.runs import Metrics

BEST = {"name": "thirds of both", "top1": 0.95, "num_train": 4, "num_test": 8, "difference": {"mean": -0.01, "low": -0.04, "high": 0.02}}
TESTED = Metrics("xsub60", "test", 8, 1, {"top1": 0.94, "top5": 1.0, "mean_class_accuracy": 0.93}, probe=BEST)
PROBES: dict[str, dict[str, Any]] = {
    name: {"top1": top1, "top5": 1.0, "mean_class": top1, "num_test": 8}
    for name, top1 in (("mean feature", 0.7), ("thirds", 0.9), ("thirds of both", 0.95), ("middle frame", 0.6), ("clip length", 0.1))
}


def test_the_best_probe_has_a_row_and_a_sentence() -> None:
    rows = {row.name: row for row in _rows(TESTED, TESTED, PROBES, 14)}
    assert rows["linear probe, thirds of both"].top1 == 0.95
    said = _summary(0.94, PROBES, TESTED, 14)
    assert "+24.0% against a linear probe on the mean" in said
    assert "reads thirds of both; the model minus this probe is -1.0% [-4.0%, +2.0%]." in said


def test_a_probe_that_is_listed_has_one_row_and_a_run_without_a_probe_none() -> None:
    thirds = replace(TESTED, probe={**BEST, "name": "thirds"})
    assert len(_rows(thirds, TESTED, PROBES, 14)) == len(_rows(replace(TESTED, probe=None), TESTED, PROBES, 14)) == 7
    assert "best linear probe" not in _summary(0.94, PROBES, replace(TESTED, probe=None), 14)
