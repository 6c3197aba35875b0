"""Readers of run folders, and the record they read."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from vtlvlm.errors import DataError
from vtlvlm.report.provenance import driver_version, environment, git_state
from vtlvlm.report.runs import Fit, Run, fit_finished
from vtlvlm.system.files import write_json


def test_an_empty_run_folder_has_nothing(tmp_path: Path) -> None:
    run = Run.open(tmp_path)
    assert (run.test, run.validation, run.fit, run.environment, run.confusion()) == (None,) * 5
    assert run.scalars() == {}
    assert not fit_finished(tmp_path)
    with pytest.raises(DataError, match="no such run folder"):
        Run.open(tmp_path / "none")


def test_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json: not JSON"):
        _ = Run.open(tmp_path).test
    write_json(tmp_path / "metrics.json", {"accuracy": 1})
    with pytest.raises(DataError, match=r"metrics\.json: not the format of this version"):
        _ = Run.open(tmp_path).test


def test_scalars_of_a_resumed_run_are_one_curve(tmp_path: Path) -> None:
    for start, value in ((0, 1.0), (2, 2.0)):
        writer = SummaryWriter(tmp_path / "tensorboard" / str(start))
        for step in range(start, start + 4):
            writer.add_scalar("train/loss", value, step, walltime=1000 + 100 * value + step)
        writer.close()
    curve = Run.open(tmp_path).scalars()["train/loss"]
    assert curve.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert curve.values.tolist() == [1, 1, 2, 2, 2, 2]


def test_environment_and_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@e"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("a")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "b").write_text("b")
    found = environment(5, tmp_path)
    assert found["git"] == {"commit": clean["commit"], "dirty": True}
    assert found["seed"] == 5
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert found["machine"]["cores"] >= 1


def test_the_driver_is_what_its_kernel_module_says(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("550.54.15\n")
    assert driver_version(tmp_path / "version") == "550.54.15"
    assert driver_version(tmp_path / "none") is None


def test_peak_memory_names_the_gpu_only_if_there_was_one() -> None:
    on_cpu = Fit(1, 1.0, 1.0, 3 * 2**29, 1, 1)
    assert on_cpu.peak_gib == "1.5"
    assert replace(on_cpu, peak_gpu_bytes=22 * 2**30).peak_gib == "1.5, GPU 22.0"


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
