"""A training that goes on reads what it would have read, whenever it was interrupted."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from events import EventRun
from lightning import Callback
from lightning.pytorch.strategies import SingleDeviceStrategy
from modules import data_of
from torch import Tensor, nn

from vtlvlm.batches import EventBatch
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.samplers import TrainSampler
from vtlvlm.errors import UsageError
from vtlvlm.stages.stage import Stage

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
EPOCH = 6
"""Batches of two of the twelve training clips"""


class Reader(Stage):
    """Writes down what it reads; its weight depends on the order and on which clips share a step."""

    stage = "reader"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.read: list[tuple[int, int, tuple[int, ...]]] = []
        self.validated: list[int] = []
        self.whole_batch = False

    def training_step(self, batch: EventBatch, index: int) -> Tensor:
        self.read.append((self.current_epoch, index, tuple(batch.clips.tolist())))
        return (self.weight - batch.clips.float().mean()).square()

    def validation_step(self, batch: EventBatch, index: int) -> None:
        if not index:
            self.validated.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves a checkpoint in one hook, after so many batches or, at an epoch's end, epochs."""

    def __init__(self, path: Path, hook: str, count: int) -> None:
        self.path, self.hook, self.count = path, hook, count

    def _save(self, trainer: lightning.Trainer, hook: str, count: int) -> None:
        if (hook, count) == (self.hook, self.count):
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._save(trainer, "batch", trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._save(trainer, "validation", trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._save(trainer, "epoch", trainer.current_epoch + 1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> EventRun:
    return EventRun(tmp_path_factory.mktemp("resume"), people=(1, 2, 4, 5, 8, 9, 13, 14, 3, 6))


def data(clips: EventRun, micro: int = 2, batch: int = 2) -> NTUDataModule:
    return data_of(clips.root, events=str(clips.events), batch_size=batch, micro_batch_size=micro, num_workers=0, validation=0.25)


def fit(
    module: NTUDataModule,
    folder: Path,
    options: dict[str, Any],
    save: SaveAt | None = None,
    start: Path | None = None,
    whole: bool = False,
) -> Reader:
    reader = Reader()
    reader.whole_batch = whole
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[] if save is None else [save],
        **quiet,
        **options,
    )
    trainer.fit(reader, datamodule=module, ckpt_path=start, weights_only=False)
    return reader


STEPS = {"max_steps": 14}
EPOCHS = {"max_epochs": 3}
OFTEN = {"val_check_interval": 4, "check_val_every_n_epoch": None}
"""in the middle of epochs and at their ends"""
NEVER = {"limit_val_batches": 0}
VALIDATED: list[tuple[dict[str, Any], tuple[int, ...]]] = [({}, (6, 12)), (OFTEN, (4, 8, 12)), (NEVER, ())]
"""Settings, and the batches after which they validate"""
OTHERS = [("epoch", 1), ("epoch", 2), ("batch", 3), ("batch", 6), ("batch", 8)]


@pytest.mark.parametrize("end", [STEPS, EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize(
    ("validation", "hook", "count"),
    [(options, *moment) for options, batches in VALIDATED for moment in [*OTHERS, *(("validation", batch) for batch in batches)]],
)
def test_the_rest_is_read(clips: EventRun, tmp_path: Path, validation: dict[str, Any], hook: str, count: int, end: dict[str, Any]) -> None:
    path, options = tmp_path / "a.ckpt", {**end, **validation}
    whole = fit(data(clips), tmp_path, options, SaveAt(path, hook, count))
    again = fit(data(clips), tmp_path, options, start=path)
    assert again.read == whole.read[count * (EPOCH if hook == "epoch" else 1) :]
    assert torch.equal(again.weight, whole.weight)
    assert again.global_step == whole.global_step


@pytest.mark.parametrize(("hook", "count", "left"), [("batch", 3, 2), ("batch", 4, 4), ("validation", 4, 4), ("epoch", 1, EPOCH)])
@pytest.mark.parametrize("end", [{"max_steps": 7}, EPOCHS], ids=["steps", "epochs"])
def test_no_gradient_is_lost_within_a_step(clips: EventRun, tmp_path: Path, hook: str, count: int, left: int, end: dict[str, Any]) -> None:
    """A step takes two batches: what was read for one that was not made is read again."""
    path, options = tmp_path / "a.ckpt", {**end, **OFTEN}
    whole = fit(data(clips, batch=4), tmp_path, options, SaveAt(path, hook, count))
    again = fit(data(clips, batch=4), tmp_path, options, start=path)
    assert again.read == whole.read[left:]
    assert torch.equal(again.weight, whole.weight)
    assert [step for step in whole.validated if step > left // 2] == again.validated


@pytest.mark.parametrize(("steps", "left"), [(3, 6), (5, 10)])
def test_the_rest_of_an_epoch_that_max_steps_cut_is_read(clips: EventRun, tmp_path: Path, steps: int, left: int) -> None:
    path = tmp_path / "a.ckpt"
    whole = fit(data(clips, batch=4), tmp_path, {"max_steps": 7})
    fit(data(clips, batch=4), tmp_path, {"max_steps": steps}, SaveAt(path, "epoch", 1 + (steps > 3)))
    again = fit(data(clips, batch=4), tmp_path, {"max_steps": 7}, start=path)
    assert again.read == whole.read[left:]
    assert torch.equal(again.weight, whole.weight)


@pytest.mark.parametrize("end", [STEPS, EPOCHS], ids=["steps", "epochs"])
def test_epochs_that_are_limited(clips: EventRun, tmp_path: Path, end: dict[str, Any]) -> None:
    """The end of a limited epoch is no place within one."""
    path, options = tmp_path / "a.ckpt", {**end, "limit_train_batches": 4}
    whole = fit(data(clips), tmp_path, options, SaveAt(path, "epoch", 1))
    again = fit(data(clips), tmp_path, options, start=path)
    assert again.read == whole.read[4:]
    assert torch.equal(again.weight, whole.weight)


@pytest.mark.parametrize("end", [STEPS, EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_other_numbers_of_clips_at_once(clips: EventRun, tmp_path: Path, end: dict[str, Any], first: int, then: int) -> None:
    """Two steps into an epoch with one clip at a time, the rest with two, or the other way: the same clips in the same order."""
    path, options = tmp_path / "a.ckpt", {**end, **NEVER}
    whole = [clip for batch in fit(data(clips), tmp_path, options).read for clip in batch[2]]
    fit(data(clips, micro=first), tmp_path, options, SaveAt(path, "batch", 2 * (2 // first)))
    again = fit(data(clips, micro=then), tmp_path, options, start=path)
    assert [clip for batch in again.read for clip in batch[2]] == whole[4:]
    assert again.read[0][1] == 4 // then


@pytest.mark.parametrize("end", [STEPS, EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_stage_that_sees_whole_batches_goes_on(clips: EventRun, tmp_path: Path, end: dict[str, Any], before: bool, after: bool) -> None:
    """Two batches of four into an epoch of three; also where an earlier version read them in two passes."""
    path, options = tmp_path / "a.ckpt", {**end, **NEVER}
    whole = [clip for batch in fit(data(clips, batch=4), tmp_path, options, whole=before).read for clip in batch[2]]
    fit(data(clips, batch=4), tmp_path, options, SaveAt(path, "batch", 2 if before else 4), whole=before)
    again = fit(data(clips, batch=4), tmp_path, options, start=path, whole=after)
    assert [clip for batch in again.read for clip in batch[2]] == whole[8:]
    assert {len(batch[2]) for batch in again.read} == {4 if after else 2}


class Late(SingleDeviceStrategy):
    """Restores when optimisers are there already, as ModelParallelStrategy does."""

    restore_checkpoint_after_setup = True


@pytest.mark.parametrize("end", [STEPS, EPOCHS], ids=["steps", "epochs"])
def test_the_rest_is_read_where_the_loader_was_made_before_restoring(clips: EventRun, tmp_path: Path, end: dict[str, Any]) -> None:
    path = tmp_path / "a.ckpt"
    whole = fit(data(clips), tmp_path, {**end, "strategy": Late(device="cpu")}, SaveAt(path, "batch", 8))
    again = fit(data(clips), tmp_path, {**end, "strategy": Late(device="cpu")}, start=path)
    assert again.read == whole.read[8:]
    assert torch.equal(again.weight, whole.weight)


def test_the_rest_of_an_order_for_any_number_of_processes() -> None:
    clips = np.arange(12)
    whole = [clip for clip, _ in TrainSampler(clips, np.ones_like(clips), seed=3)]
    ranks = [TrainSampler(clips, np.ones_like(clips), seed=3, rank=rank, world=2) for rank in (0, 1)]
    for sampler in ranks:
        sampler.done = 4
    assert [clip for both in zip(*ranks, strict=True) for clip, _ in both] == whole[4:]
    assert len(list(ranks[0])) == 6


def test_one_data_module_for_two_trainings(clips: EventRun, tmp_path: Path) -> None:
    """What a first training left in it does not reach into one that goes on, nor that one's place into a fresh one."""
    path, module = tmp_path / "a.ckpt", data(clips)
    whole = fit(module, tmp_path, STEPS, SaveAt(path, "batch", 8))
    assert fit(module, tmp_path, STEPS, start=path).read == whole.read[8:]
    assert fit(module, tmp_path, STEPS).read == whole.read


def test_a_batch_size_that_does_not_divide_what_was_read(clips: EventRun, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    fit(data(clips), tmp_path, STEPS, SaveAt(path, "batch", 3))
    with pytest.raises(UsageError, match=r"written 6 clips into an epoch, not a multiple of 4 .*; keep data.batch_size"):
        fit(data(clips, micro=4, batch=4), tmp_path, STEPS, start=path)
    fit(data(clips, micro=3, batch=3), tmp_path, STEPS, start=path)
