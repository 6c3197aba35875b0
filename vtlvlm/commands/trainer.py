"""fit, validate, test and predict: LightningCLI over the two stages and the data module."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from vtlvlm.callbacks.cache_writing import CacheWriting
from vtlvlm.callbacks.codebook_panel import CodebookPanel
from vtlvlm.callbacks.confusion import ConfusionFigure
from vtlvlm.callbacks.hyperparameters import TITLES, HyperParameters
from vtlvlm.callbacks.predictions import PredictionTable
from vtlvlm.callbacks.progress import StepProgress
from vtlvlm.callbacks.run_record import RunRecord
from vtlvlm.callbacks.stopping import StopOnSignal, StopWithCheckpoint
from vtlvlm.callbacks.throughput import Throughput
from vtlvlm.callbacks.validate_first import ValidateFirst  # noqa: F401 - so that configurations find it by its name
from vtlvlm.callbacks.validation_steps import ValidationSteps
from vtlvlm.commands import guard
from vtlvlm.commands.data_kinds import data_module, require_plain
from vtlvlm.data.cache import EventCache, FeatureCache
from vtlvlm.data.datamodule import NTUDataModule
from vtlvlm.data.hidden_cache import HiddenCache
from vtlvlm.errors import DataError, UsageError
from vtlvlm.lvlm.prefix import DeepPrompts
from vtlvlm.probes.beside import ProbeBeside
from vtlvlm.report.curves import Curves
from vtlvlm.stages.checkpoint_writing import CheckpointFiles, Restored, RunTrainer, run_checkpoints
from vtlvlm.stages.checkpoints import examine
from vtlvlm.stages.prompt_tuning import PromptTuningModule
from vtlvlm.stages.recognition import Recognition
from vtlvlm.stages.stage import Stage
from vtlvlm.stages.vtem import VTEMModule
from vtlvlm.system.disk import readable
from vtlvlm.system.files import write_text
from vtlvlm.system.seeds import require_seed

__all__ = ["CLI", "DeepPrompts", "NTUDataModule", "PromptTuningModule", "Recognition", "VTEMModule", "run"]  # bare in configurations


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration to ``config.yaml`` in the run folder when training begins. A refused training changes nothing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet: the training may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write_text(Path(trainer.default_root_dir) / "config.yaml", self.parser.dump(self.config, skip_none=False))


def bar(trainer: Any) -> list[Callback]:
    """Our progress bar, unless the configuration has another one or disables it."""
    wanted = trainer.get("enable_progress_bar") is not False
    return [StepProgress()] if wanted and not has(configured(trainer), ProgressBar) else []


def configured(trainer: Any) -> list[Callback]:
    """The configuration's callbacks. Lightning would replace them by the callbacks given in code."""
    callbacks = trainer.get("callbacks") or []
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def run_folder(trainer: Any) -> str:
    """The run folder; a default if the configuration names none."""
    return str(trainer.get("default_root_dir") or "runs/default")


def plugins(trainer: Any) -> list[Any]:
    """The configuration's plugins."""
    given = trainer.get("plugins") or []
    return list(given) if isinstance(given, list) else [given]


def has(callbacks: list[Callback], kind: type) -> bool:
    """Whether any of the callbacks is of this kind."""
    return any(isinstance(callback, kind) for callback in callbacks)


