"""Makes the sections of grids: a table of arms beside the paper's figures, charts, provenance, and what was left out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from vtlvlm.report.comparison import Point, accuracy_over, changes_figure, class_changes, reliability_figure
from vtlvlm.report.document import Picture, Section
from vtlvlm.report.figures import confusion_figure
from vtlvlm.report.networks import RECONSTRUCTION, VIDEO
from vtlvlm.report.quotes import on_ntu, on_nw_ucla, quotes
from vtlvlm.report.runs import Confusion
from vtlvlm.report.scores import ArmResult, GridResult, LeftOut, Paired, compare, shared
from vtlvlm.report.tables import NOT_RUN, Table
from vtlvlm.report.tested import FEATURE_PROBE, Tested, read_classes, read_confidence

SETTING = {"V": ("tokens", "windows"), "VI": ("codes",)}
"""Table of the paper -> settings of an arm that its figure may be drawn over, in the order of preference"""


def percent(mean: float | None, deviation: float | None = None) -> str:
    """A share as percent with one digit, and its standard deviation; ``not run`` for None."""
    if mean is None:
        return NOT_RUN
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")


def points(value: float) -> str:
    """A signed difference with one digit."""
    text = f"{value:+.1f}"
    return text.replace("-", "−")


def interval(paired: Paired) -> str:
    """A difference in points with its 95 % interval."""
    found = paired.difference
    if found is None:
        return ""
    some = "" if paired.clips is None else f" on {paired.clips:,} clips"
    return f"{points(100 * found.mean)} [{points(100 * found.low)}, {points(100 * found.high)}]{some}"


def metric_text(result: ArmResult, metric: str) -> str:
    """The metric of an arm: accuracies in percent, other metrics with three digits."""
    if is_accuracy(metric) or result.mean is None:
        return percent(result.mean, result.deviation)
    return f"{result.mean:.3f}" + (f" ± {result.deviation:.3f}" if result.deviation is not None else "")


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a share of clips."""
    return metric in ("top1", "top5", "mean_class_accuracy") or ": " in metric  # the probes of stage 1 are named "codes: attention"


def direction(ours: Paired, paper: float | None) -> str:
    """Whether a difference of ours points as the paper's, and whether it is beyond chance (its interval does not hold zero).

    Args:
        ours: An arm minus the full model.
        paper: The same difference in the paper, in points.
    """
    found = ours.difference
    if found is None or paper is None:
        return ""
    chance = "within chance" if found.low <= 0 <= found.high else "beyond chance"
    if found.mean == 0 or paper == 0:
        return f"no difference {'here' if found.mean == 0 else 'in the paper'}, {chance}"
    return f"{'as the paper' if (found.mean > 0) == (paper > 0) else 'opposite'}, {chance}"


def grid_section(result: GridResult, pictures: bool = True) -> Section:
    """The section of one grid.

    Args:
        result: Its results.
        pictures: Also draw charts.
    """
    grid = result.grid
    heading = f"Table {grid.table}: {grid.title}" if grid.table and not grid.title.startswith("Table") else grid.title
    tables = [arms_table(result), *([left_out_table(result)] if result.failures else [])]
    if _published(result):
        tables.append(published_table(result))
    return Section(f"{heading} ({grid.name})", _text(result), grid_pictures(result) if pictures else (), tables)


def _text(result: GridResult) -> str:
    grid = result.grid
    if not result.clips:
        return "No run of this grid has results yet."
    tested = [run for arm in result.arms for run in arm.tested]
    folds = {run.plan.fold for run in tested}
    split = f"{len(folds)} folds, each clip tested once" if len(folds) > 1 else f"protocol {tested[0].metrics.protocol}"
    classes = {run.metrics.provenance.get("split", {}).get("classes") for run in tested} - {None}
    actions = f" of {', '.join(map(str, sorted(classes)))} actions" if classes else ""
    text = f"{_clips_text(result)} test clips{actions}, {split}. Mean and standard deviation are over seeds."
    if is_accuracy(grid.metric):
        text += " Differences are paired over clips; square brackets hold a 95 % bootstrap interval over clips."
    if any(arm.paper is not None for arm in grid.arms) and not on_ntu(tested[0].metrics.protocol, result.clips):
        text += (
            "\n\nThese clips are not NTU RGB+D, on which the paper's figures were made: compare directions, not values. "
            "The paper gives neither seeds nor intervals."
        )
    return text + _networks_text(result)


def _clips_text(result: GridResult) -> str:
    """Test clips of the arms: one number, or the least and the most."""
    numbers = sorted({arm.clips for arm in result.arms if arm.clips})
    return f"{numbers[0]:,} to {numbers[-1]:,}" if len(numbers) > 1 else f"{numbers[0]:,}"


