"""Faults on purpose: a training that failed in the middle of an epoch goes on, and ends as one that was left alone, to the bit."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from events import EventRun
from faults import FailAt, fail_at
from pipeline import Pipeline

from vtlvlm.data.cache import FeatureCache
from vtlvlm.report.runs import Run, fit_finished
from vtlvlm.stages.checkpoints import to_continue

STEPS, EPOCH = 12, 4
"""Optimiser steps in all, and in an epoch"""
OPTIONS = [
    *("--trainer.max_epochs", 3, "--data.batch_size", 2, "--data.micro_batch_size", 1, "--data.source.validation", 0.25),
    *("--trainer.val_check_interval", 3, "--trainer.check_val_every_n_epoch", "null", "--trainer.enable_model_summary", "false"),
]
"""Two passes for a step; validations within epochs"""
CODES = {"exception": 70, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}
QUICK = [("SIGTERM", 2), ("SIGKILL", 6)]
FAULTS = [(kind, step) for kind in ("exception", "SIGTERM", "SIGKILL") for step in (2, 3, EPOCH, 6, 9)]


PEOPLE = (1, 2, 4, 5, 8, 3, 6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    return EventRun(tmp_path_factory.mktemp("faults"), people=PEOPLE)


@pytest.fixture(scope="module")
def left_alone(clips: EventRun) -> Path:
    assert trained(clips, clips.folder / "alone") == 0
    return clips.folder / "alone"


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Features of the same people, for stage 1."""
    run = Pipeline(tmp_path_factory.mktemp("features"), PEOPLE)
    assert run("extract", "--config", run.stage1, "--output", run.features) == 0
    return run


@pytest.fixture(scope="module")
def stage1_left_alone(features: Pipeline) -> Path:
    assert stage1(features, features.folder / "alone") == 0
    return features.folder / "alone"


def forked(run: Callable[..., int], *words: object) -> int:
    """The exit code of a command in a process of its own."""
    if (child := os.fork()) == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            code = run(*words)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trained(clips: EventRun, run: Path, *more: object) -> int:
    """The exit code of a training."""
    return forked(clips, "fit", *OPTIONS, "--trainer.default_root_dir", run, *more)


def stage1(features: Pipeline, run: Path, *more: object) -> int:
    """The exit code of a training of stage 1."""
    return forked(features, "fit", *features.on_features, *OPTIONS, "--trainer.default_root_dir", run, *more)


def resumed(run: Path) -> list[object]:
    """The options that go on with a training that was stopped."""
    left = to_continue(run)
    return [] if left is None else ["--ckpt_path", left]


def assert_same(one: Path, two: Path) -> None:
    """Weights (stage 1: the codebook, its counts and the statistics too), optimiser, schedule and place of the last checkpoint, the best
    one, and every curve."""
    for name in ("last", "best"):
        first, second = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (one, two))
        assert first["global_step"] == second["global_step"], name
        assert first["state_dict"].keys() == second["state_dict"].keys()
        assert all(torch.equal(tensor, second["state_dict"][key]) for key, tensor in first["state_dict"].items()), name
        assert first["lr_schedulers"] == second["lr_schedulers"]
        moments, others = (found["optimizer_states"][0]["state"] for found in (first, second))
        assert all(torch.equal(t, others[key][part]) for key, state in moments.items() for part, t in state.items())
    curves, others = Run.open(one).scalars(), Run.open(two).scalars()
    names = {name for name in curves if not name.endswith(("clips_per_second", "seconds_per_step", "data_wait_share"))}
    assert "train/loss" in names
    assert names & {"val/nll", "val/reconstruction"}
    assert names <= others.keys()
    for name in names:
        assert curves[name].steps.tolist() == others[name].steps.tolist(), name
        assert curves[name].values.tolist() == others[name].values.tolist(), name