class Guarded(LightningCLI):
    """LightningCLI that reads checkpoints only after our checks, and reports errors in one line."""

    def _parse_ckpt_path(self) -> None:
        """Do nothing. Lightning would read the checkpoint here, and its settings would replace the configuration."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, and check the seed before it is set."""
        try:
            self.config = parser.parse_args(args)  # Lightning warns here: https://github.com/Lightning-AI/pytorch-lightning/issues/18545
        except (ArgumentError, ValueError) as error:
            if isinstance(mistake := guard.ours(error) or error, ArgumentError):
                raise
            raise mistake if isinstance(mistake, UsageError | DataError) else UsageError(f"--config: {guard.in_a_line(error)}") from error
        settings = self.config[self.config["subcommand"]] if self.config.get("subcommand") else self.config
        require_seed(settings.get("seed_everything"), "--seed_everything")

    def instantiate_classes(self) -> None:
        """Build the parts. Their own errors pass unchanged."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if (mistake := guard.ours(error)) is not None:
                raise mistake from error
            if isinstance(error, OSError | MemoryError):
                raise
            raise UsageError(f"{guard.in_a_line(error)} (as {type(error).__name__} from the configuration's parts)") from error


class CLI(Guarded):
    """LightningCLI with one run folder (``trainer.default_root_dir``). It checks a checkpoint before it builds anything."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand] if self.subcommand else self.config_init
        settings = config["trainer"]
        own, dry = configured(settings), bool(settings.get("fast_dev_run"))
        guard.require_settings(settings)
        root = run_folder(settings)
        if "://" in root:
            raise UsageError(f"--trainer.default_root_dir {root}: not a local folder; name a folder of this machine")
        kwargs.setdefault("default_root_dir", root)
        more: list[Callback] = [ValidationSteps()]
        if settings.get("logger") in (None, True) and not dry:
            kwargs.setdefault(
                "logger",
                Curves(stage=TITLES.get(self.model.stage, ""), save_dir=root, name="", version="tensorboard", default_hp_metric=False),
            )
            more += [] if has(own, LearningRateMonitor) else [LearningRateMonitor("step")]
        if found := guard.with_slurm(plugins(settings), os.environ, settings.get("devices"), settings.get("num_nodes")):
            kwargs["plugins"] = found
        if not dry:  # a dry run writes nothing
            more += [RunRecord(), Throughput(), PredictionTable(), HyperParameters()]
            more += [ConfusionFigure(), CodebookPanel()]  # results are written before figures are drawn
            if self.subcommand == "test" and isinstance(self.model, PromptTuningModule) and not has(own, ProbeBeside):
                more.append(ProbeBeside())
            if settings.get("enable_checkpointing") is not False:
                more += [*run_checkpoints(Path(root).expanduser(), self.model.monitor, self.model.monitor_mode), StopWithCheckpoint()]
            else:
                more.append(StopOnSignal())
        kwargs["callbacks"] = [*own, *kwargs.get("callbacks", []), Restored(), *more, *bar(settings)]
        trainer = super().instantiate_trainer(**kwargs)
        guard.require_float64(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFiles()
        return trainer

    def where(self, asked: Any, training: bool) -> str | None:
        """The checkpoint that ``--ckpt_path`` names in this run folder. The folder of another run is refused."""
        needed = getattr(self.model, "needs_checkpoint", True)
        return guard.checkpoint_for(None if asked is None else str(asked), Path(self.trainer.default_root_dir), training, needed)

    def start(self, given: dict[str, Any], training: bool) -> None:
        """Check the checkpoint to start from, before the models are loaded and before anything is written.

        Args:
            given: Arguments of Lightning's function. ``ckpt_path`` becomes a definite path.
            training: Whether the function is ``fit``.
        """
        if given.get("weights_only") is False:
            raise UsageError("--weights_only false: checkpoints are read without running code in them; leave it out")
        found = given["ckpt_path"] = self.where(given.get("ckpt_path"), training)
        folder = Path(self.trainer.default_root_dir)
        if training:
            guard.require_own_names(self.trainer, folder)
        if found is None:
            return guard.require_no_other_start(folder, self.trainer, training)
        record = examine(found, training)
        try:
            self.model.require_same_settings(record, found, training)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UsageError(f"{found}: not a readable checkpoint (its record: {guard.in_a_line(error)})") from error
        self.model.expect(record)

    def fit(self, **given: Any) -> None:
        """Train with the run folder locked."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.start(given, training=True)
            return self.call(self.trainer.fit, given)
        self.where(given.get("ckpt_path"), training=True)  # a refused start creates no folder
        with guard.alone(Path(self.trainer.default_root_dir)):
            self.start(given, training=True)
            self.call(self.trainer.fit, given)

    def validate(self, **given: Any) -> None:
        """Evaluate on the validation people."""
        self.start(given, training=False)
        self.call(self.trainer.validate, given)

    def test(self, **given: Any) -> None:
        """Evaluate on the test split."""
        self.start(given, training=False)
        self.call(self.trainer.test, given)

    def predict(self, **given: Any) -> None:
        """Write the probabilities of every clip."""
        self.start(given, training=False)
        self.call(self.trainer.predict, given)

    def call(self, function: Callable[..., Any], given: dict[str, Any]) -> None:
        """Call a function of the trainer. Its errors about settings and checkpoints become one line."""
        files = self.trainer.strategy.checkpoint_io
        try:
            with guard.lightning_in_a_line():
                function(**given)
        except (UsageError, DataError, OSError, MemoryError):
            raise
        except Exception as error:
            if not (isinstance(files, CheckpointFiles) and files.restoring):
                raise
            reason = f"{type(error).__name__}: {guard.in_a_line(error)}"
            raise UsageError(f"{given['ckpt_path']}: cannot be restored ({reason}); give another checkpoint") from error


class CachingCLI(Guarded):
    """Builds a configuration's parts for the commands that fill a cache with ``trainer.predict``. Writes no logs and no checkpoints."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str, required=True, help="folder of the cache; an unfinished one is continued")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="stage-1 checkpoint (tokenize): a file, or last or best for those of the run folder",
        )
        parser.add_argument("--verify", action="store_true", help="finally read the whole cache again and compare it with its digests")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        quietly = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        settings = self.config_init["trainer"]
        if found := guard.with_slurm(plugins(settings), os.environ, settings.get("devices"), settings.get("num_nodes")):
            kwargs["plugins"] = found
        return super().instantiate_trainer(**{**kwargs, **quietly, "callbacks": [*configured(settings), StopOnSignal(), *bar(settings)]})


