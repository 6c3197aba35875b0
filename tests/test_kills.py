"""``kill -9`` while training, and the same command again: the weights are those of a training that nobody disturbed."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from events import EventRun
from pipeline import alone

from vtlvlm.report.runs import Run
from vtlvlm.stages.checkpoints import continuation, examine, to_continue, written

QUIET = ["--trainer.logger", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    run = EventRun(tmp_path_factory.mktemp("kills"))
    assert run("fit", *QUIET, "--trainer.max_epochs", 3) == 0
    return run


def ends(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and the optimiser's state at the end."""
    found = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    moments = {f"{key}/{name}": t for key, state in found["optimizer_states"][0]["state"].items() for name, t in state.items()}
    return {**found["state_dict"], **moments}


def assert_same(one: Path, two: Path) -> None:
    first, second = ends(one), ends(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert torch.equal(
        *(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]["reasoner.adapter.key"] for run in (one, two))
    )


def forked(run: EventRun, *arguments: object) -> int:
    """The exit code of a command in a process of its own; -9 where it was killed."""
    if (child := os.fork()) == 0:
        try:
            os._exit(run("fit", *QUIET, *arguments))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("place", ["batch", "validation", "epoch", "writing"])
def test_a_killed_training_comes_to_the_same_end(undisturbed: EventRun, tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    kill = ["--trainer.callbacks+", "happening.KillOnce", "--trainer.callbacks.place", place, "--trainer.callbacks.mark", tmp_path / "mark"]
    command = [*kill, "--trainer.default_root_dir", run, "--trainer.max_epochs", 3]
    assert forked(undisturbed, *command) == -signal.SIGKILL
    left = to_continue(run)
    assert continuation(run).unreadable == ()
    assert (left is None) == (place == "batch")
    again = [] if left is None else ["--ckpt_path", left.stem]
    assert forked(undisturbed, *command, *again) == 0
    assert_same(undisturbed.folder / "run", run)
    fit = Run.open(run).fit
    assert fit is not None
    assert fit.finished
    assert len(fit.sessions) == (1 if left is None else 2)
    assert not list(run.rglob("*.tmp"))


@pytest.mark.slow
def test_kills_at_any_moment(undisturbed: EventRun, tmp_path: Path) -> None:
    """Twenty kills, each at a random moment from the program's start on; what is left is always whole, and the end is the same."""
    run, draw = tmp_path / "run", random.Random(0)
    command = [sys.executable, "-m", "vtlvlm", "fit", "--config", str(undisturbed.config), *QUIET]
    command += ["--trainer.max_epochs", "3", "--trainer.default_root_dir", str(run)]
    started = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "timed")], env=alone(), check=True, capture_output=True)
    usual = time.monotonic() - started
    kills = 0
    for _ in range(20):
        left = to_continue(run) if run.exists() else None
        again = [] if left is None else ["--ckpt_path", str(left)]
        with subprocess.Popen([*command, *again], env=alone(), stderr=subprocess.PIPE, text=True) as process:
            try:
                _, err = process.communicate(timeout=draw.uniform(0.4, 1.05) * usual)
            except subprocess.TimeoutExpired:
                process.kill()
                _, err = process.communicate()
                kills += 1
        assert process.returncode in (0, -signal.SIGKILL), err
        assert "Traceback" not in err
        for path in written(run):
            examine(path, training=True)
        if process.returncode == 0:
            assert_same(undisturbed.folder / "run", run)
            for path in run.rglob("*"):
                if path.is_file():
                    path.unlink()
    assert kills > 5


def test_a_full_disk_ends_a_training_in_a_line(undisturbed: EventRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The checkpoint of the epoch before stays, and the training goes on from it when there is room."""
    run = tmp_path / "run"
    command = ["--trainer.default_root_dir", run, "--trainer.max_epochs"]
    assert undisturbed("fit", *QUIET, *command, 1) == 0
    before = (last := run / "checkpoints" / "last.ckpt").read_bytes()
    capfd.readouterr()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
        os._exit(undisturbed("fit", *QUIET, *command, 3, "--ckpt_path", "last"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("vtlvlm: ")]
    assert len(lines) == 1
    assert "the checkpoint cannot be written (File too large)" in lines[0]
    assert last.read_bytes() == before
    assert not list(run.rglob("*.tmp"))
    assert undisturbed("fit", *QUIET, *command, 3, "--ckpt_path", "last") == 0
    fit = Run.open(run).fit
    assert fit is not None
    assert fit.finished
    assert [session["first_step"] for session in fit.sessions] == [0, 1, 1]
