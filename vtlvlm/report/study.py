"""The report of a work folder with grids, and of single runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vtlvlm.report.document import Document, Section
from vtlvlm.report.grid_sections import grid_section
from vtlvlm.report.grids import open_grids
from vtlvlm.report.paper_tables import provenance_table, quoted_section, table_four, table_one
from vtlvlm.report.quotes import on_ntu
from vtlvlm.report.run_sections import names_of, read_runs, run_sections
from vtlvlm.report.scores import GridResult, collect
from vtlvlm.report.tested import Tested

ABLATIONS = ("II", "V", "VI")


def work_document(work: Path, efficiency: Path | None = None, figures: bool = True) -> Document:
    """The paper's tables with the results of all grids of a work folder.

    Args:
        work: Folder that ``vtlvlm ablate`` wrote.
        efficiency: JSON of ``vtlvlm bench efficiency``; None if there is none.
        figures: Also draw charts.

    Raises:
        DataError: The folder has no grids, or one of them is damaged.
    """
    results = [collect(grid) for grid in open_grids(work)]
    one = [grid_section(result, figures) for result in _of(results, "I")]
    sections = [table_one(results), *one]
    for table in ("II", "IV", "V", "VI"):
        if table == "IV":
            sections.append(table_four(efficiency))
            continue
        sections += [grid_section(result, figures) for result in _of(results, table)] or [quoted_section(table)]
    sections += [grid_section(result, figures) for result in results if result.grid.table not in ("I", *ABLATIONS)]
    origins = [place for result in results for place in _origins(result)]
    sections.append(Section("Provenance", "Every figure of this code above comes from these runs.", tables=[provenance_table(origins)]))
    return Document("Results beside the paper's", _summary(results), _facts(results), sections)


def _origins(result: GridResult) -> list[tuple[str, list[Tested]]]:
    """The runs of a grid; of one with networks, those of each arm, since their sizes differ."""
    if any(arm.arm.network for arm in result.arms):
        return [(f"{result.grid.name}: {arm.arm.label}", list(arm.tested)) for arm in result.arms if arm.tested]
    return [(result.grid.name, [run for arm in result.arms for run in arm.tested])]


def _of(results: Sequence[GridResult], table: str) -> list[GridResult]:
    return [result for result in results if result.grid.table == table]


def _summary(results: Sequence[GridResult]) -> str:
    text = "Figures of this code come from runs with metrics.json in the work folder; a cell without such a run says “not run”."
    on_paper = any(on_ntu(run.metrics.protocol, arm.clips) for result in results for arm in result.arms for run in arm.tested)
    if not on_paper:
        text += " None of these runs tested a whole protocol of NTU RGB+D: no accuracy of the paper is reproduced here."
    return text


def _facts(results: Sequence[GridResult]) -> list[tuple[str, str]]:
    runs = sum(len(arm.arm.runs) for result in results for arm in result.arms)
    tested = sum(len(arm.tested) for result in results for arm in result.arms)
    left_out = sum(len(result.failures) for result in results)
    return [
        (str(len(results)), "grids"),
        (f"{tested} of {runs}", "planned runs with results in the tables"),
        (str(left_out), "left out, with the reason"),
    ]


def runs_document(folders: Sequence[Path], figures: bool = True) -> Document:
    """Tables of single runs, one for each protocol and set of clips.

    Raises:
        DataError: No run has results.
    """
    tested, out = read_runs(list(dict.fromkeys(folders)))
    sections = run_sections(tested, out, figures)
    names = names_of([run.folder for run in tested])
    origins = [(names[run.folder], [run]) for run in tested]
    sections.append(Section("Provenance", tables=[provenance_table(origins)]))
    facts = [(str(len(tested)), "runs"), (str(len(out)), "left out, with the reason")]
    return Document("Test results", "Figures come from metrics.json and predictions_test.csv of each run folder.", facts, sections)