class UntrainedCLI(Guarded):
    """Builds a configuration's stage and data module alone. A trainer would look for GPUs that this machine may lack."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make no trainer."""
        return None  # type: ignore[return-value]


# First words of log messages that Lightning has no setting to suppress.
NOISE = (
    "💡",  # advertisements: https://github.com/Lightning-AI/pytorch-lightning/pull/21430
    "GPU available",  # GPU and TPU, printed before the device is chosen: https://github.com/Lightning-AI/pytorch-lightning/pull/21457
    "TPU available",
    "Loading `train_dataloader`",  # https://github.com/Lightning-AI/pytorch-lightning/pull/11599
)
# Warnings about intended behaviour.
INTENDED = (
    # Frozen parts stay in eval mode. https://github.com/Lightning-AI/pytorch-lightning/pull/21146
    ".*module.s. in eval mode at the start of training",
    # Caches need no workers. Lightning recommends this filter: https://github.com/Lightning-AI/pytorch-lightning/pull/10215
    ".*does not have many workers",
    # The configuration has no validation. https://github.com/Lightning-AI/pytorch-lightning/issues/9785
    "Total length of `.*` across ranks is zero",
    # Lightning uses a deprecated function of torch. https://github.com/Lightning-AI/pytorch-lightning/issues/21326
    ".*isinstance.treespec, LeafSpec",
    # Our sampler continues within the epoch. https://github.com/Lightning-AI/pytorch-lightning/issues/18780
    "You're resuming from a checkpoint that ended before the epoch",
    # Our guard has checked Slurm's variables. SLURMEnvironment._validate_srun_used in lightning/fabric/plugins/environments/slurm.py
    "The `srun` command is available",
    # Our guard has checked the folder. ModelCheckpoint.__warn_if_dir_not_empty in lightning/pytorch/callbacks/model_checkpoint.py
    "Checkpoint directory .* exists and is not empty",
)


@contextmanager
def without_noise() -> Iterator[None]:
    """Hide Lightning's advertisements, and its warnings about intended behaviour."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def telling(message: logging.LogRecord) -> bool:
        return not message.getMessage().startswith(NOISE)

    log.addFilter(telling)
    try:
        with warnings.catch_warnings():
            for message in INTENDED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.removeFilter(telling)


def parts(name: str, arguments: Sequence[str], stage: type[Stage] = VTEMModule) -> CachingCLI:
    """The model, data module and trainer that a configuration of a stage describes, without running anything."""
    require_plain(name, arguments)
    with without_noise():
        return CachingCLI(
            stage,
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


def untrained(name: str, arguments: Sequence[str]) -> tuple[Stage, NTUDataModule]:
    """The stage and the data module that a configuration describes, without weights, data or a trainer.

    Args:
        name: The command, for the parser's messages.
        arguments: Its command line: ``--config FILE`` and settings.

    Raises:
        UsageError: The configuration is no configuration of a stage, or one of its parts refuses a setting.
    """
    require_plain(name, arguments)
    with without_noise():
        cli = UntrainedCLI(
            Stage,
            NTUDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": f"vtlvlm {name}", "exit_on_error": False},  # the command line says it in a line
            run=False,
            args=list(arguments),
        )
    return cli.model, cli.datamodule


def fill(cli: CachingCLI, module: LightningModule, writing: CacheWriting) -> int:
    """Predict and write the missing rows of a cache, and mark the cache complete. With ``--verify``, read all of it again.

    Args:
        cli: data module and trainer.
        module: predicts the rows of a batch.
        writing: the callback that writes them.
    """
    trainer: Any = cli.trainer
    trainer.callbacks.append(writing)
    try:
        with without_noise(), guard.lightning_in_a_line():
            trainer.predict(module, datamodule=cli.datamodule, return_predictions=False)
        writing.finish(trainer)
    finally:
        writing.close()
    if trainer.is_global_zero and cli.config["verify"]:
        folder, kind = writing.writer.folder, writing.writer.kind
        size = {cache.kind: cache for cache in (FeatureCache, EventCache, HiddenCache)}[kind].open(folder).verify()
        print(f"{folder}: {len(writing.wanted):,} clips and views, {readable(size)}, all digests match")
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run ``fit``, ``validate``, ``test`` or ``predict``."""

    class Asked(CLI):
        """Has only this subcommand: building the parser of each one takes a tenth of a second."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {name: kept for name, kept in LightningCLI.subcommands().items() if name == arguments[0]}

    with without_noise():
        Asked(
            Stage,
            **data_module(arguments),
            subclass_mode_model=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            auto_configure_optimizers=False,
            trainer_class=RunTrainer,
            parser_kwargs={"prog": "vtlvlm", "exit_on_error": False},  # the command line says it in a line
            args=list(arguments),
        )
    return 0
