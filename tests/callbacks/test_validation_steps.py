"""When a training validates, and when it writes its last checkpoint: real, tiny trainings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from test_callbacks import Data, Model

from vtlvlm.callbacks.validation_steps import ValidationSteps
from vtlvlm.stages.checkpoint_writing import RunTrainer, run_checkpoints


class Validations(Callback):
    """Notes the optimiser steps before each validation."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.append(trainer.global_step)


def fit(folder: Path, *callbacks: Callback, resumed: Path | None = None, **settings: Any) -> Trainer:
    """Four batches an epoch."""
    trainer = RunTrainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(Model(), datamodule=Data(), ckpt_path=resumed)
    return trainer


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_an_interval_counts_optimiser_steps_for_any_number_of_passes(passes: int, tmp_path: Path) -> None:
    seen = Validations()
    settings = {"val_check_interval": 3, "check_val_every_n_epoch": None, "accumulate_grad_batches": passes, "enable_checkpointing": False}
    fit(tmp_path, ValidationSteps(), seen, max_steps=7, **settings)
    assert seen.steps == [3, 6]


def test_parts_of_an_epoch_stay_lightnings(tmp_path: Path) -> None:
    seen = Validations()
    fit(tmp_path, ValidationSteps(), seen, max_epochs=1, val_check_interval=0.5, accumulate_grad_batches=2, enable_checkpointing=False)
    assert seen.steps == [1, 2]


def saved(folder: Path, **settings: Any) -> list[int]:
    """The optimiser steps of every ``last.ckpt`` of a training."""

    class Written(RunTrainer):
        def save_checkpoint(self, filepath: str | Path, *given: Any, **more: Any) -> None:
            super().save_checkpoint(filepath, *given, **more)
            found.append(torch.load(filepath, weights_only=True)["global_step"])

    found: list[int] = []
    trainer = Written(
        default_root_dir=folder,
        callbacks=run_checkpoints(folder, "val/none", "min")[:1],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(Model(), datamodule=Data())
    return found


def test_the_last_checkpoint_follows_the_epochs_that_validate_and_the_end(tmp_path: Path) -> None:
    """81 GB of full fine-tuning, after each epoch, would be 14 TB."""
    assert saved(tmp_path / "each", max_epochs=3) == [4, 8, 12]
    assert saved(tmp_path / "steps", max_epochs=2, val_check_interval=3, check_val_every_n_epoch=None) == [4, 8]
    assert saved(tmp_path / "rare", max_epochs=5, check_val_every_n_epoch=2) == [8, 16, 20]
    assert saved(tmp_path / "cut", max_steps=14, check_val_every_n_epoch=3) == [12, 14]
    assert saved(tmp_path / "short", max_steps=2, check_val_every_n_epoch=3) == [2]
