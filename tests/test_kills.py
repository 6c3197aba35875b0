"""``kill -9`` while training, and the same command again: the weights are those of a training that nobody disturbed."""

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from events import EventRun

from vtlvlm.cli import MEMORY
from vtlvlm.report.runs import Run, fit_finished
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


def disturb(place: str, mark: Path, name: str) -> list[object]:
    """The options that send a signal in the midst of a command."""
    settings = {"place": place, "mark": mark, "name": name}
    more = [part for key, value in settings.items() for part in (f"--trainer.callbacks.{key}", value)]
    return ["--trainer.callbacks+", "happening.KillOnce", *more]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a shell takes from what it starts in the background, and Lightning from what it interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_training_comes_to_the_same_end(undisturbed: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C, and the same command with what the last line says."""
    command = [*QUIET, "--trainer.default_root_dir", tmp_path / "run", "--trainer.max_epochs", 3]
    assert undisturbed("fit", *command, *disturb("epoch", tmp_path / "mark", "SIGINT")) == 130
    assert capsys.readouterr().err.endswith("vtlvlm: interrupted; add --ckpt_path last to continue after its last epoch\n")
    assert undisturbed("fit", *command, "--ckpt_path", "last") == 0
    assert_same(undisturbed.folder / "run", tmp_path / "run")


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_prediction_says_how_to_go_on(undisturbed: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = undisturbed.folder / "run" / "checkpoints" / "best.ckpt"
    command = ["--ckpt_path", best, "--trainer.default_root_dir", tmp_path / "run"]
    assert undisturbed("predict", *command, *disturb("predict", tmp_path / "mark", "SIGINT")) == 130
    assert capsys.readouterr().err.endswith("vtlvlm: interrupted; the same command continues\n")
    assert undisturbed("predict", *command) == 0


def test_a_full_gpu_is_one_line_with_a_remedy(undisturbed: EventRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = [*QUIET, "--trainer.default_root_dir", tmp_path / "run", "--trainer.callbacks+", "happening.FullGpu"]
    assert undisturbed("fit", *full) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"vtlvlm: CUDA out of memory. Tried to allocate 2.00 GiB. {MEMORY}"
    assert "--data.micro_batch_size" in MEMORY
    assert "reasoner.llava.gradient_checkpointing" in MEMORY
    with pytest.raises(torch.OutOfMemoryError):
        undisturbed("fit", *full[:-3], tmp_path / "debug", *full[-2:], "--debug")


@pytest.mark.parametrize("place", ["batch", "validation", "epoch", "writing"])
def test_a_killed_training_comes_to_the_same_end(undisturbed: EventRun, tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    command = [*disturb(place, tmp_path / "mark", "SIGKILL"), "--trainer.default_root_dir", run, "--trainer.max_epochs", 3]
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


def killed_after(run: EventRun, seconds: float, *arguments: object) -> int:
    """As ``forked``, with ``kill -9`` after so many seconds where the command has not ended by then."""
    if (child := os.fork()) == 0:
        try:
            os._exit(run("fit", *QUIET, *arguments))
        finally:
            os._exit(99)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_at_any_moment(undisturbed: EventRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fifty kills, each at a random moment of a command; what is left is always whole, and the end is always the same."""
    run, draw = tmp_path / "run", random.Random(0)
    command = ["--trainer.default_root_dir", run, "--trainer.max_epochs", 3]
    started = time.monotonic()
    assert forked(undisturbed, *command) == 0
    usual, kills = time.monotonic() - started, 0
    while kills < 50:
        if fit_finished(run):
            assert_same(undisturbed.folder / "run", run)
            shutil.rmtree(run)
        left = to_continue(run)
        code = killed_after(undisturbed, draw.uniform(0.2, 1) * usual, *command, *([] if left is None else ["--ckpt_path", left]))
        kills += code == -signal.SIGKILL
        err = capfd.readouterr().err
        assert "Traceback" not in err
        assert not [line for line in err.splitlines() if line.startswith("vtlvlm: ") and "warning" not in line], err
        for path in written(run):
            examine(path, training=True)


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
