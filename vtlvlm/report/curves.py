"""A TensorBoard logger. If its files cannot be written, the run continues without them."""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from vtlvlm.report.style import beside_the_result


def _kept_apart(method: Any) -> Any:
    """Wrap a method of the logger: if its files cannot be written, it warns and the logger gives up."""

    @wraps(method)
    def careful(self: Curves, *arguments: Any, **named: Any) -> Any:
        if self.given_up:
            return None
        done = False
        with beside_the_result(f"TensorBoard's curves in {self.log_dir}"):
            found = method(self, *arguments, **named)
            done = True
        self.given_up = not done
        return found if done else None

    return careful


class Nowhere:
    """A writer that writes nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Curves(TensorBoardLogger):
    """A TensorBoard logger that survives write errors, such as a full disk. It warns once and then writes nothing.

    The run continues, and its results have files of their own.
    """

    given_up = False

    @property
    def log_dir(self) -> str:
        """The folder of the curves. As elsewhere in a run, shell variables in its name are not expanded."""
        return os.path.join(os.path.expanduser(self.save_dir or "."), str(self.name), str(self.version))  # noqa: PTH111, PTH118

    @property
    def experiment(self) -> Any:
        """The writer; a writer that does nothing if none can be created."""
        if not self.given_up:
            with beside_the_result(f"TensorBoard's curves in {self.log_dir}"):
                return super().experiment
        self.given_up = True
        return Nowhere()

    log_hyperparams = rank_zero_only(_kept_apart(TensorBoardLogger.log_hyperparams))
    log_metrics = rank_zero_only(_kept_apart(TensorBoardLogger.log_metrics))
    log_graph = rank_zero_only(_kept_apart(TensorBoardLogger.log_graph))
    save = rank_zero_only(_kept_apart(TensorBoardLogger.save))
    finalize = rank_zero_only(_kept_apart(TensorBoardLogger.finalize))


def add_picture(loggers: list[Any], tag: str, figure: Figure, step: int) -> None:
    """Add a figure to every TensorBoard logger. A failure is a warning."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and not getattr(logger, "given_up", False):
            with beside_the_result(f"TensorBoard's picture {tag}"):
                logger.experiment.add_figure(tag, figure, global_step=step, close=False)
