"""What a job costs on a GPU: seconds, memory, floating-point operations and waits of the host. And the two sizes of ``bench gpu``."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from vtlvlm.bench.harness import Measurement


class Cost(NamedTuple):
    """One run of a job; ``peak_bytes`` is None on a CPU."""

    seconds: float
    peak_bytes: int | None

    @property
    def memory(self) -> str:
        """The peak memory, for a note."""
        return "" if self.peak_bytes is None else f"{self.peak_bytes / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Gpu:
    """A GPU, or the CPU for small models."""

    device: torch.device

    @property
    def real(self) -> bool:
        return self.device.type == "cuda"

    def mixed(self) -> torch.autocast:
        """The autocast of ``precision: bf16-mixed``; none on a CPU."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.real)

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.real:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Free the GPU's memory of what was dropped."""
        if self.real:
            gc.collect()
            torch.cuda.empty_cache()

    def cost(self, job: Callable[[], object], repeats: int = 3, warm: int = 1) -> Cost:
        """Median wall time of a job, and the peak of all memory on the device.

        Args:
            job: Runs on the device.
            repeats: Measured runs.
            warm: Runs before them.
        """
        for _ in range(warm):
            job()
        self.wait()
        if self.real:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            job()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return Cost(statistics.median(seconds), torch.cuda.max_memory_allocated() if self.real else None)

    def waits(self, job: Callable[[], object]) -> list[str] | None:
        """File and line of each wait of the host for the device during a job; None on a CPU."""
        if not self.real:
            return None
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                job()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return [f"{Path(warning.filename).name}:{warning.lineno}" for warning in seen if "called a synchronizing" in str(warning.message)]


def flops(job: Callable[[], object]) -> int:
    """Floating-point operations of products and attention in a job, with those that a backward pass computes again."""
    with FlopCounterMode(display=False) as counting:
        job()
    return int(counting.get_total_flops())


@dataclass(frozen=True)
class Sizes:
    """The sizes of both stages.

    Attributes:
        clips: Clips of a stage-1 step; each number is measured.
        start_clips: Clips from which the statistics and the codebook start.
        steps: Feature steps of a clip.
        grid: Cells on each side of a feature step.
        windows: W, windows of a clip.
        event_dim: E, width of an event vector.
        codes: K.
        backbone: A name of torchvision.
        frames: Sampled frames of a clip.
        image_size: Side of a frame, in pixels.
        video_frames: Frames of the decoded video.
        llava: Settings of the language model (``LlamaConfig``).
        micro_batch: Clips of a stage-2 micro-batch.
        layers: Layers with prompts (``DeepPrompts``).
        text: Number of names → tokens around the events, and nodes of the label tree.
    """

    clips: tuple[int, ...]
    start_clips: int
    steps: int
    grid: int
    windows: int
    event_dim: int
    codes: int
    backbone: str
    frames: int
    image_size: int
    video_frames: int
    llava: Mapping[str, int] = field(hash=False)
    micro_batch: int
    layers: str
    text: Mapping[int, tuple[int, int]] = field(hash=False)

    @property
    def events(self) -> int:
        """M, events of a clip."""
        return self.windows * self.grid**2


PAPER = Sizes(
    clips=(8, 16, 128),
    start_clips=2048,
    steps=32,
    grid=4,
    windows=16,
    event_dim=1024,
    codes=2048,
    backbone="swin3d_t",
    frames=64,
    image_size=224,
    video_frames=120,
    llava={
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_064,
    },
    micro_batch=8,
    layers="last:9",
    text={60: (331, 232), 120: (632, 453)},
)
"""The paper's. Tokens are those of a SentencePiece vocabulary of 32,000 words, of the family of LLaVA-1.5's"""
TINY = Sizes(
    clips=(2, 4),
    start_clips=32,
    steps=8,
    grid=1,
    windows=4,
    event_dim=16,
    codes=16,
    backbone="r3d_18",
    frames=16,
    image_size=32,
    video_frames=16,
    llava={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 400,
    },
    micro_batch=2,
    layers="last:2",
    text={6: (12, 14), 12: (20, 30)},
)
"""For a CPU"""


@dataclass(frozen=True)
class Setting:
    """A device, and the sizes to measure on it."""

    gpu: Gpu
    sizes: Sizes


def step_figures(name: str, cost: Cost, operations: int, waits: Sequence[str] | None, goal: float | None = None) -> list[Measurement]:
    """The lines of a training step.

    Args:
        name: Of the step.
        cost: Its seconds and memory.
        operations: Floating-point operations.
        waits: Places of the host's waits; None if not measured.
        goal: TFLOP/s to reach.
    """
    rows = [
        Measurement(name, cost.seconds, "s"),
        Measurement("... floating-point operations", operations / 1e12, "TFLOP"),
        Measurement("... speed", operations / cost.seconds / 1e12, "TFLOP/s", goal, ">="),
    ]
    if cost.peak_bytes is not None:
        rows.append(Measurement("... peak memory with the weights", cost.peak_bytes / 2**30, "GiB"))
    if waits is not None:
        rows.append(Measurement("... waits of the host, without the optimiser's check", len(waits), "waits", 0, note=", ".join(waits)))
    return rows
