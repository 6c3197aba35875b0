"""Typed readers of the files that callbacks and the TensorBoard logger write into run folders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtlvlm.errors import DataError
from vtlvlm.system.files import write_text


@dataclass(frozen=True)
class Metrics:
    """``metrics.json`` of a test, or ``metrics_val.json`` of a validation."""

    protocol: str | None
    split: str
    num_clips: int
    seed: int | None
    metrics: dict[str, float | None]
    """by name, without the split's prefix; None for nan and infinity"""
    provenance: dict[str, Any] = field(default_factory=dict)
    views_per_clip: int = 1
    """number of views whose probabilities are averaged"""
    probe: dict[str, Any] | None = None
    """a linear probe on the same clips: name, top1, num_train, num_test, difference; None without a feature cache"""
    peak_gpu_bytes: int | None = None
    """bytes on the GPU of the process that needed most; None on a CPU"""
    device: dict[str, Any] | None = None
    """``name`` and ``count`` of the devices; None in files of older versions"""


@dataclass(frozen=True)
class Fit:
    """``fit.json``: the cost of training, summed over its sessions (an interrupted training has several)."""

    steps: int
    wall_seconds: float
    seconds_per_step: float | None
    """median over the optimiser steps of the last session, including the wait for data; None without steps"""
    peak_rss_bytes: int
    parameters: int
    trainable_parameters: int
    sessions: list[dict[str, Any]] = field(default_factory=list)
    peak_gpu_bytes: int | None = None
    """bytes on the GPU of the process that needed most, of the last session; None on a CPU"""
    device: dict[str, Any] | None = None
    """``name`` and ``count`` of the devices; None in files of older versions"""

    @property
    def finished(self) -> bool:
        """Whether the training reached its end; False after an interruption."""
        return bool(self.sessions) and bool(self.sessions[-1]["finished"])

    @property
    def peak_gib(self) -> str:
        """Peak memory in GiB, of the process and of the GPU if there was one."""
        gpu = "" if self.peak_gpu_bytes is None else f", GPU {self.peak_gpu_bytes / 2**30:.1f}"
        return f"{self.peak_rss_bytes / 2**30:.1f}{gpu}"


@dataclass(frozen=True)
class Confusion:
    """``confusion_{split}.json``: counts of clips, row = label, column = most likely class."""

    matrix: np.ndarray
    """(A, A) int64"""
    classes: tuple[str, ...]


def write_confusion(path: Path, confusion: Confusion) -> None:
    """Write ``confusion_{split}.json``, one row of the matrix per line."""
    rows = ",\n".join(json.dumps(row.tolist()) for row in confusion.matrix)
    write_text(path, f'{{"classes": {json.dumps(confusion.classes, ensure_ascii=False)},\n"matrix": [\n{rows}\n]}}\n')


@dataclass(frozen=True)
class Curve:
    """One logged scalar over optimiser steps."""

    name: str
    steps: np.ndarray
    values: np.ndarray


def fit_finished(folder: Path | str) -> bool:
    """Whether the training of a run folder reached its end."""
    fit = Run(Path(folder)).fit
    return fit is not None and fit.finished


@dataclass(frozen=True)
class Run:
    """A run folder. Each property reads one file, and is None if the run has not written it."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open a run folder.

        Raises:
            DataError: The folder does not exist.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such run folder; it is the default_root_dir of a training")
        return cls(folder)

    @property
    def test(self) -> Metrics | None:
        """The metrics of the test split."""
        return self._metrics("metrics.json")

    @property
    def validation(self) -> Metrics | None:
        """The metrics of the validation split, written by ``validate``."""
        return self._metrics("metrics_val.json")

    @property
    def fit(self) -> Fit | None:
        """The cost of training."""
        content = self._json("fit.json")
        return None if content is None else self._typed(Fit, content, "fit.json")

    @property
    def environment(self) -> dict[str, Any] | None:
        """``versions.json``: versions, machine, seed, git."""
        return self._json("versions.json")

    def confusion(self, split: str = "test") -> Confusion | None:
        """The confusion matrix of a split, ``test`` or ``val``."""
        content = self._json(f"confusion_{split}.json")
        if content is None:
            return None
        return Confusion(np.asarray(content["matrix"], dtype=np.int64), tuple(content["classes"]))

    def scalars(self) -> dict[str, Curve]:
        """All TensorBoard scalars below the folder, by split and name (``val/top1``), without the stage. If a resumed training wrote a step
        twice, the later value counts."""
        from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
            SCALARS,
            EventAccumulator,
        )

        from vtlvlm.report.curves import named_by_split

        points: dict[str, dict[int, tuple[float, float]]] = {}
        for events in sorted({path.parent for path in self.folder.rglob("events.out.tfevents.*")}):
            reader = EventAccumulator(str(events), size_guidance={SCALARS: 0})
            reader.Reload()
            for tag in reader.Tags()[SCALARS]:
                column = points.setdefault(named_by_split(tag), {})
                for event in reader.Scalars(tag):
                    if event.wall_time >= column.get(event.step, (0.0, 0.0))[0]:
                        column[event.step] = (event.wall_time, event.value)
        return {
            tag: Curve(tag, np.array(sorted(column)), np.array([column[step][1] for step in sorted(column)]))
            for tag, column in points.items()
        }

    def _metrics(self, name: str) -> Metrics | None:
        content = self._json(name)
        return None if content is None else self._typed(Metrics, content, name)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error}); delete it and run the test again") from error
        if not isinstance(content, dict):
            raise DataError(f"{path}: not a JSON object; delete it and run the test again")
        return content

    def _typed(self, kind: type, content: dict[str, Any], name: str) -> Any:
        try:
            return kind(**content)
        except TypeError as error:
            raise DataError(f"{self.folder / name}: not the format of this version ({error}); run the test again") from error
