"""Loggers of a run: curves for TensorBoard by stage, split and name; pictures and hyper-parameters for every kind of logger.

If TensorBoard's files cannot be written, the run continues without them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from vtlvlm.report.style import beside_the_result, png
from vtlvlm.system.files import replacing

PICTURED = (TensorBoardLogger, CSVLogger, WandbLogger, MLFlowLogger)
"""Loggers that take pictures"""
SPLITS = ("train", "val", "test")


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

    The run continues, and its results have files of their own. Curves are named ``stage/split/name``, such as ``stage2/val/top1``.

    Args:
        stage: First part of all names, such as ``stage2``; empty for none.
        settings: Those of Lightning's TensorBoardLogger.
    """

    given_up = False

    def __init__(self, *, stage: str = "", **settings: Any) -> None:
        super().__init__(**settings)
        self.stage = stage

    def tag(self, name: str) -> str:
        """The name of a curve or picture in TensorBoard."""
        return f"{self.stage}/{by_split(name)}" if self.stage else name

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

    def _log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        TensorBoardLogger.log_metrics(self, {self.tag(name): value for name, value in metrics.items()}, step)

    log_hyperparams = rank_zero_only(_kept_apart(TensorBoardLogger.log_hyperparams))
    log_metrics = rank_zero_only(_kept_apart(_log_metrics))
    log_graph = rank_zero_only(_kept_apart(TensorBoardLogger.log_graph))
    save = rank_zero_only(_kept_apart(TensorBoardLogger.save))
    finalize = rank_zero_only(_kept_apart(TensorBoardLogger.finalize))


def by_split(name: str) -> str:
    """A logged name with its split first: ``codebook/val_perplexity`` is ``val/codebook_perplexity``. Speed and learning rates are of the
    training."""
    first, _, rest = name.partition("/")
    if first in SPLITS:
        return name
    split, _, inner = rest.partition("_")
    if split in SPLITS:
        return f"{split}/{first}_{inner}"
    return f"train/{rest if first == 'speed' else name}"


def named_by_split(tag: str) -> str:
    """The name of a TensorBoard curve without its stage, also of runs whose curves had none."""
    first, _, rest = tag.partition("/")
    return rest if rest and first.startswith("stage") else by_split(tag)


def takes_pictures(loggers: Sequence[Any]) -> bool:
    """Whether any of the loggers takes pictures."""
    return any(isinstance(logger, PICTURED) and not getattr(logger, "given_up", False) for logger in loggers)


def add_picture(loggers: Sequence[Any], tag: str, figure: Figure, step: int) -> None:
    """Add a figure to every logger that takes pictures. A failure is a warning.

    TensorBoard, Weights & Biases and MLflow store it themselves. Beside the curves of a CSVLogger, it is a file ``pictures/TAG-STEP.png``.

    Args:
        loggers: The trainer's.
        tag: Name of the picture, with its split.
        figure: The picture.
        step: Optimiser step.
    """
    for logger in loggers:
        if not takes_pictures([logger]):
            continue
        with beside_the_result(f"the picture {tag} for {type(logger).__name__}"):
            if isinstance(logger, TensorBoardLogger):
                name = logger.tag(tag) if isinstance(logger, Curves) else tag
                logger.experiment.add_figure(name, figure, global_step=step, close=False)
            elif isinstance(logger, CSVLogger):
                _ = logger.experiment  # looks at the folder while it is empty
                place = Path(logger.log_dir) / "pictures" / f"{tag.replace('/', '-')}-{step}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                with replacing(place) as temporary:
                    temporary.write_bytes(png(figure, dpi=110))
            elif isinstance(logger, WandbLogger):
                logger.log_image(key=tag, images=[_as_image(figure)], step=step)
            else:
                logger.experiment.log_figure(logger.run_id, figure, f"{tag}-{step}.png")


def _as_image(figure: Figure) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png(figure, dpi=110)))


def begin_session(loggers: Sequence[Any], settings: Mapping[str, Any], columns: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Tell every logger the hyper-parameters of a run. A failure is a warning.

    TensorBoard's HPARAMS tab takes its columns from any one run, so all runs name the same ones.

    Args:
        loggers: The trainer's.
        settings: All settings of the run, in plain types.
        columns: Columns of the HPARAMS tab: the values of this run, in every run the same names and types. :class:`Absent` for a setting
            that the run does not have.
        metrics: Names of curves whose last values the tab shows.
    """
    for logger in loggers:
        with beside_the_result(f"the hyper-parameters for {type(logger).__name__}"):
            if isinstance(logger, TensorBoardLogger) and not getattr(logger, "given_up", False):
                _write_summaries(logger, columns, metrics)  # before Lightning's own: TensorBoard keeps the first
            logger.log_hyperparams(dict(settings))


def _write_summaries(logger: TensorBoardLogger, columns: Mapping[str, Any], metrics: Sequence[str]) -> None:
    from torch.utils.tensorboard.summary import hparams

    every = {name: value.missing if isinstance(value, Absent) else value for name, value in columns.items()}
    own = {name: value for name, value in columns.items() if not isinstance(value, Absent)}
    names = dict.fromkeys(metrics, 0.0)
    experiment, _, _ = hparams(every, names)
    _, start, _ = hparams(own, names)
    writer = logger.experiment._get_file_writer()
    writer.add_summary(experiment)
    writer.add_summary(start)


class Absent:
    """A column that a run has no value for.

    Args:
        missing: A value of the column's type.
    """

    def __init__(self, missing: float | str) -> None:
        self.missing = missing


def end_session(loggers: Sequence[Any]) -> None:
    """Mark a run as finished in TensorBoard's HPARAMS tab. A failure is a warning."""
    from torch.utils.tensorboard.summary import hparams

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and not getattr(logger, "given_up", False):
            with beside_the_result("the end of the run for TensorBoard"):
                _, _, end = hparams({}, {})
                logger.experiment._get_file_writer().add_summary(end)
                logger.experiment.flush()
