"""Records a run in its folder: versions, time, memory, and the metrics of its evaluations."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from vtlvlm.report.provenance import device_of, environment, global_seed
from vtlvlm.report.runs import Run
from vtlvlm.system.files import write_json
from vtlvlm.system.text import shown

SPLITS = {"test": "test", "validate": "val"}
"""Function of the trainer -> the name of the split that it reads."""


class RunRecord(Callback):
    """Writes ``versions.json``, ``fit.json`` and ``metrics.json`` (``metrics_val.json`` after ``validate``) into the run folder.

    The run folder is the trainer's ``default_root_dir``. Only rank zero writes, and replaces files as a whole. ``fit.json`` is written with
    each checkpoint, so a killed training loses only the record of the time since the last checkpoint. The GPU memory is that of the process
    that needed most.
    """

    def __init__(self) -> None:
        self._environment: dict[str, Any] = {}
        self._clips = 0
        self._started = self._mark = 0.0
        self._first_step = 0
        self._durations: list[float] = []
        self._earlier: list[dict[str, Any]] = []
        self._gpu_bytes: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``versions.json`` if there is none. A test keeps the file of the training; its own versions are in ``metrics.json``."""
        if trainer.is_global_zero:
            self._environment = environment(global_seed(), Path.cwd())
            path = Path(trainer.default_root_dir) / "versions.json"
            if stage != "fit" and not path.exists():
                write_json(path, self._environment)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and write ``versions.json`` of the training, which can no longer be refused."""
        self._begin(trainer)
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir) / "versions.json", self._environment)

    def _begin(self, trainer: Trainer) -> None:
        self._started = self._mark = time.perf_counter()
        self._first_step, self._durations = trainer.global_step, []
        self._gpu_bytes = None
        reset_gpu_peak(trainer)
        fit = Run(Path(trainer.default_root_dir)).fit if self._first_step and trainer.is_global_zero else None
        self._earlier = [] if fit is None else fit.sessions  # the sessions that a resumed training continues

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the cost of training so far."""
        if trainer.state.fn == "fit" and self._started:
            self._gpu_bytes = peak_gpu(trainer)
            self._write_fit(trainer, pl_module, finished=False)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the duration of an optimiser step, from the end of the previous one."""
        if trainer.global_step > self._first_step + len(self._durations):
            now = time.perf_counter()
            self._durations.append(now - self._mark)
            self._mark = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude validation from the duration of the next step. After ``validate``, write ``metrics_val.json``."""
        self._mark = time.perf_counter()
        self._write_metrics(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``fit.json``."""
        peak = peak_gpu(trainer)  # all processes together, also if the first one has nothing to write
        if not self._started:  # resumed at its last step, so no step was run
            fit = Run(Path(trainer.default_root_dir)).fit
            if fit is not None and fit.finished and fit.steps == trainer.global_step:
                return
            self._begin(trainer)
        self._gpu_bytes = peak
        self._write_fit(trainer, pl_module, finished=True)
        self._started = 0.0

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record the cost of an interrupted training, and why it ended. The GPU memory is that of the last checkpoint: other processes may
        have stopped."""
        if trainer.state.fn == "fit" and self._started:
            with suppress(OSError):  # a full disk, which the exception reports
                self._write_fit(trainer, pl_module, finished=False, error=shown(exception, 600) or type(exception).__name__)
            self._started = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count clips from zero, and measure the memory of an evaluation alone."""
        self._clips = 0
        if trainer.state.fn != "fit":
            reset_gpu_peak(trainer)

    on_validation_start = on_test_start

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the evaluated clips. The views of a clip are adjacent rows and count once."""
        self._clips += len(torch.unique_consecutive(batch.clips))

    on_validation_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``metrics.json``."""
        self._write_metrics(trainer, pl_module)

    def _write_fit(self, trainer: Trainer, pl_module: LightningModule, finished: bool, error: str | None = None) -> None:
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "fit.json"
        session = {
            "first_step": self._first_step,
            "last_step": trainer.global_step,
            "epochs": trainer.current_epoch,
            "wall_seconds": time.perf_counter() - self._started,
            "finished": finished,
            **({} if error is None else {"error": error}),
        }
        sessions = [*self._earlier, session]
        parameters = list(pl_module.parameters())
        content = {
            "steps": trainer.global_step,
            "wall_seconds": sum(s["wall_seconds"] for s in sessions),
            "seconds_per_step": statistics.median(self._durations) if self._durations else None,
            "peak_rss_bytes": peak_rss(),
            "peak_gpu_bytes": self._gpu_bytes,
            "device": device_of(trainer.strategy.root_device.type, trainer.world_size),
            "parameters": sum(p.numel() for p in parameters),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "sessions": sessions,
        }
        write_json(path, content)

    def _write_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        split = SPLITS.get(str(trainer.state.fn and trainer.state.fn.value))
        if split is None:
            return
        clips = torch.tensor(self._clips, device=pl_module.device)
        num_clips = int(trainer.strategy.reduce(clips, reduce_op="sum"))
        gpu_bytes = peak_gpu(trainer)
        if not trainer.is_global_zero:
            return
        data: Any = getattr(trainer, "datamodule", None)
        described = dict(getattr(data, "split_description", {}))
        module: Any = pl_module
        provenance = dict(module.provenance()) if hasattr(module, "provenance") else {}
        content = {
            "protocol": described.get("protocol"),
            "split": split,
            "num_clips": num_clips,
            "views_per_clip": len(getattr(data, "test_views", (0,))) if split == "test" else 1,
            "seed": global_seed(),
            "peak_gpu_bytes": gpu_bytes,
            "device": device_of(trainer.strategy.root_device.type, trainer.world_size),
            "metrics": {
                name.removeprefix(f"{split}/"): number if math.isfinite(number := float(value)) else None
                for name, value in trainer.callback_metrics.items()
                if name.startswith(f"{split}/")
            },
            "provenance": {
                **provenance,
                "split": described,
                "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
                "environment": self._environment,
            },
        }
        write_json(Path(trainer.default_root_dir) / ("metrics.json" if split == "test" else "metrics_val.json"), content)


def peak_rss() -> int:
    """The peak resident memory of this process so far, in bytes, without its data workers."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_gpu_peak(trainer: Trainer) -> None:
    """Measure the GPU memory of this process anew from here on."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gpu(trainer: Trainer) -> int | None:
    """The peak bytes of tensors on the GPU of the process that needed most, since :func:`reset_gpu_peak`; None on a CPU.

    All processes call this together.
    """
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    return int(trainer.strategy.reduce(torch.tensor(torch.cuda.max_memory_allocated(device), device=device), reduce_op="max"))
