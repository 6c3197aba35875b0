"""Lightning callbacks: what a run leaves in its folder, the curves of its speed, its confusion matrix, and the writing of caches."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from vtlvlm.batches import EventTokens, FeatureBatch
from vtlvlm.report.curves import add_picture
from vtlvlm.report.provenance import environment, global_seed
from vtlvlm.report.runs import Confusion, Run, write_confusion
from vtlvlm.report.style import beside_the_result
from vtlvlm.system.files import write_json

SPLITS = {"test": "test", "validate": "val"}
"""What a trainer does -> the name of the split it reads."""


class RunRecord(Callback):
    """Writes ``versions.json``, ``fit.json`` and ``metrics.json`` (``metrics_val.json`` after ``validate``) into the run folder.

    The run folder is the trainer's ``default_root_dir``. Files are replaced whole, by rank zero alone. ``fit.json`` is written with each
    checkpoint, so that a kill loses the time since the last one.
    """

    def __init__(self) -> None:
        self._environment: dict[str, Any] = {}
        self._clips = 0
        self._started = self._mark = 0.0
        self._first_step = 0
        self._durations: list[float] = []
        self._earlier: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``versions.json`` if there is none: a test leaves that of the training as it is (its own is in ``metrics.json``)."""
        if trainer.is_global_zero:
            self._environment = environment(global_seed(), Path.cwd())
            path = Path(trainer.default_root_dir) / "versions.json"
            if stage != "fit" and not path.exists():
                write_json(path, self._environment)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; write ``versions.json`` of the training, which nothing has refused by now."""
        self._begin(trainer)
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir) / "versions.json", self._environment)

    def _begin(self, trainer: Trainer) -> None:
        self._started = self._mark = time.perf_counter()
        self._first_step, self._durations = trainer.global_step, []
        fit = Run(Path(trainer.default_root_dir)).fit if self._first_step and trainer.is_global_zero else None
        self._earlier = [] if fit is None else fit.sessions  # those that a resumed training continues

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write what training has cost so far."""
        if trainer.state.fn == "fit" and self._started:
            self._write_fit(trainer, pl_module, finished=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note how long an optimiser step took, from the end of the one before."""
        if trainer.global_step > self._first_step + len(self._durations):
            now = time.perf_counter()
            self._durations.append(now - self._mark)
            self._mark = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take validation out of the step that follows it; after ``validate``, write ``metrics_val.json``."""
        self._mark = time.perf_counter()
        self._write_metrics(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``fit.json``."""
        if not self._started:  # continued at its last step: there was nothing to do
            fit = Run(Path(trainer.default_root_dir)).fit
            if fit is not None and fit.finished and fit.steps == trainer.global_step:
                return
            self._begin(trainer)
        self._write_fit(trainer, pl_module, finished=True)
        self._started = 0.0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted training has its cost recorded too."""
        if trainer.state.fn == "fit" and self._started:
            with suppress(OSError):  # a full disk, which the exception tells of
                self._write_fit(trainer, pl_module, finished=False)
            self._started = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count clips from zero."""
        self._clips = 0

    on_validation_start = on_test_start

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the clips that were evaluated; a clip's views stand side by side and count once."""
        self._clips += len(torch.unique_consecutive(batch.clips))

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``metrics.json``."""
        self._write_metrics(trainer, pl_module)

    def _write_fit(self, trainer: Trainer, pl_module: LightningModule, finished: bool) -> None:
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "fit.json"
        session = {
            "first_step": self._first_step,
            "last_step": trainer.global_step,
            "epochs": trainer.current_epoch,
            "wall_seconds": time.perf_counter() - self._started,
            "finished": finished,
        }
        sessions = [*self._earlier, session]
        parameters = list(pl_module.parameters())
        content = {
            "steps": trainer.global_step,
            "wall_seconds": sum(s["wall_seconds"] for s in sessions),
            "seconds_per_step": statistics.median(self._durations) if self._durations else None,
            "peak_rss_bytes": peak_rss(),
            "parameters": sum(p.numel() for p in parameters),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "sessions": sessions,
        }
        write_json(path, content)

    def _write_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        split = SPLITS.get(str(trainer.state.fn and trainer.state.fn.value))
        if split is None:
            return
        clips = torch.tensor(self._clips, device=pl_module.device)
        num_clips = int(trainer.strategy.reduce(clips, reduce_op="sum"))
        if not trainer.is_global_zero:
            return
        data: Any = getattr(trainer, "datamodule", None)
        described = dict(getattr(data, "split_description", {}))
        module: Any = pl_module
        provenance = dict(module.provenance()) if hasattr(module, "provenance") else {}
        content = {
            "protocol": described.get("protocol"),
            "split": split,
            "num_clips": num_clips,
            "views_per_clip": len(getattr(data, "test_views", (0,))) if split == "test" else 1,
            "seed": global_seed(),
            "metrics": {
                name.removeprefix(f"{split}/"): number if math.isfinite(number := float(value)) else None
                for name, value in trainer.callback_metrics.items()
                if name.startswith(f"{split}/")
            },
            "provenance": {
                **provenance,
                "split": described,
                "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
                "environment": self._environment,
            },
        }
        write_json(Path(trainer.default_root_dir) / ("metrics.json" if split == "test" else "metrics_val.json"), content)


class Throughput(Callback):
    """Logs speed over the optimiser steps since the last log, every ``log_every_n_steps`` of the trainer.

    Curves: ``speed/clips_per_second`` (all processes together), ``speed/seconds_per_step`` (validation left out), and
    ``speed/data_wait_share``, the share of that time spent waiting for the data loader, in [0, 1].
    """

    def __init__(self) -> None:
        self._batch_end = self._elapsed = self._waited = 0.0
        self._clips = self._logged_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._logged_step = trainer.global_step
        self._elapsed = self._waited = 0.0
        self._clips = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch of an epoch is waited for from here."""
        self._batch_end = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out."""
        self._batch_end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The time since the last batch was spent waiting for this one."""
        waited = time.perf_counter() - self._batch_end
        self._waited += waited
        self._elapsed += waited
        self._batch_end += waited

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up, and log when it is time."""
        now = time.perf_counter()
        self._elapsed += now - self._batch_end
        self._batch_end = now
        self._clips += len(batch.labels)
        steps = trainer.global_step - self._logged_step
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if steps and trainer.global_step % every == 0:
            speed = {
                "speed/clips_per_second": self._clips * trainer.world_size / self._elapsed,
                "speed/seconds_per_step": self._elapsed / steps,
                "speed/data_wait_share": self._waited / self._elapsed,
            }
            for logger in trainer.loggers:
                logger.log_metrics(speed, step=trainer.global_step - 1)  # Lightning counts the steps of curves from zero
            self.on_train_start(trainer, pl_module)


class ValidateFirst(Callback):
    """Validates before the first step too, so that the model as it starts can be the best one: where clips are few, training may only take
    away from a start in closed form (``EventReasoner.align_projector``). Does nothing without validation clips, or where a run goes on."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step or not trainer.enable_validation:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback._last_global_step_saved = -1  # else it takes the start for saved
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


class ConfusionFigure(Callback):
    """After ``test`` and ``validate``: ``confusion_{split}.json`` in the run folder and, once all results are on the disk, a figure in
    TensorBoard; a figure that cannot be drawn is a warning.

    Reads ``pl_module.confusion``, a torchmetrics confusion matrix that the module updates in its steps, and ``pl_module.classes``. A module
    whose ``confusion`` is missing or None is left alone. The matrix is emptied before each evaluation.
    """

    def __init__(self) -> None:
        self._found: Confusion | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Empty the matrix."""
        self._found = None
        metric: Any = getattr(pl_module, "confusion", None)
        if metric is not None:
            metric.reset()

    on_validation_epoch_start = on_test_epoch_start

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the matrix over all processes and write it."""
        split = SPLITS.get(str(trainer.state.fn and trainer.state.fn.value))
        metric: Any = getattr(pl_module, "confusion", None)
        if split is None or metric is None:
            return
        matrix = metric.compute().cpu().numpy()
        if trainer.is_global_zero:
            self._found = Confusion(matrix, tuple(pl_module.classes))  # type: ignore[arg-type]
            write_confusion(Path(trainer.default_root_dir) / f"confusion_{split}.json", self._found)

    on_validation_epoch_end = on_test_epoch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw it."""
        found, self._found = self._found, None
        if found is None or not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            return
        split = SPLITS[str(trainer.state.fn and trainer.state.fn.value)]
        with beside_the_result("the picture of the confusion matrix"):
            from vtlvlm.report.figures import confusion_figure

            figure = confusion_figure(found, title=f"Confusion matrix ({split})")
            add_picture(trainer.loggers, f"{split}/confusion", figure, trainer.global_step)

    on_validation_end = on_test_end


class CacheWriting(BasePredictionWriter):
    """Base of the callbacks that turn ``trainer.predict`` into a cache, batch by batch; each process writes shards of its own.

    Args:
        writer: This process's cache writer, already open: what is left to do was determined while no other process could write.
    """

    def __init__(self, writer: Any) -> None:
        super().__init__("batch")
        self.writer = writer

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand a batch to the writer under its clips' names and content identities."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        clips = batch.clips.cpu()
        self.writer.add(data.keys(clips, batch.views.cpu()), *self.columns(prediction), identities=data.identities(clips))

    def columns(self, prediction: Any) -> tuple[Tensor, ...]:
        """What the writer's ``add`` takes between keys and identities."""
        raise NotImplementedError

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the rest."""
        self.writer.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the clips that are done: the next run continues after them."""
        self.writer.flush()


class FeatureWriter(CacheWriting):
    """Writes predicted ``FeatureBatch`` es with a ``FeatureCacheWriter``."""

    def columns(self, prediction: FeatureBatch) -> tuple[Tensor, ...]:
        """Features and times."""
        return prediction.features, prediction.times


class EventWriter(CacheWriting):
    """Writes predicted ``EventTokens`` with an ``EventCacheWriter``."""

    def columns(self, prediction: EventTokens) -> tuple[Tensor, ...]:
        """Code numbers, vectors and spans."""
        return prediction.ids, prediction.vectors, prediction.spans


def peak_rss() -> int:
    """The largest resident memory of this process so far, in bytes (its data workers not counted)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