@pytest.mark.parametrize(
    ("kind", "step"), [*QUICK, *(pytest.param(*fault, marks=pytest.mark.slow) for fault in FAULTS if fault not in QUICK)]
)
def test_a_failed_training_goes_on(clips: EventRun, left_alone: Path, tmp_path: Path, kind: str, step: int) -> None:
    """Within an epoch; where a validation follows; at an epoch's end; at the end of the second validation; where an epoch has begun."""
    run = tmp_path / "run"
    assert trained(clips, run, *fail_at(0, step, kind, tmp_path / "mark")) == CODES[kind]
    assert not fit_finished(run)
    if kind == "SIGTERM":
        assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert trained(clips, run, *resumed(run)) == 0
    assert_same(left_alone, run)
    fit = Run.open(run).fit
    assert fit is not None
    assert fit.finished


@pytest.mark.parametrize(
    ("kind", "step"), [("SIGTERM", 2), *(pytest.param(*fault, marks=pytest.mark.slow) for fault in FAULTS if fault != ("SIGTERM", 2))]
)
def test_a_failed_stage_1_goes_on(features: Pipeline, stage1_left_alone: Path, tmp_path: Path, kind: str, step: int) -> None:
    """Also its codebook, which moves with each step and restarts dead codes."""
    run = tmp_path / "run"
    assert stage1(features, run, *fail_at(0, step, kind, tmp_path / "mark")) == CODES[kind]
    assert not fit_finished(run)
    assert stage1(features, run, *resumed(run)) == 0
    assert_same(stage1_left_alone, run)


def test_a_full_disk_leaves_the_checkpoint_before(clips: EventRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It fills up in the second epoch; its end cannot be written."""
    run = tmp_path / "run"
    assert trained(clips, run, *fail_at(0, EPOCH + 1, "full disk", tmp_path / "mark"), "--trainer.logger", "false") == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("vtlvlm: ")]
    assert len(lines) == 1
    assert "the checkpoint cannot be written (File too large); earlier ones are intact" in lines[0]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == EPOCH
    assert not list(run.rglob("*.tmp"))


def test_slurm_s_warning_writes_a_checkpoint_and_asks_for_the_job_again(
    clips: EventRun, left_alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = tmp_path / "run"
    assert trained(clips, run, *fail_at(0, 6, "SIGUSR1", tmp_path / "mark")) == 75
    assert "vtlvlm: stopped by SIGUSR1 after step 6; Slurm starts the job again\n" in capfd.readouterr().err
    assert not list(run.glob("hpc_ckpt*"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert trained(clips, run) == 0
    assert_same(left_alone, run)


def test_a_signal_in_the_last_step_ends_a_training_well(clips: EventRun, left_alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert trained(clips, run, *fail_at(0, STEPS, "SIGTERM", tmp_path / "mark")) == 0
    assert fit_finished(run)
    assert_same(left_alone, run)


def test_an_extraction_that_is_stopped_keeps_its_rows(chain: Pipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output, whole = tmp_path / "features", FeatureCache.open(chain.features)
    command = ["extract", "--config", chain.stage1, "--output", output]
    assert forked(chain, *command, *fail_at(0, 2, "SIGTERM", tmp_path / "mark")) == 143
    assert capfd.readouterr().err.endswith("vtlvlm: stopped by SIGTERM; the same command continues\n")
    assert forked(chain, *command) == 0
    assert "6 of 10 clips and views" in capfd.readouterr().out
    found = FeatureCache.open(output)
    assert sorted(zip(found.names, found.views, strict=True)) == sorted(zip(whole.names, whole.views, strict=True))


def test_a_test_that_is_stopped_is_none(chain: Pipeline, tmp_path: Path) -> None:
    """Lightning ends it with exit code 0."""
    command = ["test", *chain.on_events, "--ckpt_path", chain.best2, "--trainer.default_root_dir", tmp_path / "run"]
    assert forked(chain, *command, *fail_at(0, 1, "SIGTERM", tmp_path / "mark")) == 143
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert forked(chain, *command) == 0


def test_an_unknown_fault_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no fault"):
        FailAt(0, 1, "flood", str(tmp_path))
