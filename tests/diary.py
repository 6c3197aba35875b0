"""A diary of what each process reads, for tests of what happens to a command from outside; it also makes a tiny command last."""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class Diary(Callback):
    """Appends a line for each batch to ``FOLDER/FUNCTION/RANK.jsonl``: step, clips and views. A line is whole or is not there.

    Args:
        folder: Of the diaries.
        seconds: To wait before each batch.
    """

    def __init__(self, folder: str, seconds: float = 0.0) -> None:
        self.folder, self.seconds = Path(folder), seconds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._write(trainer, batch, batch_idx, trainer.global_step)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._write(trainer, batch, batch_idx, batch_idx)

    def _write(self, trainer: Trainer, batch: Any, batch_idx: int, step: int) -> None:
        path = self.folder / str(trainer.state.fn and trainer.state.fn.value) / f"{trainer.global_rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"step": step, "batch": batch_idx, "clips": batch.clips.tolist(), "views": batch.views.tolist()}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(self.seconds)


def entries(folder: Path, function: str = "fit") -> list[tuple[str, dict[str, Any]]]:
    """The rank and the content of every line."""
    paths = sorted((folder / function).glob("*.jsonl"))
    return [(path.stem, json.loads(line)) for path in paths for line in path.read_text().splitlines()]


def read(folder: Path) -> dict[tuple[str, int, int], set[str]]:
    """What each process has read for each step and batch: one thing, however often it was read."""
    found: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    for rank, line in entries(folder):
        found[rank, line["step"], line["batch"]].add(json.dumps([line["clips"], line["views"]]))
    return dict(found)


def last_step(folder: Path) -> int:
    """The number of the optimiser step that a training has begun last; -1 before the first one."""
    return max((line["step"] for _, line in entries(folder)), default=-1)
