"""Writes the confusion matrix of an evaluation as a file and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vtlvlm.callbacks.run_record import SPLITS
from vtlvlm.report.curves import add_picture, takes_pictures
from vtlvlm.report.runs import Confusion, write_confusion
from vtlvlm.report.style import beside_the_result


class ConfusionFigure(Callback):
    """Writes ``confusion_{split}.json`` into the run folder after ``test`` and ``validate``, and then a figure to the loggers.

    The figure comes after all results are on the disk. If it cannot be drawn, a warning says so. The callback reads
    ``pl_module.confusion``, a torchmetrics confusion matrix that the module updates in its steps, and ``pl_module.classes``. It ignores a
    module whose ``confusion`` is missing or None. It resets the matrix before each evaluation.
    """

    def __init__(self) -> None:
        self._found: Confusion | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the matrix."""
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
        """Draw the matrix."""
        found, self._found = self._found, None
        if found is None or not takes_pictures(trainer.loggers):
            return
        split = SPLITS[str(trainer.state.fn and trainer.state.fn.value)]
        with beside_the_result("the picture of the confusion matrix"):
            from vtlvlm.report.figures import confusion_figure

            figure = confusion_figure(found, title=f"Confusion matrix ({split})")
            add_picture(trainer.loggers, f"{split}/confusion", figure, trainer.global_step)

    on_validation_end = on_test_end
