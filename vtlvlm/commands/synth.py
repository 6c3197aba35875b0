"""Render NTU-like videos of a kinematic body, with skeletons. The data set needs no download."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("output", type=Path, help="folder to write; an interrupted set in it is completed")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.add_argument("--subjects", type=int, default=10, help="number of people, from P001 (default: %(default)s)")
    parser.add_argument("--replications", type=int, default=1, help="repetitions of each action by each person (default: %(default)s)")
    parser.add_argument(
        "--actions", type=int, nargs="+", metavar="A", help="official NTU numbers, such as 8 9 27 (default: all that can be rendered)"
    )
    parser.add_argument(
        "--cameras", type=int, nargs="+", metavar="C", default=[1, 2, 3], help="1 in front, 2 at -45 and 3 at +45 degrees (default: 1 2 3)"
    )
    parser.add_argument("--workers", type=int, help="processes; their number does not change the videos (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Render the missing clips."""
    from vtlvlm.synth import generate

    manifest = generate(
        args.output,
        seed=args.seed,
        subjects=args.subjects,
        replications=args.replications,
        actions=args.actions,
        cameras=args.cameras,
        workers=args.workers,
    )
    print(f"{len(manifest['clips'])} clips of {len(manifest['classes'])} actions in {args.output}")
    return 0
