"""Benchmark this machine against the project's targets. Prints a table and writes JSON; most results are ratios within one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vtlvlm.commands.classify import DEFAULT_MODEL

if TYPE_CHECKING:
    from vtlvlm.bench.efficiency import Baseline

BENCHES = {
    "data": "decoding, copies, feature and event caches, .skeleton files",
    "vtem": "pooling, quantisation, FLOPs, a stage-1 step",
    "lvlm": "label scores against slower methods, a training step against peft, trainable parameters (a quarter of an hour)",
    "search": "a search over 100,000 event sentences: clips, actions, patterns (minutes, 3 GB of memory)",
    "efficiency": "the paper's Table IV: parameters, FLOPs, seconds and memory of stages and skeleton networks, for one clip (minutes)",
    "segments": "vtlvlm segment on a long 1080p film: time against decoding and the model, memory (minutes)",
    "open_set": "clips and long videos that hold more than the model's actions, for models that know some of them (10 minutes a draw)",
    "app": "vtlvlm app: seconds to its page, and a request's time over the recogniser's alone (a minute; extra app)",
    "gpu": "both stages on one GPU at the paper's size, with random weights (two minutes on an H100)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHES, help="; ".join(f"{name}: {text}" for name, text in BENCHES.items()))
    parser.add_argument("--videos", type=Path, help="data, segments, app: camera videos to make 1080p clips from (default: rendered ones)")
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help=f"app: bundle to serve (default: {DEFAULT_MODEL})")
    parser.add_argument("--repeats", type=int, help="rounds to take medians over (default: 5)")
    parser.add_argument(
        "--budget", type=float, help="gpu: seconds in which parts start; figures come in the order of importance (default: 420)"
    )
    parser.add_argument("--tiny", action="store_true", help="gpu: the same code with small models on a CPU, to see that it runs")
    parser.add_argument("--stage1", nargs="+", metavar="YAML", help="efficiency: configurations of stage 1 (default: stage1_small.yaml)")
    parser.add_argument("--stage2", nargs="+", metavar="YAML", help="efficiency: configurations of stage 2 (default: stage2_small.yaml)")
    parser.add_argument(
        "--baselines",
        nargs="*",
        metavar="YAML",
        help="efficiency: configurations of skeleton networks, each of one (default: the nine of Table I and CTR-GCN at full size, a "
        "minute or two; the option alone: none)",
    )
    parser.add_argument("--minutes", type=int, help="segments: length of the film (default: 10)")
    parser.add_argument(
        "--draws", type=int, nargs="+", metavar="N", help="open_set: draws of left-out actions; 0 leaves none out (default: 0 1 2 3 4 5)"
    )
    parser.add_argument("--foreign", type=Path, metavar="DIR", help="open_set: folder of videos of something else (default: none)")
    parser.add_argument("--work", type=Path, help="folder that keeps the intermediate files (default: a temporary folder)")
    parser.add_argument(
        "--output", type=Path, help="JSON file to write (default: runs/bench/NAME.json); gpu: a file of JSON lines (.jsonl) that grows"
    )


def run(args: argparse.Namespace) -> int:
    import importlib
    import tempfile

    from vtlvlm.bench.harness import finish
    from vtlvlm.errors import UsageError
    from vtlvlm.system.places import require_json_place

    if args.name == "gpu":
        return on_gpu(args)
    if args.name == "efficiency":
        return of_pipeline(args)
    if args.stage1 or args.stage2:
        raise UsageError(f"--stage{1 if args.stage1 else 2} goes with bench efficiency")
    if args.baselines is not None:
        raise UsageError("--baselines goes with bench efficiency")
    if args.name == "open_set":
        return of_draws(args)
    if args.name == "segments":
        return of_film(args)
    if args.name == "app":
        return of_page(args)
    if args.model is not None:
        raise UsageError("--model goes with bench app")
    if args.minutes is not None:
        raise UsageError("--minutes goes with bench segments")
    if args.draws or args.foreign:
        raise UsageError(f"--{'draws' if args.draws else 'foreign'} goes with bench open_set")
    if args.tiny or args.budget is not None:
        raise UsageError(f"--{'tiny' if args.tiny else 'budget'} goes with bench gpu")
    output = args.output or Path("runs") / "bench" / f"{args.name}.json"
    require_json_place(output)
    repeats = 5 if args.repeats is None else args.repeats
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: at least 1")
    if args.videos is not None and args.name != "data":
        raise UsageError(f"--videos: bench {args.name} reads no videos; leave it out")
    bench = importlib.import_module(f"vtlvlm.bench.{args.name}")
    with tempfile.TemporaryDirectory(prefix="vtlvlm-bench-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures, facts = bench.measure(work, videos=args.videos, repeats=repeats)
    finish(args.name, figures, output, facts)
    return 0


def on_gpu(args: argparse.Namespace) -> int:
    """Run ``bench gpu``, which writes its figures as they come; returns 1 if a part failed."""
    from vtlvlm.bench import gpu
    from vtlvlm.errors import UsageError

    taken = ("name", "budget", "tiny", "output")
    if given := [name for name, value in vars(args).items() if name not in taken and value is not None]:
        raise UsageError(f"--{given[0].replace('_', '-')}: bench gpu takes --budget, --tiny and --output")
    budget = 420.0 if args.budget is None else args.budget
    if not budget > 0:
        raise UsageError(f"--budget {budget:g}: seconds, above 0")
    return int(gpu.measure(args.output or Path("runs") / "bench" / "gpu.jsonl", budget, args.tiny) > 0)


def of_film(args: argparse.Namespace) -> int:
    """Run ``bench segments``."""
    import tempfile

    from vtlvlm.bench import segments
    from vtlvlm.bench.harness import finish
    from vtlvlm.errors import UsageError
    from vtlvlm.system.places import require_json_place

    taken = ("name", "minutes", "videos", "work", "output")
    if given := [name for name, value in vars(args).items() if name not in taken and value is not None and value is not False]:
        raise UsageError(f"--{given[0].replace('_', '-')}: bench segments takes --minutes, --videos, --work and --output")
    minutes = segments.MINUTES if args.minutes is None else args.minutes
    if minutes < 1:
        raise UsageError(f"--minutes {minutes}: at least 1")
    output = args.output or Path("runs") / "bench" / "segments.json"
    require_json_place(output)
    with tempfile.TemporaryDirectory(prefix="vtlvlm-bench-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures, facts = segments.measure(work, args.videos, minutes)
    finish("segments", figures, output, facts)
    return 0


def of_page(args: argparse.Namespace) -> int:
    """Run ``bench app``."""
    import tempfile

    from vtlvlm.commands.classify import require_model
    from vtlvlm.errors import UsageError
    from vtlvlm.system.places import require_json_place
    from vtlvlm.web.serving import require_extra

    taken = ("name", "model", "videos", "repeats", "work", "output")
    if given := [name for name, value in vars(args).items() if name not in taken and value is not None and value is not False]:
        raise UsageError(f"--{given[0].replace('_', '-')}: bench app takes --model, --videos, --repeats, --work and --output")
    repeats = 5 if args.repeats is None else args.repeats
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: at least 1")
    require_extra()
    model = args.model or Path(DEFAULT_MODEL)
    require_model(model)
    output = args.output or Path("runs") / "bench" / "app.json"
    require_json_place(output)

    from vtlvlm.bench import app
    from vtlvlm.bench.harness import finish

    with tempfile.TemporaryDirectory(prefix="vtlvlm-bench-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        figures, facts = app.measure(work, model, args.videos, repeats)
    finish("app", figures, output, facts)
    return 0


def of_draws(args: argparse.Namespace) -> int:
    """Run ``bench open_set``, which trains models and keeps them."""
    from vtlvlm.bench import open_set
    from vtlvlm.bench.harness import finish
    from vtlvlm.errors import UsageError
    from vtlvlm.system.places import require_json_place

    taken = ("name", "draws", "foreign", "work", "output")
    if given := [name for name, value in vars(args).items() if name not in taken and value is not None and value is not False]:
        raise UsageError(f"--{given[0].replace('_', '-')}: bench open_set takes --draws, --foreign, --work and --output")
    draws = [0, 1, 2, 3, 4, 5] if args.draws is None else sorted(set(args.draws))
    if draws[0] < 0:
        raise UsageError(f"--draws {draws[0]}: from 0")
    if args.foreign is not None and not args.foreign.is_dir():
        raise UsageError(f"--foreign {args.foreign}: no such folder")
    output = args.output or Path("runs") / "bench" / "open_set.json"
    require_json_place(output)
    figures, facts = open_set.measure(args.work or Path("runs") / "open_set", draws, args.foreign)
    finish("open_set", figures, output, facts)
    return 0


def of_pipeline(args: argparse.Namespace) -> int:
    """Run ``bench efficiency``, which has tables of its own."""
    import tempfile

    from vtlvlm.bench import efficiency
    from vtlvlm.commands.trainer import untrained
    from vtlvlm.configs import resolved
    from vtlvlm.errors import UsageError
    from vtlvlm.system.places import require_json_place

    taken = ("name", "stage1", "stage2", "baselines", "repeats", "work", "output")
    if given := [name for name, value in vars(args).items() if name not in taken and value is not None and value is not False]:
        options = f"{', '.join(f'--{name}' for name in taken[1:-1])} and --output"
        raise UsageError(f"--{given[0].replace('_', '-')}: bench efficiency takes {options}")
    repeats = 5 if args.repeats is None else args.repeats
    if repeats < 1:
        raise UsageError(f"--repeats {repeats}: at least 1")
    output = args.output or Path("runs") / "bench" / "efficiency.json"
    require_json_place(output)
    names = args.stage1 or efficiency.STAGE1, args.stage2 or efficiency.STAGE2
    lines = [resolved([word for file in files for word in ("--config", file)]) for files in names]
    (mapper, data), (reader, _) = (untrained("bench efficiency", line) for line in lines)
    configured = efficiency.Pipeline(" and ".join(map(", ".join, names)), mapper, reader, data)
    files = list(efficiency.BASELINES.values()) if args.baselines is None else args.baselines
    networks = [baseline(file) for file in files]
    with tempfile.TemporaryDirectory(prefix="vtlvlm-bench-") as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        efficiency.measure(output, work, configured, networks, repeats)
    return 0


def baseline(file: str) -> Baseline:
    """The skeleton network of a configuration, untrained.

    Raises:
        UsageError: The file is no configuration of a stage, or one of its parts refuses a setting.
    """
    from vtlvlm.bench.efficiency import BASELINES, Baseline
    from vtlvlm.commands.data_kinds import data_module
    from vtlvlm.commands.trainer import UntrainedCLI, without_noise
    from vtlvlm.configs import FOLDER, resolved
    from vtlvlm.stages.stage import Stage

    line = resolved(["--config", file])
    with without_noise():
        cli = UntrainedCLI(
            Stage,
            **data_module(line),
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "vtlvlm bench efficiency", "exit_on_error": False},  # the command line says it in a line
            run=False,
            args=line,
        )
    shipped = {place: name for name, place in BASELINES.items()}
    return Baseline(shipped.get(file.removeprefix(f"{FOLDER}/"), file), cli.model, cli.datamodule)
