"""How often a training waits for the GPU, counted on the CPU by the operations that would make it wait."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline_configs import SMALL, shrunk
from lightning import Callback, LightningModule, Trainer
from moves import write_moves
from pipeline import Pipeline
from shipped import put, resolved
from videos import block_clips
from waits import Waits, count_waits

from vtlvlm.cli import main

FIRST, LAST = 3, 7
"""The counted optimiser steps, none of which is logged"""
ON_THE_CPU = ("datasets.py", "golden.py")
"""What asks the CPU: the loader, and the tests' own record of losses"""


class CountWaits(Callback):
    """Counts the waits of some optimiser steps, from the moment a batch is on the device until the next one is asked for, and writes them
    to a file. What an epoch's end waits for is not counted.

    Args:
        path: Of the file.
    """

    def __init__(self, path: str) -> None:
        self.path, self.mode, self.counts = Path(path), Waits(), False

    def _stop(self) -> None:
        if self.counts:
            self.mode.__exit__(None, None, None)
            self.counts = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stop()
        if FIRST <= trainer.global_step < LAST:
            self.mode.__enter__()
            self.counts = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        self.path.write_text(json.dumps([name for name in self.mode.names if not set(ON_THE_CPU) & set(name.split(" ")[1].split(":"))]))


def test_the_counter_sees_what_waits() -> None:
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    with count_waits() as found:
        values[mask].sum().item()
        bool((values > 2).any())
        values.nonzero()
        mask.long().repeat_interleave(torch.tensor([1, 2, 1, 1]))
    assert [name.split(":")[0] for name in found.names] == [
        "index",
        "_local_scalar_dense",
        "_local_scalar_dense",
        "nonzero",
        "repeat_interleave",
    ]
    with count_waits() as found:
        values[torch.tensor([0, 2])].sum().sqrt()
        torch.where(mask, values, 0).cumsum(0)
    assert not found.names


@pytest.mark.parametrize("stage", [1, 2])
def test_an_optimiser_step_waits_once(chain: Pipeline, stage: int, tmp_path: Path) -> None:
    """Two micro-batches a step in stage 2, one whole batch in two parts in stage 1; the one wait is the look at NaN."""
    said = tmp_path / "waits.json"
    own = chain.on_features if stage == 1 else [*chain.on_events, "--model.init_args.reasoner.init_args.init_projector", "keep"]
    settings = ["--data.batch_size", 2, "--data.micro_batch_size", 1, "--trainer.max_steps", LAST + 1, "--trainer.max_epochs", -1]
    settings += ["--trainer.log_every_n_steps", 1000, "--trainer.enable_progress_bar", "true", "--trainer.check_val_every_n_epoch", 100]
    watch = ["--trainer.callbacks+", "test_waits.CountWaits", "--trainer.callbacks.path", said]
    assert chain("fit", *own, "--trainer.default_root_dir", tmp_path / "run", *settings, *watch) == 0
    found = json.loads(said.read_text())
    steps = LAST - FIRST
    assert len(found) == steps, "\n".join(found)
    assert all("nan_guard" in name for name in found), "\n".join(found)


@pytest.mark.parametrize("name", SMALL)
def test_a_step_of_a_skeleton_network_waits_once(name: str, tmp_path: Path) -> None:
    """The preparation of the next batch on the device counts too."""
    file, said = write_moves(tmp_path / "moves.npz"), tmp_path / "waits.json"
    config = shrunk(resolved(f"baselines/{name}.yaml"), file, tmp_path)
    require_one_wait(config, said)


def test_a_step_of_a_video_network_waits_once(tmp_path: Path) -> None:
    config = resolved("baselines/r3d_18_small.yaml")
    config["model"]["init_args"]["network"]["init_args"]["model"] = "mc3_18"
    put(config, size=16, image_size=16, frames=2)
    clips = block_clips(tmp_path / "clips", (1, 2, 4, 5, 8, 9, 3))
    require_one_wait(shrunk(config, clips, tmp_path, "xsub60"), tmp_path / "waits.json")


def require_one_wait(config: Path, said: Path) -> None:
    """The one wait of each step is the look at NaN."""
    settings = ["--trainer.strategy", "auto", "--trainer.max_steps", LAST + 1, "--trainer.log_every_n_steps", 1000]
    settings += ["--trainer.val_check_interval", LAST + 1]
    watch = ["--trainer.callbacks+", "test_waits.CountWaits", "--trainer.callbacks.path", said]
    assert main(["fit", "--config", *map(str, [config, *settings, *watch])]) == 0
    found = json.loads(said.read_text())
    assert len(found) == LAST - FIRST, "\n".join(found)
    assert all("nan_guard" in name for name in found), "\n".join(found)
