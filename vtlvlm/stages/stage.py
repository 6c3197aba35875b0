"""Base class of both stages: plain settings in checkpoints, checks of checkpoints before they are used, AdamW with warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torchmetrics import MeanMetric

from vtlvlm import __version__
from vtlvlm.errors import UsageError
from vtlvlm.stages.checkpoint_writing import RunCheckpoint, is_default, run_checkpoints
from vtlvlm.stages.checkpoints import RECORD, harmless, load_checkpoint
from vtlvlm.stages.compatibility import require_numbers
from vtlvlm.stages.nan_guard import StopOnNonFinite
from vtlvlm.stages.optimizers import cosine
from vtlvlm.stages.parts import build_from, flat, is_part, settings_of, with_defaults
from vtlvlm.stages.resume import adjust_loop_counters
from vtlvlm.system.renamed import present_name


@dataclass
class AdamW:
    """AdamW with linear warm-up and cosine decay to zero over the run.

    Attributes:
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay.
        warmup_steps: number of optimiser steps in which the rate rises linearly from zero.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 0

    def factor(self, step: int, total: int) -> float:
        """Fraction of the peak rate at a step in [0, total)."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return cosine(step, self.warmup_steps, total)


class Start(Enum):
    """Origin of a stage's weights, in ``Stage.start``. Stage 2 measures projector and prior only for ``FRESH``."""

    FRESH = "fresh"
    """From the settings."""
    RESUMED = "resumed"
    """From a checkpoint that the trainer loads after ``setup``; ``Stage.expect`` has its record."""
    LOADED = "loaded"
    """From a checkpoint that has been loaded."""


