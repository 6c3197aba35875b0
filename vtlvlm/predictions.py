"""The probabilities of every clip, as a table in the run folder: of ``vtlvlm predict``, view by view, and of ``vtlvlm test``."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor


class PredictionTable(BasePredictionWriter):
    """Writes ``predictions.csv``, with clip, view, truth, recognised and the probability of each class; a test ``predictions_test.csv``
    without views.

    Under several processes each writes a file with its own clips, ``predictions-rank.csv``. A file appears when it is complete.
    Predictions that are no table of probabilities (stage 1) are left alone.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self._rows: list[list[Any]] = []

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
            keys = _data(trainer).keys(batch.clips.cpu(), batch.views.cpu())
            self._add(trainer, [list(key) for key in keys], batch.labels, prediction)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a test batch's rows: of ``clips`` (C,), ``labels`` (C,) and ``probs`` (C, A), where the test step returns these."""
        if isinstance(outputs, Mapping) and "probs" in outputs:
            names = _data(trainer).clip_names(outputs["clips"].cpu())
            self._add(trainer, [[name] for name in names], outputs["labels"], outputs["probs"])

    def _add(self, trainer: Trainer, keys: list[list[Any]], labels: Tensor, probs: Tensor) -> None:
        classes = _data(trainer).classes
        for key, label, found, row in zip(keys, labels.tolist(), probs.argmax(-1).tolist(), probs.tolist(), strict=True):
            truth = classes[label] if label >= 0 else ""
            self._rows.append([*key, truth, classes[found], *(f"{p:.6f}" for p in row)])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer, "predictions", ["clip", "view"])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        self._write(trainer, "predictions_test", ["clip"])

    def _write(self, trainer: Trainer, name: str, keys: list[str]) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"{name}{suffix}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*keys, "truth", "recognised", *_data(trainer).classes])
            writer.writerows(rows)
        partial.replace(path)


def _data(trainer: Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]
