"""Measure this machine against what the project promises: ratios from one run, as a table and as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

BENCHES = {"data": "decoding, copies, feature and event caches", "vtem": "pooling, quantisation, FLOPs, a stage-1 step"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHES, help="; ".join(f"{name}: {text}" for name, text in BENCHES.items()))
    parser.add_argument(
        "--videos", type=Path, help="folder of camera videos to make 1080p clips from (default: rendered ones, which are easier to decode)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds that medians are taken over (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder for the files it makes, kept (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="JSON file to write (default: runs/bench/NAME.json)")


def run(args: argparse.Namespace) -> int:
    import importlib
    import tempfile

    from vtlvlm.bench.harness import finish
    from vtlvlm.errors import UsageError

    if args.repeats < 1:
        raise UsageError(f"--repeats {args.repeats}: at least 1")
    bench = importlib.import_module(f"vtlvlm.bench.{args.name}")
    with tempfile.TemporaryDirectory(prefix="vtlvlm-bench-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures, facts = bench.measure(work, videos=args.videos, repeats=args.repeats)
    finish(args.name, figures, args.output or Path("runs") / "bench" / f"{args.name}.json", facts)
    return 0
