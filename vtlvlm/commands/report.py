"""Write tables and figures of a work folder of `vtlvlm ablate`, of single runs, or of a demo folder.

A work folder gives the paper's tables with the results of all its grids beside the paper's figures. Run folders give one table for each
protocol, and paired differences to the first run. Each report is report.md, report.html, and tables as CSV and LaTeX.
"""

from __future__ import annotations

import argparse
from pathlib import Path

KEPT = ("grids", "features", "events", "stage1", "stage2", "recognition", "trials")
"""Folders of a work folder that a report must not be written into"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="work folder of `vtlvlm ablate`, run folders, or a demo folder"
    )
    parser.add_argument(
        "--output", type=Path, help="folder to write (default: WORK/report; RUN/report, or runs/report for several; the demo folder itself)"
    )
    parser.add_argument("--efficiency", type=Path, help="JSON of `vtlvlm bench efficiency` for Table IV (default: WORK/efficiency.json)")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    parser.add_argument("--protocol", default="xsub60", help="split of a demo folder (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the files, and print their names."""
    from vtlvlm.errors import UsageError
    from vtlvlm.report.grids import is_work

    for folder in args.folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; `vtlvlm demo {folder}` makes one, and so do `vtlvlm ablate` and `vtlvlm fit`")
    works = [folder for folder in args.folders if is_work(folder)]
    if works and len(args.folders) > 1:
        raise UsageError(f"{works[0]}: a work folder; report it alone, and runs in a call of their own")
    if works:
        return report_work(works[0], args)
    if args.efficiency is not None:
        raise UsageError("--efficiency: goes with a work folder of `vtlvlm ablate`")
    if len(args.folders) == 1 and is_demo(args.folders[0]):
        return report_demo(args.folders[0], args)
    return report_runs(args.folders, args)


def is_demo(folder: Path) -> bool:
    """Whether `vtlvlm demo` wrote a folder. The run folder of a stage 1 may hold probes too, but it has a configuration."""
    steps = [name for name in ("stage2", "untuned", "probes.json") if (folder / name).exists()]
    return bool(steps) and not (folder / "config.yaml").is_file()


def report_work(work: Path, args: argparse.Namespace) -> int:
    """The paper's tables, with the grids of a work folder."""
    from vtlvlm.report.study import work_document
    from vtlvlm.system.places import require_apart

    output = args.output or work / "report"
    require_apart(output, [work / name for name in KEPT], "the report")
    efficiency = args.efficiency or (work / "efficiency.json" if (work / "efficiency.json").is_file() else None)
    return _written(work_document(work, efficiency, figures=not args.no_figures), output)


def report_runs(folders: list[Path], args: argparse.Namespace) -> int:
    """Tables of single runs."""
    from vtlvlm.report.study import runs_document
    from vtlvlm.system.places import require_apart

    alone = folders[0] / "report" if len(folders) == 1 else Path("runs") / "report"
    if args.output is not None:
        require_apart(args.output, folders, "the report")
    return _written(runs_document(folders, figures=not args.no_figures), args.output or alone)


def _written(document: object, output: Path) -> int:
    from vtlvlm.report.document import Document, write_document
    from vtlvlm.report.tables import as_text
    from vtlvlm.system.text import shown

    assert isinstance(document, Document)
    files = write_document(document, output)
    for section in document.sections:
        print(f"\n{shown(section.title)}\n")
        for table in section.tables:
            print(as_text(table) + "\n")
    print("\n".join(str(file) for file in files))
    return 0


def report_demo(folder: Path, args: argparse.Namespace) -> int:
    """The report of a demo folder: report.md, report.html, and a short table on the terminal."""
    from vtlvlm.commands.demo_report import pipeline_report
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.report.page import print_table, write_html, write_markdown
    from vtlvlm.system.streams import gist

    if args.output is not None:
        raise UsageError("--output: the report of a demo is written into its folder; leave it out")
    try:
        report = pipeline_report(folder, args.protocol)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, UsageError | DataError):
            raise
        what = f"{type(error).__name__}: {gist(error, 200)}"
        raise DataError(
            f"{folder}: its files are damaged or of another version ({what}); delete the damaged ones, and run demo again"
        ) from error
    text, page = write_markdown(report, folder), write_html(report, folder / "report.html")
    print_table(report)
    print(f"\n{text}\n{page}")
    return 0