def _networks_text(result: GridResult) -> str:
    """What the reader of a table with recognition networks has to know."""
    networks = [arm.arm for arm in result.arms if arm.arm.network]
    if not networks:
        return ""
    text = "\n\nEvery row is one network and one stream; published ensembles of several streams are higher."
    if len({arm.arm.reads.partition(",")[0] for arm in result.arms}) > 1:
        text += " Rows that read skeletons and rows that read RGB video do not have the same input: see the column “reads at test”."
    if any(arm.settings.get("reconstruction") for arm in networks):
        text += f" A row marked “{RECONSTRUCTION}” is our reading of a method without published code, not that method."
    if _published(result):
        text += (
            " Published figures are those of the methods themselves, at full size, with their own preparation; “joint / fused” are joints "
            "alone and several streams added."
        )
    return text


def published_table(result: GridResult) -> Table:
    """Where the published figures of the table come from."""
    rows = [[row.method, "" if row.joint is None else f"{row.joint:.1f}", f"{row.fused:.1f}", row.source] for row in quotes().nw_ucla]
    caption = "Published on Northwestern-UCLA, camera 3, top-1, %. None of these was measured with this code."
    return Table(["method", "joints alone", "fused", "what it is"], rows, name=f"{result.grid.name}-published", caption=caption)


def _published(result: GridResult) -> dict[str, str]:
    """Method → what it published on the clips of a grid: joints alone, and fused streams. Empty for clips without such figures."""
    tested = next((run for arm in result.arms for run in arm.tested), None)
    if tested is None or not on_nw_ucla(tested.metrics.protocol, result.clips, tested.metrics.provenance.get("split", {}).get("classes")):
        return {}
    return {row.method: f"{'–' if row.joint is None else f'{row.joint:.1f}'} / {row.fused:.1f}" for row in quotes().nw_ucla}


def arms_table(result: GridResult) -> Table:
    """Arms with our figures, the difference to the first one, and the paper's."""
    grid = result.grid
    first = result.of(grid.compare[0])
    quoted = any(arm.paper is not None for arm in grid.arms)
    name = "top-1, %" if grid.metric == "top1" else f"{grid.metric}, %" if is_accuracy(grid.metric) else grid.metric
    described = any(arm.network for arm in grid.arms)
    published = _published(result)
    some = len({arm.clips for arm in result.arms if arm.clips}) > 1
    header = ["arm", *["reads at test"] * described, name, "seeds", *["clips"] * some, "minus the first"]
    header += ["published, joint / fused, %"] if published else []
    gaps = quoted and first.arm.paper is not None
    header += [*["paper, %"] * quoted, *["paper, minus its first", "direction"] * gaps]
    rows = []
    for arm in result.arms:
        paired = compare(arm, first) if arm is not first and arm.arm.name in grid.compare and grid.paired else Paired(None)
        cells = [arm.arm.label, *[arm.arm.reads] * described, metric_text(arm, grid.metric), _seeds(arm)]
        cells += [f"{arm.clips:,}" if arm.clips else ""] * some
        cells.append(interval(paired) or (paired.why_not if arm.seeds else ""))
        if published:
            cells.append(published.get(str(arm.arm.settings.get("method")), ""))
        if quoted:
            paper = arm.arm.paper
            gap = None if paper is None or first.arm.paper is None or arm is first else paper - first.arm.paper
            cells.append("" if paper is None else f"{paper:.1f}")
            cells += ["" if gap is None else points(gap), direction(paired, gap)] * gaps
        rows.append(cells)
    probe = probe_row(result.arms, len(header), described)
    return Table(header, [*rows, *probe], frozenset({result.arms.index(first)}), name=f"{grid.name}")


def _seeds(arm: ArmResult) -> str:
    done = len(arm.seeds)
    if not done:
        return "0" if arm.planned else ""
    return str(done) if done == arm.planned else f"{done} of {arm.planned}"


def probe_row(arms: Sequence[ArmResult], columns: int, described: bool = False) -> list[list[str]]:
    """The linear probe that ``test`` fitted beside the first arm with one, over the same seeds.

    Args:
        arms: The arms.
        columns: Of the table.
        described: Whether the second column says what a model reads.
    """
    for arm in arms:
        by_seed: dict[int | None, list[Tested]] = {}
        for run in arm.tested:
            by_seed.setdefault(run.plan.seed, []).append(run)
        if arm.tested and all(run.metrics.probe for run in arm.tested):
            values = [
                sum(float((run.metrics.probe or {})["top1"]) * run.metrics.num_clips for run in runs)
                / sum(run.metrics.num_clips for run in runs)
                for runs in by_seed.values()
            ]
            spread = statistics.stdev(values) if len(values) > 1 else None
            cells = [name_of_probe(arm), *[VIDEO] * described, percent(statistics.fmean(values), spread), str(len(values))]
            return [cells + [""] * (columns - len(cells))]
    return []


def name_of_probe(arm: ArmResult) -> str:
    """The probe beside an arm: ``test`` chooses the best one; the probes of stage 1 have a fixed one."""
    names = {str((run.metrics.probe or {}).get("name")) for run in arm.tested}
    return "linear probe on the mean feature" if names == {FEATURE_PROBE} else "best linear probe on the same features"


