"""Collects the results of a grid's arms: one figure for each seed, the right and wrong clips, and what was left out and why."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from vtlvlm.errors import DataError
from vtlvlm.metrics.paired import Difference, paired_difference
from vtlvlm.report.grids import Grid, GridArm
from vtlvlm.report.runs import Run
from vtlvlm.report.tested import Answers, Tested, read_run

MOST = 0.95
"""Share of each arm's clips that both must have tested to be compared on these: methods that read skeletons leave out clips without one"""


@dataclass(frozen=True)
class LeftOut:
    """A run that has no results, or none that belong into the table."""

    arm: str
    seed: int | None
    fold: str | None
    reason: str


@dataclass(frozen=True)
class ArmResult:
    """The results of one arm.

    Attributes:
        arm: The arm.
        tested: Its runs with results, over all seeds and folds of complete seeds.
        seeds: Seed → the metric, averaged over the clips of all folds. Only seeds with all folds.
        planned: Number of seeds in the plan.
        clips: Test clips of a seed.
        answers: Seed → answers over all folds.
    """

    arm: GridArm
    tested: Sequence[Tested] = ()
    seeds: dict[int | None, float] = field(default_factory=dict)
    planned: int = 0
    clips: int = 0
    answers: dict[int | None, Answers] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without one."""
        return statistics.fmean(self.seeds.values()) if self.seeds else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (n - 1); None with fewer than two."""
        return statistics.stdev(self.seeds.values()) if len(self.seeds) > 1 else None


@dataclass(frozen=True)
class GridResult:
    """The results of a grid: one for each arm, in the order of the plan, and what was left out."""

    grid: Grid
    arms: Sequence[ArmResult]
    left_out: Sequence[LeftOut]

    @property
    def clips(self) -> int:
        """Test clips of the first arm with results; 0 without one."""
        return next((arm.clips for arm in self.arms if arm.clips), 0)

    @property
    def failures(self) -> list[LeftOut]:
        """What was left out although it was run; the table itself says what was not run."""
        return [out for out in self.left_out if out.reason != "not run"]

    def of(self, name: str) -> ArmResult:
        """The results of an arm."""
        return next(result for result in self.arms if result.arm.name == name)


def collect(grid: Grid) -> GridResult:
    """Read the runs of a grid. A run that is missing, unfinished, damaged or of another protocol is left out with its reason."""
    out: list[LeftOut] = []
    found = []
    protocol = grid.protocol
    for arm in grid.arms:
        tested: list[Tested] = []
        for run in arm.runs:
            try:
                one = read_run(grid, run)
                expected = run.fold or protocol  # a fold is named after its protocol
                if expected is not None and one.metrics.protocol != expected:
                    raise DataError(f"tested under {one.metrics.protocol}, and this table is of {expected}")
                protocol = protocol or one.metrics.protocol
                tested.append(one)
            except DataError as error:
                out.append(LeftOut(arm.label, run.seed, run.fold, str(error)))
        chosen, ambiguous = _chosen(tested, arm)
        out += ambiguous
        out = [reason for reason in out if not _other_rate(reason, arm, chosen)]
        result, incomplete = _arm_result(grid, arm, chosen)
        out += [reason for reason in incomplete if not any(_same_place(reason, known) for known in out)]
        found.append(result)
    return GridResult(grid, found, out)


def _chosen(tested: Sequence[Tested], arm: GridArm) -> tuple[list[Tested], list[LeftOut]]:
    """One run for each seed and fold. Among several learning rates, the one with the lowest calibrated loss on validation people."""
    places: dict[tuple[int | None, str | None], list[Tested]] = {}
    for run in tested:
        places.setdefault((run.plan.seed, run.plan.fold), []).append(run)
    chosen, out = [], []
    for (seed, fold), runs in places.items():
        if len(runs) == 1:
            chosen += runs
            continue
        try:
            losses = [_validation_loss(run) for run in runs]
        except DataError as error:
            out.append(LeftOut(arm.label, seed, fold, f"{len(runs)} learning rates were tested, and {error}"))
            continue
        chosen.append(runs[int(np.argmin(losses))])
    return chosen, out


def _validation_loss(run: Tested) -> float:
    found = Run(run.folder).validation
    figures = {} if found is None else found.metrics
    loss = figures.get("nll_calibrated", figures.get("nll"))
    if loss is None:
        raise DataError(f"{run.folder} has no metrics_val.json to choose by; run `vtlvlm validate`")
    return loss


def _other_rate(reason: LeftOut, arm: GridArm, chosen: Sequence[Tested]) -> bool:
    """Whether a run that was left out only tried a learning rate which another run of its place was chosen over."""
    return reason.arm == arm.label and any(_same_place(reason, LeftOut(arm.label, run.plan.seed, run.plan.fold, "")) for run in chosen)


