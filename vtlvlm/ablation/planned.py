"""What a plan holds: the machine's places, the selection to run, and the items and runs of a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtlvlm.ablation.items import Item


@dataclass(frozen=True)
class Machine:
    """Where things lie on this machine, and configurations that fit it.

    Attributes:
        work: The work folder, an absolute path.
        videos: Folder of videos instead of the grid's; None for the grid's.
        stage1: Configurations on top of every arm's stage 1, for all its commands.
        stage2: The same for stage 2.
        extract: The same for ``extract`` alone, after those of stage 1.
        recognition: The same for every arm that is a recognition network.
        recordings: File or folder of skeletons instead of those of the grid and its configurations; None for theirs.
    """

    work: Path
    videos: Path | None = None
    stage1: tuple[Path, ...] = ()
    stage2: tuple[Path, ...] = ()
    extract: tuple[Path, ...] = ()
    recognition: tuple[Path, ...] = ()
    recordings: Path | None = None


@dataclass(frozen=True)
class Selection:
    """The part of the grids to run now; the rest stays "not run".

    Attributes:
        arms: Names of arms; None for all.
        seeds: Training seeds; None for all.
    """

    arms: frozenset[str] | None = None
    seeds: frozenset[int] | None = None

    def has(self, arm: str, seed: int | None = None) -> bool:
        """Whether an arm, or one of its seeds, is selected."""
        return (self.arms is None or arm in self.arms) and (seed is None or self.seeds is None or seed in self.seeds)


@dataclass
class PlannedRun:
    """One seed and fold of an arm.

    Attributes:
        seed: Training seed.
        fold: Protocol.
        stage1: Run folder of stage 1, relative to the work folder; None for a network.
        events: Event cache; None if the grid ends with stage 1.
        stage2: Run folder of stage 2; None if the grid ends with stage 1, or if the learning rate is not chosen yet.
        learning_rate: The last one that was chosen; None if none was.
        final: Name of the last item; None if the learning rate is not chosen yet.
        recognition: Run folder of a network; None for an arm of the stages, or if the learning rate is not chosen yet.
    """

    seed: int
    fold: str
    stage1: str | None = None
    events: str | None = None
    stage2: str | None = None
    learning_rate: float | None = None
    final: str | None = None
    recognition: str | None = None


@dataclass
class Plan:
    """The items of a grid by name, the runs of each arm, and the trials of learning rates that are not chosen yet.

    Attributes:
        protocol: The table's protocol: the fold, or ``leave_out`` for several.
        settings: Arm -> numbers for the axis of a plot (windows, tokens, codes), or what a network reads.
        rates: Arm -> chosen setting -> rate.
        trials: Arm -> names of the trials that its next choice waits for.
        hopeless: Arm -> why no learning rate can be chosen.
        for_all: Arms whose choice all arms wait for.
    """

    protocol: str
    items: dict[str, Item] = field(default_factory=dict)
    runs: dict[str, list[PlannedRun]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    trials: dict[str, list[str]] = field(default_factory=dict)
    hopeless: dict[str, str] = field(default_factory=dict)
    for_all: frozenset[str] = frozenset()

    def wanted(self, only: Selection) -> list[str]:
        """Names of the items to reach: trials of learning rates, and the last item of each selected run that can be planned."""
        trials = [name for arm, names in self.trials.items() if arm in self.for_all or only.has(arm) for name in names]
        runs = [run for arm, found in self.runs.items() if only.has(arm) for run in found if only.has(arm, run.seed)]
        return [*trials, *(run.final for run in runs if run.final is not None)]
