"""Writes a table of probabilities into the run folder: per view after ``vtlvlm predict``, per clip after ``vtlvlm test``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray
from torch import Tensor

from vtlvlm.report.predictions import write_predictions


class PredictionTable(BasePredictionWriter):
    """Writes ``predictions.csv`` with clip, view, truth, recognised and the probability of each class. A test writes
    ``predictions_test.csv`` without views.

    Rows are in the order of the index. All processes send their rows to the first, which writes each clip once. A file appears
    when it is complete. An apostrophe before ``=``, ``+``, ``-`` and ``@`` makes a spreadsheet read names as text. Predictions that
    are not a table of probabilities (stage 1) are ignored.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of an evaluation that failed."""
        self._parts = []

    on_predict_start = on_test_start

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
        """Keep a batch's rows."""
        if isinstance(prediction, Tensor):
            self._add(batch.clips, batch.views, batch.labels, prediction)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a test batch's rows, if the test step returns ``clips`` (C,), ``labels`` (C,) and ``probs`` (C, A)."""
        if isinstance(outputs, Mapping) and "probs" in outputs:
            clips = outputs["clips"]
            self._add(clips, torch.zeros_like(clips), outputs["labels"], outputs["probs"])

    def _add(self, clips: Tensor, views: Tensor, labels: Tensor, probs: Tensor) -> None:
        self._parts.append(tuple(column.cpu().numpy() for column in (clips, views, labels, probs.float())))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer, "predictions", views=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer, "predictions_test", views=False)

    def _write(self, trainer: Trainer, name: str, views: bool) -> None:
        parts, self._parts = self._parts, []
        if trainer.world_size > 1:
            everyone: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(parts, everyone)
            parts = [part for rank in everyone or () for part in rank]
        if not parts:
            return
        clips, times, labels, probs = map(np.concatenate, zip(*parts, strict=True))
        places = np.unique(np.stack([clips, times], 1), axis=0, return_index=True)[1]
        data, classes = trainer.datamodule, trainer.datamodule.classes  # type: ignore[attr-defined]
        names, seen = zip(*data.keys(clips[places], times[places]), strict=True)
        path = Path(trainer.default_root_dir) / f"{name}.csv"
        write_predictions(path, names, labels[places], probs[places], classes, seen if views else None)