def _same_place(one: LeftOut, other: LeftOut) -> bool:
    return (one.arm, one.seed, one.fold) == (other.arm, other.seed, other.fold)


def _arm_result(grid: Grid, arm: GridArm, chosen: Sequence[Tested]) -> tuple[ArmResult, list[LeftOut]]:
    folds = {run.fold for run in arm.runs}
    seeds = {run.seed for run in arm.runs}
    values, answers, kept, out, clips = {}, {}, [], [], 0
    for seed in sorted(seeds, key=lambda seed: -1 if seed is None else seed):
        runs = [run for run in chosen if run.plan.seed == seed]
        missing = folds - {run.plan.fold for run in runs}
        if missing:
            if runs:
                named = ", ".join(sorted(map(str, missing)))
                out.append(LeftOut(arm.label, seed, None, f"{len(missing)} of {len(folds)} folds have no results ({named})"))
            continue
        figures = [run.metrics.metrics.get(grid.metric) for run in runs]
        if any(figure is None for figure in figures):
            out.append(LeftOut(arm.label, seed, None, f"its metrics hold no {grid.metric}"))
            continue
        sizes = [run.metrics.num_clips for run in runs]
        values[seed] = sum(figure * size for figure, size in zip(figures, sizes, strict=True) if figure is not None) / sum(sizes)
        clips = sum(sizes)
        kept += runs
        if all(run.answers is not None for run in runs):
            answers[seed] = joined(run.answers for run in runs if run.answers is not None)
    return ArmResult(arm, kept, values, len(seeds), clips, answers), out


def joined(parts: Iterable[Answers]) -> Answers:
    """The answers of several folds as one, in the order of the clips' names."""
    clips, truth, recognised = map(np.concatenate, zip(*((p.clips, p.truth, p.recognised) for p in parts), strict=True))
    order = np.argsort(clips, kind="stable")
    return Answers(clips[order], truth[order], recognised[order])


@dataclass(frozen=True)
class Paired:
    """The difference of two results on the same clips, over the seeds that both have.

    Attributes:
        difference: None if there is none.
        why_not: Why there is none.
        clips: Clips that both have, if one arm has more; None if both have the same.
    """

    difference: Difference | None
    why_not: str = ""
    clips: int | None = None


def compare(ours: ArmResult, theirs: ArmResult) -> Paired:
    """The accuracy of one arm minus another's, with a bootstrap over clips."""
    pair = shared(ours, theirs)
    if isinstance(pair, str):
        return Paired(None, why_not=pair)
    one, other, truth = pair
    lengths = {len(answers.clips) for arm in (ours, theirs) for answers in arm.answers.values()}
    return Paired(paired_difference(one, other), clips=None if lengths == {len(truth)} else len(truth))


def shared(ours: ArmResult, theirs: ArmResult) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.str_]] | str:
    """Right clips of two arms (R, n) over the R seeds that both have, and true classes (n,); or why the arms cannot be paired.

    If one arm lacks a few clips, such as those without a skeleton, the others count.
    """
    both = [seed for seed in ours.answers if seed in theirs.answers]
    if not both:
        return "no seed with predictions in both"
    first = ours.answers[both[0]]
    everyone = [arm.answers[seed] for arm in (ours, theirs) for seed in both]
    if any(not np.array_equal(first.clips, answers.clips) for answers in everyone):
        common = reduce(np.intersect1d, [answers.clips for answers in everyone])
        if len(common) < MOST * max(len(answers.clips) for answers in everyone):
            return "tested on other clips"
        everyone = [_those(answers, common) for answers in everyone]
        first = everyone[0]
    if any(not np.array_equal(first.truth, answers.truth) for answers in everyone):
        return "the same clips have other classes"
    right = np.stack([answers.right for answers in everyone])
    return right[: len(both)], right[len(both) :], first.truth


def _those(answers: Answers, clips: NDArray[np.str_]) -> Answers:
    """The answers to some of the clips, in the order of the names."""
    rows = np.searchsorted(answers.clips, clips)
    return Answers(answers.clips[rows], answers.truth[rows], answers.recognised[rows])


def alone(tested: Tested, label: str) -> ArmResult:
    """A single run as an arm of its own, so that two runs can be compared."""
    arm = GridArm(label, label, [replace(tested.plan, seed=None)])
    top1 = tested.metrics.metrics.get("top1")
    answers: dict[int | None, Answers] = {} if tested.answers is None else {None: tested.answers}
    return ArmResult(arm, [tested], {} if top1 is None else {None: top1}, 1, tested.metrics.num_clips, answers)
