"""fit, validate, test and predict: LightningCLI over the two stages and the data module."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from vtlvlm.callbacks import CacheWriting, ConfusionFigure, RunRecord, Throughput
from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.space import readable, require_space
from vtlvlm.errors import UsageError
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.panels import CodebookPanel
from vtlvlm.predictions import PredictionTable
from vtlvlm.progress import StepProgress
from vtlvlm.report.curves import Curves
from vtlvlm.report.runs import to_continue
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.stage import Stage, read_record
from vtlvlm.stages.vtem import VTEMModule

__all__ = ["CLI", "DeepPrompts", "NTUDataModule", "PromptTuningModule", "VTEMModule", "run"]  # configurations name these bare


NAME_BYTES = 100
"""What a row's name, view and identity take"""


class SaveConfig(SaveConfigCallback):
    """The resolved configuration, as ``config.yaml`` in the run folder."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)


def bar(trainer: Any) -> list[Callback]:
    """Our progress bar, unless the configuration wants none."""
    return [] if trainer.get("enable_progress_bar") is False else [StepProgress()]


def configured(trainer: Any) -> list[Callback]:
    """The configuration's own callbacks: Lightning lets those given in code replace them."""
    callbacks = trainer.get("callbacks") or []
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


class CLI(LightningCLI):
    """LightningCLI with the run folder in one place (``trainer.default_root_dir``) and checkpoints checked before anything is built."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand] if self.subcommand else self.config_init
        root = config["trainer"].get("default_root_dir") or "runs/default"
        kwargs.setdefault("default_root_dir", root)
        if config["trainer"].get("logger") in (None, True) and not config["trainer"].get("fast_dev_run"):
            kwargs.setdefault("logger", Curves(save_dir=root, name="", version="tensorboard", default_hp_metric=False))
            kwargs["callbacks"] = [*kwargs.get("callbacks", []), LearningRateMonitor("step")]
        kwargs["callbacks"] = [
            *configured(config["trainer"]),
            *kwargs.get("callbacks", []),
            RunRecord(),
            Throughput(),
            PredictionTable(),
            ConfusionFigure(),  # what draws comes after what writes results
            CodebookPanel(),
            *bar(config["trainer"]),
        ]
        return super().instantiate_trainer(**kwargs)

    def _asked(self, name: str) -> Any:
        return self.config[self.subcommand].get(name) if self.subcommand else self.config.get(name)

    def guard(self, training: bool) -> None:
        """Refuse a second start into a run folder, and a checkpoint that is not of this configuration, before the models are loaded."""
        asked = self._asked("ckpt_path")
        requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        left = to_continue(self.trainer.default_root_dir)
        if training and requeued and left is not None:
            rank_zero_info(f"started again by Slurm: goes on from {left}")
            asked = self.config_init[self.subcommand]["ckpt_path"] = str(left)
        elif training and asked is None and left is not None:
            raise UsageError(
                f"{self.trainer.default_root_dir} already holds a run: continue it with --ckpt_path {left}, "
                "or name another folder with --trainer.default_root_dir"
            )
        if asked is not None and asked not in ("last", "best", "hpc"):
            self.model.coming = read_record(asked)
            self.model.check(self.model.coming, str(asked), training)
        elif not training and asked is None and getattr(self.model, "needs_checkpoint", True):
            raise UsageError("no checkpoint given: add --ckpt_path RUN/checkpoints/best.ckpt")

    def before_fit(self) -> None:
        self.guard(training=True)

    def before_validate(self) -> None:
        self.guard(training=False)

    def before_test(self) -> None:
        self.guard(training=False)

    def before_predict(self) -> None:
        self.guard(training=False)


class CachingCLI(LightningCLI):
    """The parts of a configuration, for the commands that fill a cache with ``trainer.predict``: no logs, no checkpoints."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str, required=True, help="folder of the cache; an unfinished one is continued")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="stage-1 checkpoint (tokenize)")
        parser.add_argument("--verify", action="store_true", help="then read all of the cache again and compare it with its digests")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        quietly = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        callbacks = [*configured(self.config_init["trainer"]), *bar(self.config_init["trainer"])]
        return super().instantiate_trainer(**{**kwargs, **quietly, "callbacks": callbacks})


NOISE = ("💡", "GPU available", "TPU available", "The following callbacks returned", "Loading `train_dataloader`")


@contextmanager
def quiet() -> Iterator[None]:
    """Without advertisements, and without warnings about what is meant to be so."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def telling(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(NOISE)

    log.addFilter(telling)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # they are this command line's own
            warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training")  # the frozen ones
            warnings.filterwarnings("ignore", message=".*does not have many workers")  # caches need none
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # no validation was asked for
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
            warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")  # and goes on there
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # the guard has spoken
            yield
    finally:
        log.removeFilter(telling)


@contextmanager
def unwrapped() -> Iterator[None]:
    """A mistake that a part's constructor names, as it was raised: the parser makes a page about all types it tried of it."""
    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UsageError):
            cause = cause.__cause__
        if cause is None or cause is error:
            raise
        raise cause from None


def parts(name: str, arguments: Sequence[str]) -> CachingCLI:
    """The model, data module and trainer that a configuration describes, without running anything."""
    with quiet(), unwrapped():
        return CachingCLI(
            VTEMModule,
            NTUDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            auto_configure_optimizers=False,
            parser_kwargs={"prog": f"vtlvlm {name}", "exit_on_error": False},  # the command line says it in a line
            run=False,
            args=list(arguments),
        )


def fill(cli: CachingCLI, module: LightningModule, writing: type[CacheWriting], make: Callable[[int], Any], row_bytes: int) -> int:
    """Predict what the cache still lacks, write it, and declare the cache complete; with ``--verify``, read it all again.

    Args:
        cli: data module and trainer.
        module: predicts a batch's row of the cache.
        writing: the callback that hands predictions to a writer.
        make: opens the cache's writer for a rank; refuses a cache made with something else.
        row_bytes: what one clip and view takes on disk.
    """
    trainer: Any = cli.trainer
    data, rank, folder = cli.datamodule, trainer.global_rank, Path(cli.config["output"])
    data.trainer = trainer
    data.prepare_data()
    data.setup("predict")
    with make(rank) as writer:
        done = writer.done()
    wanted = data.predict_keys()
    left = [key for key in wanted if key not in done]
    room = require_space(folder, len(left) * (row_bytes + NAME_BYTES), f"{len(left):,} of {len(wanted):,} clips and views")
    if trainer.is_global_zero:
        print(room if left else f"{folder}: all {len(wanted):,} clips and views are there", flush=True)
    if left:
        data.skip(done)
        trainer.callbacks.append(writing(make))
        with quiet():
            trainer.predict(module, datamodule=data, return_predictions=False)
        trainer.strategy.barrier()
    if trainer.is_global_zero:
        with make(0) as writer:
            writer.finish(wanted)
            kind = writer.kind
        if cli.config["verify"]:
            size = {cache.kind: cache for cache in (FeatureCache, EventCache)}[kind].open(folder).verify()
            print(f"{folder}: {len(wanted):,} clips and views, {readable(size)}, all as they were written")
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run one of Lightning's subcommands."""
    with quiet(), unwrapped():
        CLI(
            Stage,
            NTUDataModule,
            subclass_mode_model=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "vtlvlm", "exit_on_error": False},  # the command line says it in a line
            args=list(arguments),
        )
    return 0
