"""``vtlvlm predict``: the probabilities of every clip, as a table in the run folder."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor


class PredictionTable(BasePredictionWriter):
    """Writes ``predictions.csv``: clip, view, truth, recognised, and the probability of each class.

    One row for each clip and view; under several processes each writes ``predictions-rank.csv`` with its own clips. The file appears when
    it is complete. Predictions that are no table of probabilities (stage 1) are left alone.
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
        if not isinstance(prediction, Tensor):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        keys = data.keys(batch.clips.cpu(), batch.views.cpu())
        labels, best = batch.labels.tolist(), prediction.argmax(-1).tolist()
        for (name, view), label, found, row in zip(keys, labels, best, prediction.tolist(), strict=True):
            truth = data.classes[label] if label >= 0 else ""
            self._rows.append([name, view, truth, data.classes[found], *(f"{p:.6f}" for p in row)])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if not self._rows:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"predictions{suffix}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", "view", "truth", "recognised", *data.classes])
            writer.writerows(self._rows)
        partial.replace(path)
        self._rows = []
