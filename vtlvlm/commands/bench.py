"""Measure this machine against what the project promises: ratios from one run, as a table and as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

BENCHES = {
    "data": "decoding, copies, feature and event caches",
    "vtem": "pooling, quantisation, FLOPs, a stage-1 step",
    "lvlm": "label scores against slower ways, a training step against peft, trained numbers (a quarter of an hour)",
    "adapters": "what prompts and other adapters make of event sentences (hours on two cores)",
    "events": "what event sentences keep of the action, beside the arms of stage 1 (an hour or more)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHES, help="; ".join(f"{name}: {text}" for name, text in BENCHES.items()))
    parser.add_argument(
        "--videos",
        type=Path,
        help="data: folder of camera videos to make 1080p clips from; events, adapters: clips with NTU names (default: rendered ones)",
    )
    parser.add_argument("--repeats", type=int, help="rounds that medians are taken over (default: 5); events, adapters: seeds (default: 3)")
    parser.add_argument("--arms", nargs="*", metavar="ARM", help="events, adapters: only these arms beside the first (default: all)")
    parser.add_argument("--arm-repeats", type=int, help="adapters: seeds of the arms beside the prompts (default: as many)")
    parser.add_argument(
        "--validation",
        type=float,
        help="adapters: share of the training people who choose rates and checkpoint and fit the temperature (default: 0.2)",
    )
    parser.add_argument(
        "--steps", type=int, help="adapters: steps of every training of stage 2 (default: as configured; few for few clips)"
    )
    parser.add_argument(
        "--overlay", type=Path, action="append", metavar="YAML", help="adapters: on top of every arm's configuration; may be given again"
    )
    parser.add_argument("--rate-steps", type=int, help="adapters: steps of every trial of a learning rate (default: 50)")
    parser.add_argument("--work", type=Path, help="folder for the files it makes, kept (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="JSON file to write (default: runs/bench/NAME.json)")


def run(args: argparse.Namespace) -> int:
    import importlib
    import tempfile

    from vtlvlm.bench.harness import finish
    from vtlvlm.errors import UsageError
    from vtlvlm.system.places import require_json_place

    output = args.output or Path("runs") / "bench" / f"{args.name}.json"
    require_json_place(output)
    learns = args.name in ("adapters", "events")
    repeats = args.repeats if args.repeats is not None else 3 if learns else 5
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: at least 1")
    if args.videos is not None and args.name not in ("data", "events", "adapters"):
        raise UsageError(f"--videos: bench {args.name} needs none")
    if args.arms is not None and not learns:
        raise UsageError("--arms goes with bench events and bench adapters")
    options: dict[str, Any] = {"arms": args.arms} if learns else {}
    if args.validation is not None:
        if args.name != "adapters" or not 0 <= args.validation < 1:
            raise UsageError(f"--validation {args.validation:g}: goes with bench adapters, from 0 to below 1")
        options["validation"] = args.validation
    for name in ("arm_repeats", "steps", "rate_steps"):
        if (number := getattr(args, name)) is not None:
            if args.name != "adapters" or number < 1:
                raise UsageError(f"--{name.replace('_', '-')} {number}: goes with bench adapters, at least 1")
            options[name] = number
    if args.overlay:
        if args.name != "adapters":
            raise UsageError(f"--overlay {args.overlay[0]}: goes with bench adapters")
        if missing := [path for path in args.overlay if not path.is_file()]:
            raise UsageError(f"--overlay {missing[0]}: no such file")
        options["overlays"] = args.overlay
    bench = importlib.import_module(f"vtlvlm.bench.{args.name}")
    with tempfile.TemporaryDirectory(prefix="vtlvlm-bench-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures, facts = bench.measure(work, videos=args.videos, repeats=repeats, **options)
    finish(args.name, figures, output, facts)
    return 0