class Stage(LightningModule):
    """A stage of the pipeline. Its constructor takes typed parts; its checkpoints record their settings."""

    stage: ClassVar[str] = ""
    monitor: str = ""
    """The validation figure that chooses the best checkpoint"""
    monitor_mode: ClassVar[str] = "min"
    whole_batch: ClassVar[bool] = False
    """Whether a training step takes the process's whole share of the batch, and not a part of it"""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.ModuleDict()  # of the values that evaluations log
        self._terms: list[tuple[dict[str, Tensor], int]] = []  # of the present optimiser step, with clips
        self.start = Start.FRESH
        self.pending_record: dict[str, Any] | None = None  # of the checkpoint that the trainer will load
        self.strict_loading = False  # checkpoints omit frozen models; on_load_checkpoint checks the rest

    @property
    def data(self) -> Any:
        """The trainer's data module."""
        trainer: Any = self.trainer
        return trainer.datamodule

    # -- checkpoints -------------------------------------------------------------------------------------------------------------

    def provenance(self) -> dict[str, Any]:
        """Origin of the trained weights in plain types, for checkpoints and metrics."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[RECORD] = {
            "stage": self.stage,
            "settings": settings_of(self),
            "provenance": self.provenance(),
            "version": __version__,
        }

    def require_same_settings(self, record: dict[str, Any], path: str, training: bool) -> None:
        """Refuse a checkpoint of other settings.

        Args:
            record: the checkpoint's record.
            path: its name, for the message.
            training: whether training continues from it; the optimiser's settings then count too.

        Raises:
            UsageError: settings differ; names the first differences, old and new.
        """
        if record["stage"] != self.stage:
            raise UsageError(
                f"{path} is a checkpoint of stage {record['stage']!r}, this configuration is stage {self.stage!r}: give the other one"
            )
        old, new = dict(flat(with_defaults(record["settings"]))), dict(flat(settings_of(self)))
        different = [k for k in {**old, **new} if old.get(k) != new.get(k) and not self._may_differ(k, training)]
        gone = (part for k in different if k not in new for part in k.split(".") if present_name(part) is not None)
        if (renamed := next(gone, None)) is not None:
            raise UsageError(f"{path} was made by an older version: {renamed} is called {present_name(renamed)} now; train anew")
        if different:
            listed = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} asked for" for k in different[:4])
            raise UsageError(f"{path} was made with other settings ({listed}): change the configuration, or train anew without --ckpt_path")

    training_only: ClassVar[tuple[str, ...]] = ("optimizer",)
    """Settings that only training needs"""
    machine_only: ClassVar[tuple[str, ...]] = ()
    """Settings, by dotted name, that change how a trained model is computed but not its result"""
    compared_elsewhere: ClassVar[tuple[str, ...]] = ()
    """Settings that are paths or names, which :meth:`require_same_settings` compares by content hash; or that only set where training
    starts"""

    def _may_differ(self, name: str, training: bool) -> bool:
        free = not training and (name.split(".")[0] in self.training_only or name in self.machine_only)
        return free or name in self.compared_elsewhere

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if RECORD not in checkpoint:
            raise UsageError("not a checkpoint of vtlvlm; give one that `vtlvlm fit` wrote")
        harmless(checkpoint)
        training = self._trainer is not None and self.trainer.training
        self.require_same_settings(checkpoint[RECORD], "the checkpoint", training)
        begun = checkpoint.get(type(self.data).__qualname__) if training else None  # the data module's state, which is loaded next
        if begun is not None:
            adjust_loop_counters(checkpoint["loops"]["fit_loop"], **begun, now=self.data.global_micro_batch)
        if "state_dict" not in checkpoint:  # ModelParallelStrategy has already loaded and removed the weights
            self.start = Start.LOADED
            return
        mine, held = self.state_dict(), checkpoint["state_dict"]
        missing = sorted(set(mine) - set(held))
        if missing:
            raise UsageError(f"the checkpoint lacks {len(missing)} tensors of this model, the first being {missing[0]}")
        for name, tensor in mine.items():
            if not isinstance(held[name], Tensor) or held[name].shape != tensor.shape:
                raise UsageError(
                    f"the checkpoint's {name} is {list(getattr(held[name], 'shape', ()))}, this model's {list(tensor.shape)}: "
                    "give the checkpoint of this configuration"
                )
        require_numbers(held, mine, "the checkpoint")
        self.start = Start.LOADED

    def expect(self, record: dict[str, Any]) -> None:
        """Announce the checkpoint that the trainer will load after ``setup``, by its record."""
        self.start, self.pending_record = Start.RESUMED, record

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = "cpu", *, overrides: dict[str, Any] | None = None
    ) -> Self:
        """Build a trained stage from its checkpoint, in eval mode.

        Args:
            checkpoint_path: the file.
            map_location: its device.
            overrides: settings to replace, by dotted name, such as ``{"reasoner.llava.path": "folder"}`` if a base model has moved.

        Raises:
            UsageError: the file is not a checkpoint of this stage.
        """
        checkpoint = load_checkpoint(checkpoint_path)
        record = checkpoint[RECORD]
        if record["stage"] != cls.stage:
            raise UsageError(f"{checkpoint_path} is a checkpoint of stage {record['stage']!r}, not {cls.stage!r}: give the other one")
        for name, value in (overrides or {}).items():
            *path, last = name.split(".")
            place = record["settings"]["init_args"]
            for part in path:
                if not is_part(place.get(part)):
                    raise UsageError(f"{checkpoint_path}: its settings have no {part}; get the file again, or make it again")
                place = place[part]["init_args"]
            place[last] = value
        module = build_from(record["settings"], cls, checkpoint_path)
        module.require_fit({name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}, checkpoint_path)
        module.adopt(checkpoint, checkpoint_path)
        return module.to(map_location).eval()

    def adopt(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Load a checkpoint that was made with these settings, and switch to eval mode.

        Args:
            checkpoint: from :func:`load_checkpoint`.
            path: the file, for the message.

        Raises:
            UsageError: the weights do not fit the settings.
        """
        self.start = Start.LOADED
        self.restore(checkpoint[RECORD]["provenance"])
        self.take(checkpoint["state_dict"], path)
        self.eval()

    def take(self, state: dict[str, Tensor], path: str | Path) -> None:
        """Load a checkpoint's weights. Frozen weights that come from another file may be missing.

        Raises:
            UsageError: Weights are missing or have other shapes.
        """
        own = self.state_dict()
        fault = next((f"{name} is missing" for name in sorted(own) if name not in state), None) or next(
            (
                f"{name} is {tuple(state[name].shape)} there and {tuple(tensor.shape)} by its settings"
                for name, tensor in own.items()
                if state[name].shape != tensor.shape
            ),
            None,
        )
        if fault is not None:
            raise UsageError(f"{path}: its weights do not fit its settings ({fault}); get the file again, or make it again")
        require_numbers(state, own, path)
        try:
            self.load_state_dict(state, strict=False)
        except RuntimeError as error:  # about tensors that checkpoints do not hold
            raise UsageError(f"{path}: its weights do not fit its settings; get the file again, or make it again") from error

    def require_fit(self, shapes: dict[str, torch.Size], path: str | Path) -> None:
        """Refuse weights that do not fit the settings, before memory is taken for them.

        Args:
            shapes: Shapes of the checkpoint's tensors, by name.
            path: The checkpoint, for the message.

        Raises:
            UsageError: Names one that does not fit.
        """

    def restore(self, provenance: dict[str, Any]) -> None:
        """Build the modules for a checkpoint with this provenance."""
        raise NotImplementedError

    # -- training ----------------------------------------------------------------------------------------------------------------

    def training_batches(self) -> Iterator[Any]:
        """This rank's training batches on its device, one pass for each view of the clips; for values that are fitted before training."""
        loader = self.data.train_dataloader()
        for epoch in range(self.data.num_views):  # each pass draws one view of every clip
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                yield self.trainer.strategy.batch_to_device(batch, self.device)

    def of_all_ranks(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, concatenated in the order of ranks. Ranks may have different numbers of rows."""
        if self.trainer.world_size == 1:
            return rows
        counts = torch.zeros(self.trainer.world_size, dtype=torch.int64, device=rows.device)
        counts[self.global_rank] = len(rows)
        torch.distributed.all_reduce(counts)
        missing = int(counts.max()) - len(rows)
        padded = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows.contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])

    def adamw(self, groups: list[dict[str, Any]], settings: AdamW) -> Any:
        """Optimiser and schedule for parameter groups, each with its own ``lr``."""
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Stops at the first NaN, and writes the run's two checkpoints unless the command line has added them. They replace Lightning's
        default checkpoint callback; the user's own callbacks stay."""
        trainer: Any = self.trainer
        found = trainer.checkpoint_callbacks
        if trainer.fast_dev_run or not found or any(isinstance(callback, RunCheckpoint) for callback in found):
            return [StopOnNonFinite()]
        own = [] if len(found) == 1 and is_default(found[0]) else found  # else Lightning would replace them with ours, of the same class
        return [StopOnNonFinite(), *run_checkpoints(trainer.default_root_dir, self.monitor, self.monitor_mode), *own]

    def log_terms(self, split: str, terms: dict[str, Tensor], batch_size: int) -> None:
        """Log named scalars of a step under ``split/``; only the loss enters the progress bar.

        In training these are means over the clips of an optimiser step on all processes, logged every ``log_every_n_steps`` steps. In
        evaluation they are means over clips, exact if ranks have different numbers of clips (Lightning's ``sync_dist`` averages the numbers
        of clips as integers).
        """
        if split == "train":
            if self._logs_this_step():
                self._terms.append(({name: value.detach() for name, value in terms.items()}, batch_size))
            return
        for name, value in terms.items():
            key = f"{split}/{name}"
            mean = self.means[key] if key in self.means else MeanMetric().to(self.device)
            assert isinstance(mean, MeanMetric)
            mean.update(value.detach(), weight=batch_size)
            self.means[key] = mean
            self.log(key, mean, metric_attribute=f"means.{key}", prog_bar=name == "loss", batch_size=batch_size)

    def _logs_this_step(self) -> bool:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Log the step's terms."""
        parts, self._terms = self._terms, []
        if not parts:
            return
        clips = sum(count for _, count in parts)
        names = list(parts[0][0])
        means = sum(torch.stack([terms[name].float() for name in names]) * (count / clips) for terms, count in parts)
        assert isinstance(means, Tensor)
        if self.trainer.world_size > 1:  # every process has the same number of clips
            torch.distributed.all_reduce(means)
            means = means / self.trainer.world_size
        for name, value in zip(names, means.unbind(), strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss", on_step=True, on_epoch=False)
