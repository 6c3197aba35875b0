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
    bar = silent._bar("training", 3)
    bar.update(3)
    bar.close()
    assert capsys.readouterr().err == ""