def left_out_table(result: GridResult) -> Table:
    """What has no results, and why."""
    places: dict[tuple[str, str], list[LeftOut]] = {}
    for out in result.failures:
        places.setdefault((out.arm, without_folder(out.reason, str(result.grid.work))), []).append(out)
    rows = [[arm, listed(out.seed for out in them), _folds(result, them), why] for (arm, why), them in places.items()]
    return Table(["arm", "seeds", "folds", "why it is left out"], rows, caption="Left out:")


def _folds(result: GridResult, them: Iterable[LeftOut]) -> str:
    """The folds, if there are several in the grid."""
    folds = {run.fold for arm in result.grid.arms for run in arm.runs}
    return listed(out.fold for out in them) if len(folds) > 1 else ""


def listed(values: Iterable[object], most: int = 6) -> str:
    """The different values in their order, as text; of more than ``most``, only the number of the others."""
    found = list(dict.fromkeys(str(value) for value in values if value is not None))
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def without_folder(reason: str, folder: str) -> str:
    """A reason with paths relative to the work folder."""
    return reason.replace(f"{folder.rstrip('/')}/", "")


# -- charts ------------------------------------------------------------------------------------------------------------------------


def grid_pictures(result: GridResult) -> list[Picture]:
    """Accuracy over the grid's setting; of the first arm the confusion matrix and the reliability; the most changed arm class by class."""
    grid, first = result.grid, result.of(result.grid.compare[0])
    found = []
    drawn = over_setting(result)
    if drawn is not None:
        found.append(drawn)
    if first.answers and grid.stages > 1:
        found.append(
            Picture(
                f"{grid.name}-confusion",
                f"{first.arm.label}: clips of all seeds. Rows are true actions, columns are recognised ones.",
                confusion_figure(confusion_of(first), f"Confusion matrix: {first.arm.label}"),
            )
        )
        found.append(reliability_picture(first.tested, grid.name, first.arm.label))
    others = [(compare(arm, first), arm) for arm in result.arms if arm is not first and arm.arm.name in grid.compare]
    others = others if grid.paired else []
    paired = [(abs(pair.difference.mean), arm) for pair, arm in others if pair.difference is not None]
    if paired:
        found.append(changes_picture(first, max(paired, key=lambda entry: entry[0])[1], grid.name))
    return found


def over_setting(result: GridResult) -> Picture | None:
    """Top-1 over M or K; None for other grids, and without two arms that have results."""
    grid = result.grid
    curve = quotes().curves.get(grid.table)
    for key in SETTING.get(grid.table, ()):
        places = [
            Point(float(arm.arm.settings[key]), [100 * value for value in arm.seeds.values()])
            for arm in result.arms
            if arm.seeds and isinstance(arm.arm.settings.get(key), int | float)
        ]
        if curve is not None and grid.metric == "top1" and len(places) > 1:
            label = curve.label if key != "windows" else "windows W (M is W times the cells of a frame)"
            caption = f"Top-1 over the {label}. The two charts have different clips and different vertical axes."
            return Picture(f"{grid.name}-accuracy", caption, accuracy_over(places, curve.points, label, result.clips))
    return None


def confusion_of(arm: ArmResult) -> Confusion:
    """Counts of true and recognised classes over all seeds."""
    answers = list(arm.answers.values())
    truth, recognised = (np.concatenate([getattr(a, name) for a in answers]) for name in ("truth", "recognised"))
    found, place = np.unique(np.concatenate([truth, recognised]), return_inverse=True)
    classes = read_classes(arm.tested[0].folder / "predictions_test.csv")  # in the order of the data
    classes += [name for name in map(str, found) if name not in classes]
    number = np.array([classes.index(str(name)) for name in found])[place]
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(matrix, (number[: len(truth)], number[len(truth) :]), 1)
    return Confusion(matrix, tuple(classes))


def reliability_picture(tested: Iterable[Tested], name: str, label: str) -> Picture:
    """Reliability of the probabilities in ``predictions_test.csv`` of some runs, together."""
    parts = [read_confidence(run.folder / "predictions_test.csv") for run in tested if run.answers is not None]
    confidence, right = (np.concatenate(column) for column in zip(*parts, strict=True))
    caption = (
        f"{label}: share of right clips over the probability of the recognised action, clips of all seeds and folds. Bars on the dashed "
        "line are calibrated; orange dots stand at the mean probability of a bin."
    )
    return Picture(f"{name}-calibration", caption, reliability_figure(confidence, right, f"Reliability: {label}"))


def changes_picture(first: ArmResult, second: ArmResult, name: str) -> Picture:
    """Change of each class between two results on the same clips."""
    pair = shared(first, second)
    assert not isinstance(pair, str)
    one, other, truth = pair
    changes = class_changes(one, other, truth)
    caption = (
        f"{second.arm.label} minus {first.arm.label}, class by class, {len(one)} seed{'s' if len(one) > 1 else ''}. Lines are 95 % "
        "bootstrap intervals over the clips of a class. Among many classes, some intervals miss zero by chance."
    )
    return Picture(f"{name}-classes", caption, changes_figure(changes, first.arm.label, second.arm.label))
