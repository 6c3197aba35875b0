"""The chain of commands from videos to a tested stage 2, as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vtlvlm.data.cache_format import read_meta
from vtlvlm.data.index import stores
from vtlvlm.errors import DataError
from vtlvlm.report.runs import fit_finished
from vtlvlm.slurm.submission import Job
from vtlvlm.stages.checkpoints import to_continue


class Chain(NamedTuple):
    """What a chain trains on, and with which configurations.

    Attributes:
        run: The folder of all outputs.
        videos: The folder of videos.
        stage1: Configurations of stage 1, overlays last.
        stage2: Configurations of stage 2, overlays last.
        protocol: Replaces the protocol of the configurations.
        labels: A table of the clips, relative to the videos.
        hidden: Train stage 2 from stored hidden states.
        checkpoint: ``best``, or ``last`` without validation clips.
    """

    run: Path
    videos: Path
    stage1: list[str]
    stage2: list[str]
    protocol: str | None = None
    labels: Path | None = None
    hidden: bool = False
    checkpoint: str = "best"

    def jobs(self) -> list[Job]:
        """The jobs, in order. A training that was interrupted gets the checkpoint from which it continues."""
        run = self.run
        features, events, hidden, one, two = (run / name for name in ("features", "events", "hidden", "stage1", "stage2"))
        chosen = Path("checkpoints", f"{self.checkpoint}.ckpt")
        first, second = ([*_configs(files), *self._data()] for files in (self.stage1, self.stage2))
        on_features, on_events = [*first, "--data.features", str(features)], [*second, "--data.events", str(events)]
        found = [
            Job("prepare", "prepare", ["prepare", str(self.videos), *self._checked()], done=lambda: indexed(self.videos)),
            Job("extract", "extract", ["extract", *first, "--output", str(features)], ("prepare",), lambda: complete(features, "features")),
            Job("stage1", "stage1", ["fit", *on_features, *into(one)], ("extract",), lambda: fit_finished(one)),
            Job(
                "tokenize",
                "tokenize",
                ["tokenize", *on_features, "--ckpt_path", str(one / chosen), "--output", str(events)],
                ("stage1",),
                lambda: complete(events, "events"),
            ),
        ]
        read = on_events
        if self.hidden:
            made = Job(
                "hidden",
                "hidden",
                ["extract-hidden", *on_events, "--output", str(hidden)],
                ("tokenize",),
                lambda: complete(hidden, "hidden"),
            )
            found.append(made)
            read = [*second, "--data.events", str(hidden)]
        tested = ["test", *on_events, "--trainer.default_root_dir", str(two), "--ckpt_path", str(two / chosen)]
        return [
            *found,
            Job("stage2", "stage2", ["fit", *read, *into(two)], (found[-1].name,), lambda: fit_finished(two)),
            Job("test", "test", tested, ("stage2",), lambda: is_tested(two, two / chosen)),
        ]

    def _data(self) -> list[str]:
        protocol = [] if self.protocol is None else ["--data.source.protocol", self.protocol]
        labels = [] if self.labels is None else ["--data.source.labels", str(self.labels)]
        return ["--data.source.root", str(self.videos), *protocol, *labels]

    def _checked(self) -> list[str]:
        protocol = [] if self.protocol is None else ["--protocol", self.protocol]
        return [*protocol, *([] if self.labels is None else ["--csv", str(self.labels)])]


def _configs(files: list[str]) -> list[str]:
    return [word for file in files for word in ("--config", file)]


def into(run: Path) -> list[str]:
    """The settings of a training in a run folder, and the checkpoint from which an interrupted one continues."""
    left = to_continue(run)
    return ["--trainer.default_root_dir", str(run), *([] if left is None else ["--ckpt_path", str(left)])]


def indexed(videos: Path) -> bool:
    """Whether a folder of videos has an index."""
    return any(path.is_file() for path in stores(videos))


def complete(folder: Path, kind: str) -> bool:
    """Whether a cache is complete. A damaged one is not: its command says what to do."""
    try:
        return bool(read_meta(folder, kind)["complete"])
    except DataError:
        return False


def is_tested(run: Path, checkpoint: Path) -> bool:
    """Whether a run folder holds the metrics of a test after its training."""
    metrics = run / "metrics.json"
    return fit_finished(run) and metrics.is_file() and checkpoint.exists() and metrics.stat().st_mtime >= checkpoint.stat().st_mtime
