"""Callbacks under real, tiny Trainer runs on the CPU."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vtlvlm.batches import EventTokens, FeatureBatch
from vtlvlm.callbacks.cache_writing import EventWriter, FeatureWriter
from vtlvlm.callbacks.confusion import ConfusionFigure
from vtlvlm.callbacks.run_record import RunRecord
from vtlvlm.callbacks.throughput import Throughput
from vtlvlm.data.cache import EventCache, EventCacheWriter, FeatureCache, FeatureCacheWriter
from vtlvlm.metrics.actions import action_metrics, confusion
from vtlvlm.report.runs import Run, fit_finished

CLASSES = ("bow", "jump", "wave")
N = 7


def features(rows: Sequence[int]) -> FeatureBatch:
    """Clip i shows class i mod 3: feature i mod 3 is one."""
    clips = torch.tensor(list(rows))
    labels = clips % 3
    cells = torch.eye(3)[labels][:, None, None].expand(-1, 2, 1, -1)
    return FeatureBatch(cells, torch.tensor([0.5, 1.5]).expand(len(clips), 2), None, labels, clips, torch.zeros_like(clips))


class Data(LightningDataModule):
    split_description = MappingProxyType({"protocol": "xsub60", "train": N, "val": N, "test": N})

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(range(N), batch_size=2, collate_fn=features)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader

    def keys(self, clips: Tensor, views: Tensor) -> list[tuple[str, int]]:
        return [(f"clip{clip}", view) for clip, view in zip(clips.tolist(), views.tolist(), strict=True)]

    def predict_keys(self) -> list[tuple[str, int]]:
        return self.keys(torch.arange(N), torch.zeros(N, dtype=torch.int64))

    def skip(self, done: set[tuple[str, int]], idle: bool) -> None:
        assert not done

    def identities(self, clips: Tensor) -> list[str]:
        return [f"file{clip}" for clip in clips.tolist()]


class Model(LightningModule):
    """Predicts class 0 for classes 0 and 1, and class 2 for class 2."""

    classes = CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        self.layer.weight.data = torch.tensor([[9.0, 9.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.test_metrics = action_metrics(3).clone(prefix="test/")
        self.confusion = confusion(3)

    def provenance(self) -> dict[str, Any]:
        return {"stage1": "abc"}

    def scores(self, batch: FeatureBatch) -> Tensor:
        return self.layer(batch.features.mean((1, 2)))

    def training_step(self, batch: FeatureBatch, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.scores(batch), batch.labels)

    def validation_step(self, batch: FeatureBatch, index: int) -> None:
        self.confusion.update(self.scores(batch), batch.labels)
        self.log("val/loss", self.training_step(batch, index), batch_size=len(batch.labels))
        self.log("val/strange", torch.tensor(torch.nan))

    def test_step(self, batch: FeatureBatch, index: int) -> None:
        self.test_metrics.update(self.scores(batch), batch.labels)
        self.confusion.update(self.scores(batch), batch.labels)
        self.log_dict(self.test_metrics, on_step=False, on_epoch=True)

    def predict_step(self, batch: FeatureBatch, index: int) -> Any:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Stop(Exception):
    """Ends a training in its middle."""


class StoppingModel(Model):
    def training_step(self, batch: FeatureBatch, index: int) -> Tensor:
        if index == 1:
            raise Stop
        return super().training_step(batch, index)


def trainer(folder: Path, callbacks: list[Any], **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **{"logger": False, **settings},
    )


def test_run_record_of_a_training_and_its_test(tmp_path: Path) -> None:
    seed_everything(11)
    model = Model()
    trainer(tmp_path, [RunRecord()], max_steps=2).fit(model, datamodule=Data())
    run = Run.open(tmp_path)
    environment = run.environment
    assert environment is not None
    assert environment["seed"] == 11
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "lightning", "timm", "av", "transformers", "torchmetrics", "vtlvlm"} <= set(environment["versions"])
    fit = run.fit
    assert fit is not None
    assert (fit.steps, fit.parameters, fit.trainable_parameters) == (2, 14, 9)
    assert fit.seconds_per_step is not None
    assert 0 < fit.seconds_per_step <= fit.wall_seconds
    assert fit.peak_rss_bytes > 50e6
    assert (fit.peak_gpu_bytes, fit.device) == (None, {"name": "cpu", "count": 1})
    assert environment["machine"].keys() >= {"gpus", "cuda", "cudnn", "driver"}
    assert fit_finished(tmp_path)
    assert run.test is None

    trainer(tmp_path, [RunRecord()]).test(model, datamodule=Data(), verbose=False)
    test = run.test
    assert test is not None
    assert (test.protocol, test.split, test.num_clips, test.seed) == ("xsub60", "test", N, 11)
    assert test.metrics["top1"] == pytest.approx(5 / 7)  # clips 1 and 4 are wrong
    assert test.metrics["mean_class_accuracy"] == pytest.approx(2 / 3)
    assert (test.peak_gpu_bytes, test.device) == (None, {"name": "cpu", "count": 1})
    assert test.provenance["stage1"] == "abc"
    assert test.provenance["split"]["test"] == N
    assert test.provenance["environment"]["versions"] == environment["versions"]
    assert not list(tmp_path.glob(".*tmp"))


def test_validation_goes_to_its_own_file_and_nan_to_null(tmp_path: Path) -> None:
    model = Model()
    trainer(tmp_path, [RunRecord()], max_steps=4, num_sanity_val_steps=1).fit(model, datamodule=Data())
    assert not (tmp_path / "metrics_val.json").exists()  # validation inside a training is a curve, not a result
    trainer(tmp_path, [RunRecord()]).validate(model, datamodule=Data(), verbose=False)
    content = json.loads((tmp_path / "metrics_val.json").read_text(), parse_constant=pytest.fail)
    assert content["split"] == "val"
    assert content["num_clips"] == N
    assert content["metrics"]["strange"] is None
    assert set(content["metrics"]) == {"loss", "strange"}


def test_interrupted_training_is_recorded_and_not_finished(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        trainer(tmp_path, [RunRecord()], max_epochs=1, num_sanity_val_steps=0).fit(StoppingModel(), datamodule=Data())
    fit = Run.open(tmp_path).fit
    assert fit is not None
    assert fit.steps == 1
    assert not fit_finished(tmp_path)
    assert not fit_finished(tmp_path / "elsewhere")


def test_sessions_of_a_resumed_training_add_up(tmp_path: Path) -> None:
    data = Data()
    first = trainer(tmp_path, [RunRecord()], max_epochs=1)
    first.fit(Model(), datamodule=data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, [RunRecord()], max_epochs=2).fit(Model(), datamodule=data, ckpt_path=tmp_path / "half.ckpt")
    fit = Run.open(tmp_path).fit
    assert fit is not None
    assert [(s["first_step"], s["last_step"]) for s in fit.sessions] == [(0, 4), (4, 8)]
    assert fit.wall_seconds == pytest.approx(sum(s["wall_seconds"] for s in fit.sessions))


def test_a_kill_loses_the_time_since_the_last_checkpoint_alone(tmp_path: Path) -> None:
    """Killed are a training from its start, and one that goes on from the checkpoint of the first."""

    class Killed(BaseException):
        """What no handler of a process sees that is killed."""

    class Killer(Callback):
        """Ends the process after three steps, with a checkpoint after each."""

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "last.ckpt")
            if trainer.global_step % 3 == 0:
                trainer.callbacks.clear()  # type: ignore[attr-defined]
                raise Killed

    for start, steps in ((None, 3), (tmp_path / "last.ckpt", 6)):
        with pytest.raises(Killed):
            trainer(tmp_path, [RunRecord(), Killer()], max_epochs=2).fit(Model(), datamodule=Data(), ckpt_path=start)
        fit = Run.open(tmp_path).fit
        assert fit is not None
        assert (fit.steps, fit.finished) == (steps, False)
    assert [(s["first_step"], s["last_step"]) for s in fit.sessions] == [(0, 3), (3, 6)]
    trainer(tmp_path, [RunRecord()], max_epochs=2).fit(Model(), datamodule=Data(), ckpt_path=tmp_path / "last.ckpt")
    fit = Run.open(tmp_path).fit
    assert fit is not None
    assert [(s["first_step"], s["last_step"]) for s in fit.sessions] == [(0, 3), (3, 6), (6, 8)]
    assert fit.finished
    assert all(s["wall_seconds"] > 0 for s in fit.sessions)
    assert fit.wall_seconds == pytest.approx(sum(s["wall_seconds"] for s in fit.sessions))


def test_a_finished_training_that_is_continued_has_nothing_to_add(tmp_path: Path) -> None:
    first = trainer(tmp_path, [RunRecord()], max_epochs=1)
    first.fit(Model(), datamodule=Data())
    first.save_checkpoint(tmp_path / "end.ckpt")
    before = (tmp_path / "fit.json").read_text()
    trainer(tmp_path, [RunRecord()], max_epochs=1).fit(Model(), datamodule=Data(), ckpt_path=tmp_path / "end.ckpt")
    assert (tmp_path / "fit.json").read_text() == before
    (tmp_path / "fit.json").unlink()  # killed before it was written
    trainer(tmp_path, [RunRecord()], max_epochs=1).fit(Model(), datamodule=Data(), ckpt_path=tmp_path / "end.ckpt")
    assert fit_finished(tmp_path)
    assert json.loads((tmp_path / "fit.json").read_text())["wall_seconds"] < 60


def test_throughput_curves(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    trainer(tmp_path, [Throughput()], max_epochs=2, logger=logger, accumulate_grad_batches=2).fit(Model(), datamodule=Data())
    curves = Run.open(tmp_path).scalars()
    assert curves["train/seconds_per_step"].steps.tolist() == [0, 1, 2, 3]  # 4 batches, 2 steps an epoch
    assert (curves["train/clips_per_second"].values > 0).all()
    share = curves["train/data_wait_share"].values
    assert ((share >= 0) & (share <= 1)).all()
    clips = curves["train/clips_per_second"].values * curves["train/seconds_per_step"].values
    assert clips.tolist() == pytest.approx([4, 3, 4, 3], rel=1e-4)


def test_confusion_figure(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    model = Model()
    model.confusion.update(torch.tensor([0]), torch.tensor([1]))  # left over from something else
    trainer(tmp_path, [ConfusionFigure()], logger=logger).test(model, datamodule=Data(), verbose=False)
    found = Run.open(tmp_path).confusion("test")
    assert found is not None
    assert found.classes == CLASSES
    assert found.matrix.tolist() == [[3, 0, 0], [2, 0, 0], [0, 0, 2]]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.experiment.flush()
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["images"] == ["test/confusion"]
    model.confusion = None  # type: ignore[assignment]
    ConfusionFigure().on_test_epoch_end(trainer(tmp_path, []), model)


KEYS = [(f"clip{i}", 0) for i in range(N)]
ROW_BYTES = 100


def test_feature_writer_fills_a_cache(tmp_path: Path) -> None:
    writing = FeatureWriter(lambda data, rank: FeatureCacheWriter(tmp_path / "cache", {"extractor": "eye"}, rank), ROW_BYTES)
    trainer(tmp_path, [writing]).predict(Model(), datamodule=Data(), return_predictions=False)
    writing.close()
    writing.writer.finish(KEYS)
    cache = FeatureCache.open(tmp_path / "cache")
    rows = cache.rows([name for name, _ in KEYS], 0)
    assert cache.features(rows)[:, 0, 0].argmax(-1).tolist() == [i % 3 for i in range(N)]
    assert cache.identities[rows].tolist() == [f"file{i}" for i in range(N)]


class Tokens(Model):
    def predict_step(self, batch: FeatureBatch, index: int) -> EventTokens:
        if index == 2 and self.stops:
            raise Stop
        ids = batch.labels[:, None].expand(-1, 2)
        return EventTokens(ids, torch.eye(3)[ids], torch.tensor([[0.0, 1.0], [1.0, 2.0]]).expand(len(ids), 2, 2))

    stops = True


def test_event_writer_keeps_what_was_done_when_interrupted(tmp_path: Path) -> None:
    def write(folder: Path, stops: bool) -> EventWriter:
        model, writing = Tokens(), EventWriter(lambda data, rank: EventCacheWriter(folder, {"vtem": "eye"}, torch.eye(3), rank), ROW_BYTES)
        model.stops = stops
        with pytest.raises(Stop) if stops else nullcontext():
            trainer(tmp_path, [writing]).predict(model, datamodule=Data(), return_predictions=False)
        return writing

    writing = write(tmp_path / "cache", stops=True)
    assert writing.writer.done() == set(KEYS[:4])
    writing.close()
    writing = write(tmp_path / "whole", stops=False)
    writing.close()
    writing.writer.finish(KEYS)
    cache = EventCache.open(tmp_path / "whole")
    ids = cache.ids(cache.rows([name for name, _ in KEYS], 0))
    assert ids[:, 0].tolist() == [i % 3 for i in range(N)]
