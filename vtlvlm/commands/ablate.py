"""Run a grid of experiments: both stages, or a recognition network, of every arm, seed and fold, and one table at the end.

A grid file names base configurations, overlays (arms), seeds and folds. Each step is an ordinary command of this project in a process of
its own. Its result lies in the work folder under a name made from the settings that it depends on, so that no work is done twice, also
between grids. A finished step is skipped and an interrupted one continues. A failed one is told at the end; all others still run.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("grid", type=Path, nargs="+", help="grid file, or the name of a shipped one, such as small/table2_small.yaml")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="folder for all runs (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="run only these arms; the others stay in the table, as not run")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="run these training seeds; others than the grid's are added")
    parser.add_argument(
        "--folds",
        nargs="+",
        metavar="PROTOCOL",
        help="protocols instead of the grid's, such as leave_out:P003 or 'each person'; their names are added to the table's",
    )
    parser.add_argument("--videos", type=Path, help="folder of videos, instead of the grid's")
    parser.add_argument("--recordings", type=Path, help="skeletons for networks that read them, instead of the grid's")
    parser.add_argument("--stage1", type=Path, action="append", default=[], metavar="YAML", help="configuration on top of every stage 1")
    parser.add_argument("--stage2", type=Path, action="append", default=[], metavar="YAML", help="configuration on top of every stage 2")
    parser.add_argument(
        "--recognition", type=Path, action="append", default=[], metavar="YAML", help="configuration on top of every recognition network"
    )
    parser.add_argument("--extract", type=Path, action="append", default=[], metavar="YAML", help="configuration on top for extract alone")
    parser.add_argument("--jobs", type=int, default=1, help="commands at the same time on this machine (default: %(default)s)")
    parser.add_argument("--slurm", action="store_true", help="submit to Slurm: a job array for each kind of work, with dependencies")
    parser.add_argument("--site", type=Path, help="with --slurm: account, partition, GPUs of a node (default: slurm/site.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="list what would run; run nothing")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, and print the table of each grid."""
    from vtlvlm.ablation.grid import folds_of, read_grid
    from vtlvlm.ablation.planned import Machine, Selection
    from vtlvlm.ablation.runner import Ended
    from vtlvlm.ablation.study import Study, alone
    from vtlvlm.errors import UsageError
    from vtlvlm.slurm.site import Site

    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: at least 1")
    for path in (*args.stage1, *args.stage2, *args.extract, *args.recognition):
        if not path.is_file():
            raise UsageError(f"{path}: no such configuration")
    if args.videos is not None and not args.videos.is_dir():
        raise UsageError(f"--videos {args.videos}: no such folder")
    if args.recordings is not None and not args.recordings.exists():
        raise UsageError(f"--recordings {args.recordings}: no such file or folder")
    files = [[path.resolve() for path in paths] for paths in (args.stage1, args.stage2, args.extract, args.recognition)]
    one, two, extract, recognition = map(tuple, files)
    machine = Machine(args.work.absolute(), args.videos, one, two, extract, recognition, args.recordings)
    grids = [read_grid(path) for path in args.grid]
    if args.folds is not None:
        mark = "-".join(re.sub(r"\W+", "_", fold) for fold in args.folds)[:80]
        grids = [replace(grid, folds=folds_of(args.folds, "--folds: "), name=f"{grid.name}-{mark}") for grid in grids]
    if args.seeds is not None:
        if min(args.seeds) < 0:
            raise UsageError(f"--seeds {min(args.seeds)}: expected whole numbers from 0")
        grids = [replace(grid, seeds=tuple(dict.fromkeys([*grid.seeds, *args.seeds]))) for grid in grids]
    only = Selection(*(None if chosen is None else frozenset(chosen) for chosen in (args.arms, args.seeds)))
    if twice := {one.name for one in grids if sum(other.name == one.name for other in grids) > 1}:
        raise UsageError(f"{twice.pop()}: two grids of one name; give one file another name")
    if args.slurm and args.jobs != 1:
        raise UsageError("--jobs: goes without --slurm, which runs all elements of an array at once; leave it out")
    if args.site is not None and not args.slurm:
        raise UsageError("--site: goes with --slurm")
    if args.dry_run:
        study = Study(grids, machine, only)
        return study.submit(Site.read(args.site), dry=True) if args.slurm else study.show()
    with alone(machine.work):
        try:
            if args.slurm:
                return Study(grids, machine, only).submit(Site.read(args.site), dry=False)
            return Study(grids, machine, only).run(args.jobs)
        except Ended:
            sys.stderr.write("vtlvlm: asked to end; the same command continues\n")
            return 143
