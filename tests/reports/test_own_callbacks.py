"""The user's own callbacks and loggers work beside the run's."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from events import EventRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    return EventRun(tmp_path_factory.mktemp("own"))


@pytest.fixture
def folder(run: EventRun) -> Iterator[Path]:
    """The run folder, which is gone afterwards."""
    yield run.folder / "run"
    shutil.rmtree(run.folder / "run", ignore_errors=True)


def own(name: str, **settings: object) -> list[object]:
    """A callback on the command line."""
    return ["--trainer.callbacks+", name, *(part for key, value in settings.items() for part in (f"--trainer.callbacks.{key}", value))]


def test_model_checkpoint_with_steps_saves_beside_ours(run: EventRun, folder: Path, tmp_path: Path) -> None:
    """https://github.com/Lightning-AI/pytorch-lightning/issues/18784: it was replaced by the model's, and the notice was hidden."""
    steps = own("ModelCheckpoint", dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    assert run("fit", *steps, "--trainer.logger", False) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0-step=1.ckpt", "epoch=1-step=2.ckpt"]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    one = tmp_path / "epoch=0-step=1.ckpt"
    assert run("test", "--ckpt_path", one, "--trainer.logger", False) == 0  # of this run, though it lies elsewhere
    more = ["--ckpt_path", one, "--trainer.default_root_dir", tmp_path / "more", "--trainer.logger", False]
    assert run("fit", *steps, *more) == 0
    ends = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for path in (folder, tmp_path / "more")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_callbacks_loggers_and_bars_of_one_s_own(run: EventRun, folder: Path, tmp_path: Path) -> None:
    mine = [*own("LearningRateMonitor", logging_interval="epoch"), *own("TQDMProgressBar"), *own("EarlyStopping", monitor="val/nll")]
    loud = ["--trainer.enable_progress_bar", True]
    assert run("fit", *mine, *own("ModelCheckpoint"), *loud) == 0
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert list((folder / "tensorboard" / "checkpoints").glob("epoch=*.ckpt"))  # a bare one is obeyed too
    shutil.rmtree(folder)
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", tmp_path]
    assert run("fit", *logger, *own("LearningRateMonitor")) == 0
    assert "val/nll" in next(tmp_path.rglob("metrics.csv")).read_text()
    assert json.loads((folder / "fit.json").read_text())["sessions"][-1]["finished"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ModelCheckpoint", {"filename": "last"}),
        ("ModelCheckpoint", {"filename": "best", "every_n_train_steps": 1}),
        ("ModelCheckpoint", {"save_last": True}),
        ("ModelCheckpoint", {"filename": "../checkpoints/last"}),
        ("OnExceptionCheckpoint", {"filename": "last"}),
    ],
)
def test_one_that_would_take_our_names_is_refused(
    run: EventRun, folder: Path, capsys: pytest.CaptureFixture[str], name: str, settings: dict[str, object]
) -> None:
    """``OnExceptionCheckpoint`` even deletes the file when all went well."""
    spelt = folder.parent / "run" / ".." / "run" / "checkpoints"
    assert run("fit", *own(name, dirpath=spelt, **settings), "--trainer.logger", False) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtlvlm: ")]
    assert len(lines) == 1
    assert f"{name} would write {folder / 'checkpoints'}" in lines[0]
    assert not (folder / "config.yaml").exists()


def test_what_an_exception_left_is_not_started_from_unasked(
    run: EventRun, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``OnExceptionCheckpoint``, Lightning takes its file where no checkpoint is named, whatever run it is of."""
    (tmp_path / "on_exception.ckpt").write_bytes(b"of another run")
    assert run("fit", *own("OnExceptionCheckpoint", dirpath=tmp_path), "--trainer.logger", False) == 2
    assert "on_exception.ckpt: name it with --ckpt_path" in capsys.readouterr().err
    assert run("fit", *own("OnExceptionCheckpoint", dirpath=tmp_path / "new"), "--trainer.logger", False) == 0
