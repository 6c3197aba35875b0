"""Makes the sections of single runs: a table for each protocol and set of clips, charts, and the difference of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vtlvlm.errors import DataError
from vtlvlm.report.document import Picture, Section
from vtlvlm.report.figures import confusion_figure
from vtlvlm.report.grid_sections import changes_picture, interval, percent, reliability_picture
from vtlvlm.report.networks import VIDEO, Described, input_text, marked, of_run
from vtlvlm.report.quotes import on_ntu, quotes
from vtlvlm.report.runs import Run
from vtlvlm.report.scores import ArmResult, alone, compare
from vtlvlm.report.tables import Table
from vtlvlm.report.tested import Tested, read_tested

Networks = Mapping[Path, Described | None]
"""Run folder → its recognition network; None for the stages"""
DRAWN = 4
"""At most this many runs get charts of their own"""


def read_runs(folders: Sequence[Path]) -> tuple[list[Tested], list[tuple[str, str]]]:
    """The runs with results, and the others with the reason.

    Raises:
        DataError: No run has results; the message has the first reason.
    """
    tested, out = [], []
    for folder in folders:
        try:
            tested.append(read_tested(folder))
        except DataError as error:
            out.append((str(folder), str(error).removeprefix(f"{folder}: ")))
    if not tested:
        name, reason = out[0]
        raise DataError(reason if name in reason else f"{name}: {reason}")
    return tested, out


def names_of(folders: Sequence[Path]) -> dict[Path, str]:
    """Short names of run folders, all different: the last part of the path, or as much of it as tells them apart."""
    folders = list(dict.fromkeys(folders))
    found = {}
    for folder in folders:
        parts = folder.absolute().parts
        length = next(
            (n for n in range(1, len(parts) + 1) if sum(other.absolute().parts[-n:] == parts[-n:] for other in folders) == 1), len(parts)
        )
        found[folder] = "/".join(parts[-length:])
    return found


def run_sections(tested: Sequence[Tested], out: Sequence[tuple[str, str]], figures: bool = True) -> list[Section]:
    """One section for each protocol and number of test clips; runs of different protocols never share a table."""
    networks = {run.folder: of_run(run.folder) for run in tested}
    names = {
        folder: marked(name, (network := networks[folder]) is not None and network.reconstruction)
        for folder, name in names_of([run.folder for run in tested]).items()
    }
    groups: dict[tuple[str, int, str], list[Tested]] = {}
    for run in tested:
        groups.setdefault((str(run.metrics.protocol), run.metrics.num_clips, _stage(run)), []).append(run)
    sections = [
        _section(f"{_title(stage, runs, networks)}: {protocol}, {clips:,} test clips", number, runs, names, networks, figures)
        for number, ((protocol, clips, stage), runs) in enumerate(groups.items(), 1)
    ]
    if out:
        sections.append(Section("Left out", tables=[Table(["run", "why it is left out"], [list(row) for row in out])]))
    return sections


def _stage(run: Tested) -> str:
    return "Stage 2" if "top1" in run.metrics.metrics else "Stage 1"


def _title(stage: str, runs: Sequence[Tested], networks: Networks) -> str:
    """What the runs of a section are."""
    kinds = {networks[run.folder] is not None for run in runs}
    return stage if True not in kinds else "Recognition networks" if False not in kinds else "Stage 2 and recognition networks"


def _section(title: str, number: int, runs: Sequence[Tested], names: dict[Path, str], networks: Networks, figures: bool) -> Section:
    labelled = {names[run.folder]: run for run in runs}
    if _stage(runs[0]) == "Stage 1":
        metrics = sorted({name for run in runs for name in run.metrics.metrics})
        rows = [[name, str(run.metrics.seed), *(_digits(run.metrics.metrics.get(m)) for m in metrics)] for name, run in labelled.items()]
        return Section(title, tables=[Table(["run", "seed", *metrics], rows, name=f"runs-{number}")])
    arms = [alone(run, name) for name, run in labelled.items()]
    table = _table(labelled, arms, number, networks)
    protocol, clips = runs[0].metrics.protocol, runs[0].metrics.num_clips
    text = ""
    if protocol is not None and on_ntu(protocol, clips):
        paper = next(row for rows in quotes().table1.values() for row in rows if row.method == "VT-LVLM-AR")
        text = f"The paper has {paper.accuracy[protocol]} under this protocol."
    elif protocol in quotes().protocols:
        text = f"These {clips:,} clips are not the test clips of NTU RGB+D, so the paper's figures do not compare."
    return Section(title, text, _pictures(arms, number) if figures else (), [table])


def _table(labelled: dict[str, Tested], arms: Sequence[ArmResult], number: int, networks: Networks) -> Table:
    found_networks = [networks[run.folder] for run in labelled.values()]
    described, staged = any(found_networks), not all(found_networks)
    header = ["run", "seed", *["network", "reads at test"] * described, *["adapter"] * staged, "top-1, %", "top-5, %", "mean class, %"]
    header += ["NLL", "ECE", *["linear probe, %"] * staged, *["minus the first"] * (len(arms) > 1)]
    rows = []
    for (name, run), arm in zip(labelled.items(), arms, strict=True):
        found = run.metrics.metrics
        calibrated = "_calibrated" if "nll_calibrated" in found else ""
        probe = run.metrics.probe
        cells = [
            name,
            "" if run.metrics.seed is None else str(run.metrics.seed),
            *_of_network(networks[run.folder]) * described,
            *[str(run.metrics.provenance.get("adapter", ""))] * staged,
            *(percent(value) if (value := found.get(key)) is not None else "" for key in ("top1", "top5", "mean_class_accuracy")),
            *(_digits(found.get(f"{key}{calibrated}")) for key in ("nll", "ece")),
            *["" if not probe else percent(float(probe["top1"]))] * staged,
        ]
        if len(arms) > 1:
            paired = compare(arm, arms[0])
            cells.append("" if arm is arms[0] else interval(paired) or paired.why_not)
        rows.append(cells)
    caption = "NLL and ECE are those of the calibrated probabilities where a temperature was fitted."
    return Table(header, rows, name=f"runs-{number}", caption=caption)


def _of_network(network: Described | None) -> list[str]:
    """The cells of what a network is and reads; a stage 2 reads videos."""
    return ["", VIDEO] if network is None else [network.title, input_text(network.reads, network.stream)]


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _pictures(arms: Sequence[ArmResult], number: int) -> list[Picture]:
    found = []
    for place, arm in enumerate(arms[:DRAWN], 1):
        run = arm.tested[0]
        name, label = f"runs-{number}-{place}", arm.arm.label
        confusion = Run(run.folder).confusion("test")
        if confusion is not None:
            caption = f"{label}. Rows are true actions, columns are recognised ones."
            found.append(Picture(f"{name}-confusion", caption, confusion_figure(confusion, f"Confusion matrix: {label}")))
        if run.answers is not None and len(run.answers.clips):
            found.append(reliability_picture([run], name, label))
    if len(arms) > 1 and compare(arms[1], arms[0]).difference is not None:
        found.append(changes_picture(arms[0], arms[1], f"runs-{number}"))
    return found
