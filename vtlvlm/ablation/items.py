"""Work items: ordinary commands of this project, each with a folder named after the settings that its result depends on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vtlvlm.ablation.network_cost import NetworkLoad
from vtlvlm.ablation.operations import Load
from vtlvlm.errors import DataError
from vtlvlm.report.runs import Run

Kind = Literal[
    "synth", "compose", "extract", "fit1", "tokenize", "probe", "trial", "fit2", "network_trial", "network", "network_again", "test"
]
TITLES: dict[Kind, str] = {
    "synth": "render videos",
    "compose": "compose a LLaVA",
    "extract": "videos to features",
    "fit1": "train stage 1",
    "tokenize": "features to events",
    "probe": "probe the events",
    "trial": "try a learning rate",
    "fit2": "train stage 2",
    "network_trial": "try a network's learning rate",
    "network": "train a network",
    "network_again": "train a network again",
    "test": "test",
}
NETWORKS: tuple[Kind, ...] = ("network_trial", "network", "network_again")
"""Trainings of recognition networks"""
TRAINING: tuple[Kind, ...] = ("fit1", "trial", "fit2", *NETWORKS)
TRIALS: tuple[Kind, ...] = ("trial", "network_trial")
SCORE = "score.json"


@dataclass(frozen=True)
class Item:
    """One command, and what must be done before it.

    Attributes:
        name: Unique in a work folder, such as ``stage1/0123456789ab``; also the path of its folder. A test is ``stage2/.../test``.
        kind: What the command does.
        folder: Where its result goes.
        arguments: The command line after ``vtlvlm``, without the checkpoint that an interrupted training continues from.
        needs: Names of the items whose results it reads.
        subject: The first arm and fold that it is for, in words.
        steps: Optimiser steps, for a training with a fixed number.
        batch: Clips in an optimiser step, for a training.
        load: What the operations of a training of stage 2, or of a network, depend on.
    """

    name: str
    kind: Kind
    folder: Path
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    subject: str = ""
    steps: int | None = None
    batch: int = 0
    load: Load | NetworkLoad | None = None

    @property
    def log(self) -> Path:
        """The file of what the command prints, beside its folder."""
        suffix = f".{self.kind}.log" if self.kind in ("test", "probe") else ".log"
        return self.folder.with_name(self.folder.name + suffix)

    @property
    def title(self) -> str:
        """What the item does, in a few words."""
        return f"{TITLES[self.kind]}{f': {self.subject}' if self.subject else ''}"

    def done(self) -> bool:
        """Whether the result is complete.

        Raises:
            DataError: A file of the result is damaged, half-written, or of another version.
        """
        match self.kind:
            case "synth":
                return (self.folder / "synth.json").is_file()
            case "compose":
                return (self.folder / "config.json").is_file()
            case "extract" | "tokenize":
                return _complete(self.folder)
            case "probe":
                return (self.folder / "probes.json").is_file()
            case "trial" | "network_trial":
                return (self.folder / SCORE).is_file()
            case "test":
                return Run(self.folder).test is not None
        fit = Run(self.folder).fit
        return fit is not None and fit.finished

    def require_whole(self) -> None:
        """Refuse a run folder that later items could not use.

        Raises:
            DataError: A file is damaged, or a finished training has lost its checkpoint.
        """
        if self.kind in TRAINING and self.kind not in TRIALS and self.done() and not any((self.folder / "checkpoints").glob("*.ckpt")):
            raise DataError(
                f"{self.folder}: half a run: its training is finished, but it has no checkpoint; delete the folder to train again"
            )

    def command(self) -> list[str]:
        """The command line after ``vtlvlm``; a training that was interrupted continues from its newest readable checkpoint."""
        if self.kind in TRAINING and any((self.folder / "checkpoints").glob("*.ckpt")):
            from vtlvlm.stages.checkpoints import to_continue

            if (left := to_continue(self.folder)) is not None:
                return [*self.arguments, "--ckpt_path", str(left)]
        return list(self.arguments)


def _complete(folder: Path) -> bool:
    """Whether a cache's description says that it is complete. The commands check all else."""
    path = folder / "meta.json"
    if not path.is_file():
        return False
    try:
        return json.loads(path.read_text(encoding="utf-8"))["complete"] is True
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a cache's description; delete the folder {folder}, and it is made again") from error


def missing(items: Mapping[str, Item], wanted: Iterable[str]) -> list[Item]:
    """The items to run, in an order in which each comes after those that it needs.

    Args:
        items: All items, by name.
        wanted: Names of the items whose results are asked for. What only finished items need is not made again.

    Raises:
        DataError: A run folder is damaged or half-written.
    """
    found: dict[str, Item] = {}

    def add(name: str) -> None:
        item = items[name]
        if name in found or item.done():
            item.require_whole()
            return
        for need in item.needs:
            add(need)
        found[name] = item

    for name in wanted:
        if not items[name].done():
            add(name)
    return list(found.values())
