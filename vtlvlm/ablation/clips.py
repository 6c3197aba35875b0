"""Where the clips of a grid lie: a folder of videos, videos to render, or recordings of skeletons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vtlvlm.ablation.grid import EACH_PERSON, Grid
from vtlvlm.ablation.items import Item
from vtlvlm.ablation.planned import Machine, Plan
from vtlvlm.ablation.settings import QUIET, Config, config_options, extraction_settings, key_of
from vtlvlm.errors import UsageError

SMALL_PROTOCOLS, LARGE_PROTOCOLS = ("xsub60", "xview60"), ("xsub120", "xset120")
"""Protocols over the same clips"""


class Place(NamedTuple):
    """Where clips lie.

    Attributes:
        root: Folder or file.
        name: Stands for it in keys.
        needs: Names of the items that make it.
    """

    root: Path
    name: str
    needs: tuple[str, ...] = ()


class Clips:
    """The clips of a grid on a machine.

    Args:
        grid: The grid.
        machine: Its places.
        roots: The folders of videos that the configurations name; empty if no arm reads videos.

    Raises:
        UsageError: An arm reads videos, and no folder of them is known, or several are.
    """

    def __init__(self, grid: Grid, machine: Machine, roots: Iterable[str | None]) -> None:
        self.grid, self.machine = grid, machine
        found = set(roots)
        self.read = bool(found)
        """Whether an arm reads videos"""
        self.rendered = grid.videos if self.read and machine.videos is None else None
        """What to render"""
        self.root = self._root(found) if self.read else Path()
        """The folder of videos"""

    def _root(self, roots: set[str | None]) -> Path:
        if self.machine.videos is not None:
            return self.machine.videos.absolute()
        if self.rendered is not None:
            motion = self.motion()
            played = () if motion is None else (str(motion),)
            return self.machine.work / "videos" / key_of(self.rendered.subjects, self.rendered.seed, *played)
        if len(roots) > 1 or None in roots:
            raise UsageError(f"{self.grid.name}: no folder of videos, or several ({', '.join(map(str, roots))}): give --videos")
        return Path(str(roots.pop())).absolute()

    def motion(self) -> Path | None:
        """The recordings that rendered bodies play: the machine's, or the grid's; None if they play none."""
        if self.grid.videos is None or self.grid.videos.motion is None or self.machine.videos is not None:
            return None
        return (self.machine.recordings or self.grid.videos.motion).absolute()

    def recordings(self, named: str | None, arm: str) -> Path:
        """The recordings that a network reads: the machine's, those that the grid's videos play, or its configuration's.

        Args:
            named: What its configuration names.
            arm: Its arm.

        Raises:
            UsageError: None are known.
        """
        found = self.machine.recordings or self.motion() or named
        if found is None:
            raise UsageError(f"arm {arm}: no recordings: give --recordings, or data.source.root in its configuration")
        return Path(found).absolute()

    @property
    def name(self) -> str:
        """Name of the videos in keys. Rendered videos are the same wherever the work folder lies."""
        return str(self.root) if self.rendered is None else f"videos/{self.root.name}"

    def videos(self, plan: Plan) -> Place:
        """The videos, and the item that renders them."""
        return Place(self.root, self.name, self.rendering(plan))

    def rendering(self, plan: Plan) -> tuple[str, ...]:
        """Name of the item that renders the videos; nothing for videos that are there."""
        if self.rendered is None:
            return ()
        people, seed, motion = self.rendered.subjects, self.rendered.seed, self.motion()
        played = () if motion is None else ("--motion", str(motion))
        chosen = () if people is None else ("--subjects", str(people))
        arguments = ("synth", str(self.root), *played, *chosen, "--seed", str(seed))
        subject = f"{'all' if people is None else people} people, seed {seed}"
        item = Item(f"videos/{self.root.name}", "synth", self.root, arguments, subject=subject)
        return (plan.items.setdefault(item.name, item).name,)

    def features(self, plan: Plan, config: Config, files: Sequence[Path], arm: str, fold: str, several: bool) -> Item:
        """One feature cache of the videos for all folds, if the folds may share it.

        Args:
            plan: Gets the item.
            config: Of stage 1, or of a network on frozen features.
            files: Its files.
            arm: The first arm that needs it.
            fold: Protocol.
            several: Whether the grid has several folds.
        """
        sampling = config["data"]["sampling"]
        tested = sampling["test_clips"] * sampling["test_crops"]
        protocol = covered = "all" if several and tested == 1 else fold
        if sampling["views"] == tested == 1:  # every clip has one view, whatever side it is on
            covered = "60 actions" if fold in SMALL_PROTOCOLS else "120 actions" if fold in LARGE_PROTOCOLS else covered
        key = key_of(extraction_settings(config, self.name, covered))
        folder = self.machine.work / "features" / key
        where = ["--data.source.root", str(self.root), "--data.source.protocol", protocol]
        arguments = ("extract", *config_options([*files, *self.machine.extract]), *where, *QUIET, "--output", str(folder))
        item = Item(f"features/{key}", "extract", folder, arguments, self.rendering(plan), arm)
        return plan.items.setdefault(item.name, item)

    def people(self, recordings: Path | None) -> list[str]:
        """The people of the clips.

        Args:
            recordings: What networks read, if no arm reads videos.

        Raises:
            UsageError: There are fewer than two, or they have no names.
            DataError: The clips cannot be read.
        """
        root, most = (self.root if self.read else recordings), None
        if self.rendered is not None:
            most = self.rendered.subjects
            if self.rendered.motion is None:
                return [f"P{person:03d}" for person in range(1, (most or 0) + 1)]
            root = self.motion()
        assert root is not None
        found = people_of_videos(root) if self.read and self.rendered is None else people_of_recordings(root)[:most]
        if len(found) < 2:
            raise UsageError(f"{root}: folds: {EACH_PERSON}: needs two people or more, named in NTU names or a CSV's groups")
        return found


def people_of_videos(root: Path) -> list[str]:
    """The people of a folder of videos."""
    from vtlvlm.data.index import ClipIndex

    index = ClipIndex.scan(root, fast=True, progress=False)
    return sorted({str(index.group[row]) for row in index.usable} - {""})


def people_of_recordings(root: Path) -> list[str]:
    """The people of recordings of skeletons."""
    from vtlvlm.skeleton.source import SkeletonSource

    source = SkeletonSource(str(root))
    index = source.index(source.prepared(progress=False))
    return sorted({str(index.group[row]) for row in index.usable} - {""})
