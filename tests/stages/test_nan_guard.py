"""Trainings that must stop: with NaN among the clips, a learning rate that explodes, in one process and in two."""

import json
import re
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch
from events import EventRun
from gloo import in_processes
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pipeline import as_rank
from pixels import PixelExtractor
from torch.utils.data import DataLoader

from vtlvlm.batches import FeatureBatch
from vtlvlm.cli import main
from vtlvlm.errors import DataError
from vtlvlm.stages.nan_guard import StopOnNonFinite, all_finite
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.vtem import EMAQuantizer, InfoNCE, UniformPooler

SPOILT = "S001C001P004R001A002"
EXPLODING = ["--model.init_args.optimizer.learning_rate", 1e37]
TWO = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.micro_batch_size", 1, "--data.source.validation", 0]


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    return EventRun(tmp_path_factory.mktemp("spoilt"), spoilt=(SPOILT,))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_all_finite_looks_at_floats_alone() -> None:
    batch = FeatureBatch(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2), None, torch.tensor([-1]), torch.tensor([0]), torch.tensor([0]))
    assert all_finite(batch)
    assert not all_finite(batch._replace(times=torch.tensor([[0.0, torch.inf]])))
    assert not all_finite([torch.tensor(torch.nan, dtype=torch.bfloat16)])


def test_a_clip_without_numbers_is_named(spoilt: EventRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert spoilt("fit", "--data.source.validation", 0, "--data.micro_batch_size", 1, run="nan") == 1
    line = last_line(capsys)
    assert line.startswith("vtlvlm: training stopped at step ")
    assert "features or events are NaN or infinite on rank 0, batch " in line
    assert f"({SPOILT} view 0)" in line
    assert "no checkpoint was written yet" in line


def test_a_loss_that_explodes_leaves_the_checkpoints_before_it(spoilt: EventRun, capsys: pytest.CaptureFixture[str]) -> None:
    """A good epoch, then another at a rate that no float survives, from its checkpoint."""
    healthy = EventRun(spoilt.folder / "healthy")
    assert healthy("fit", "--trainer.max_epochs", 1) == 0
    checkpoints = healthy.folder / "run" / "checkpoints"
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    assert before.keys() == {"best.ckpt", "last.ckpt"}
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)
    for group in state["optimizer_states"][0]["param_groups"]:
        group["initial_lr"] = 1e37
    state["lr_schedulers"][0]["base_lrs"] = [1e37]
    torch.save(state, healthy.folder / "exploding.ckpt")
    capsys.readouterr()
    assert healthy("fit", "--trainer.max_epochs", 9, "--ckpt_path", healthy.folder / "exploding.ckpt") == 1
    line = last_line(capsys)
    assert re.search("(the loss is nan|reasoner.adapter.key is NaN or infinite) on rank 0, batch ", line)  # whichever comes first
    assert f"continue from {checkpoints / 'last.ckpt'} with a lower learning rate" in line
    for path in checkpoints.iterdir():
        held = torch.load(path, weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in held["state_dict"].values())
    assert json.loads((healthy.folder / "run" / "fit.json").read_text())["sessions"][-1]["finished"] is False


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(tmp_path: Path) -> None:
    """The loss of the last batch was good, the step after it was not: what stands in the file stays."""

    class OneStep(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def training_step(self, batch: FeatureBatch, index: int) -> torch.Tensor:
            return (self.weight * batch.features.mean()).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.optimizers[0].param_groups[0]["lr"] = torch.inf

        def train_dataloader(self) -> DataLoader:
            one = torch.tensor([7])
            return DataLoader([FeatureBatch(torch.ones(1, 1, 1, 1), torch.zeros(1, 1), None, one, one, one)], batch_size=None)

    saving = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=[StopOnNonFinite(), saving],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(DataError, match=r"weight is NaN or infinite on rank 0, batch 0 \(7 view 7\); continue from .*last\.ckpt"):
        trainer.fit(OneStep())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["weight"] == pytest.approx(0.9)


def test_stage_one_names_the_clip_too(spoilt: EventRun, tmp_path: Path) -> None:
    module = VTEMModule(PixelExtractor(), UniformPooler(2), EMAQuantizer(4), InfoNCE(), event_dim=16)
    module.trainer = trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    watch = next(callback for callback in module.configure_callbacks() if isinstance(callback, StopOnNonFinite))
    numbers = torch.arange(6)
    features = torch.ones(6, 4, 4, 12)
    features[2, 1, 0, 3] = torch.inf
    batch = FeatureBatch(features, torch.zeros(6, 4), None, numbers, numbers, numbers * 0)
    watch.on_train_batch_start(trainer, module, batch, 5)
    watch.on_before_backward(trainer, module, torch.ones(()))
    with pytest.raises(DataError, match=r"NaN or infinite on rank 0, batch 5 \(0 view 0, 1 view 0, 2 view 0, 3 view 0 and 2 more\)"):
        watch.on_before_optimizer_step(trainer, module, None)


def _stopped(rank: int, arguments: list[str]) -> tuple[int, str]:
    """The exit code of a command on one of two processes, and what it said."""
    as_rank(rank, 2)
    with redirect_stderr(StringIO()) as err:
        code = main(arguments)
    return code, err.getvalue()


@pytest.mark.parametrize("reason", ["clip", pytest.param("rate", marks=pytest.mark.slow)])
def test_two_processes_stop_together(spoilt: EventRun, reason: str, tmp_path: Path) -> None:
    """The clip is on one rank alone; the other one neither waits for it nor goes on, and both say the same."""
    run = spoilt if reason == "clip" else EventRun(spoilt.folder / "rate")
    more = [] if reason == "clip" else [*EXPLODING, "--data.batch_size", 2]
    arguments = ["fit", "--config", run.config, "--trainer.default_root_dir", run.folder / f"two-{reason}", *TWO, *more]
    said = in_processes(_stopped, tmp_path, [str(word) for word in arguments], group=False)
    assert all(code != 0 for code, _ in said)
    lines = [line for _, err in said for line in err.splitlines() if line.startswith("vtlvlm: training stopped at step ")]
    assert len(lines) == 2, said
    assert lines[0] == lines[1]
    if reason == "clip":
        assert f"({SPOILT} view 0)" in lines[0]
        assert lines[0].count(" on rank ") == 1
    else:
        assert "the loss is nan on rank 0" in lines[0]
        assert "the loss is nan on rank 1" in lines[0]
        assert "no checkpoint was written yet" in lines[0]
