"""The bar counts optimiser steps over the whole training, from where a resumed one begins."""

import pytest
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from vtlvlm.callbacks.progress import StepProgress


def test_bars_of_training_and_testing(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=6,
        accumulate_grad_batches=2,
        limit_train_batches=4,
        limit_val_batches=1,
        limit_test_batches=3,
        callbacks=[StepProgress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(BoringModel())
    told = capsys.readouterr().err
    assert "6/6" in told  # three epochs of two steps: one bar
    assert "step/s" in told or "s/step" in told
    trainer.test(BoringModel())
    assert "3/3" in capsys.readouterr().err


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    silent = StepProgress()
    silent.disable()
    trainer = Trainer(default_root_dir=tmp_path, fast_dev_run=2, callbacks=[silent], logger=False, accelerator="cpu")
    trainer.fit(BoringModel())
    trainer.predict(BoringModel())
    told = capsys.readouterr()
    assert "step/s" not in told.err + told.out
    assert "batch/s" not in told.err + told.out


def test_in_a_file_a_quick_training_takes_two_lines(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    """One at the start and one at the end, not one a batch."""
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=30,
        limit_val_batches=0,
        callbacks=[StepProgress()],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(BoringModel())
    assert capsys.readouterr().err.count("training:") == 2


def test_a_training_that_fails_closes_its_bar(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    class Failing(BoringModel):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("stop")
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        default_root_dir=tmp_path, max_steps=9, limit_val_batches=0, callbacks=[StepProgress()], logger=False, accelerator="cpu"
    )
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(Failing())
    assert "3/9" in capsys.readouterr().err
