"""Write the report of a demo folder: report.md, report.html, and a short table on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("folder", type=Path, help="folder written by `vtlvlm demo`")
    parser.add_argument("--protocol", default="xsub60", help="split of training and test (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write both files and print the table."""
    from vtlvlm.commands.demo_report import pipeline_report
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.report.page import print_table, write_html, write_markdown
    from vtlvlm.system.streams import gist

    if not args.folder.is_dir():
        raise UsageError(f"{args.folder}: no such folder; `vtlvlm demo {args.folder}` makes one")
    try:
        report = pipeline_report(args.folder, args.protocol)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, UsageError | DataError):
            raise
        what = f"{type(error).__name__}: {gist(error, 200)}"
        raise DataError(
            f"{args.folder}: its files are damaged or of another version ({what}); delete the damaged ones, and run demo again"
        ) from error
    text, page = write_markdown(report, args.folder), write_html(report, args.folder / "report.html")
    print_table(report)
    print(f"\n{text}\n{page}")
    return 0
