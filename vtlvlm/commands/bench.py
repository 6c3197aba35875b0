"""Benchmark this machine against the project's targets. Prints a table and writes JSON; most results are ratios within one run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vtlvlm.commands.classify import DEFAULT_MODEL

if TYPE_CHECKING:
    from vtlvlm.bench.efficiency import Baseline


class Bench(NamedTuple):
    """A bench."""

    text: str
    options: tuple[str, ...]
    """that it takes, besides --output"""


BENCHES = {
    "data": Bench("decoding, copies, feature and event caches, .skeleton files", ("videos", "repeats", "work")),
    "vtem": Bench("pooling, quantisation, FLOPs, a stage-1 step", ("repeats", "work")),
    "lvlm": Bench(
        "label scores against slower methods, a training step against peft, trainable parameters (a quarter of an hour)",
        ("repeats", "work"),
    ),
    "search": Bench("a search over 100,000 event sentences: clips, actions, patterns (minutes, 3 GB of memory)", ("repeats", "work")),
    "efficiency": Bench(
        "the paper's Table IV: parameters, FLOPs, seconds and memory of stages and skeleton networks, for one clip (minutes)",
        ("stage1", "stage2", "baselines", "repeats", "work"),
    ),
    "segments": Bench(
        "vtlvlm segment on a long 1080p film: time against decoding and the model, memory (minutes)", ("minutes", "videos", "work")
    ),
    "open_set": Bench(
        "clips and long videos that hold more than the model's actions, for models that know some of them (10 minutes a draw)",
        ("draws", "foreign", "work"),
    ),
    "app": Bench(
        "vtlvlm app: seconds to its page, and a request's time over the recogniser's alone (a minute; extra app)",
        ("model", "videos", "repeats", "work"),
    ),
    "gpu": Bench("both stages on one GPU at the paper's size, with random weights (two minutes on an H100)", ("budget", "tiny")),
}
DEFAULTS: dict[str, Any] = {"repeats": 5, "minutes": 10, "budget": 420.0, "draws": [0, 1, 2, 3, 4, 5], "model": Path(DEFAULT_MODEL)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHES, help="; ".join(f"{name}: {bench.text}" for name, bench in BENCHES.items()))
    parser.add_argument("--videos", type=Path, help="data, segments, app: camera videos to make 1080p clips from (default: rendered ones)")
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help=f"app: bundle to serve (default: {DEFAULT_MODEL})")
    parser.add_argument("--repeats", type=int, help=f"rounds to take medians over (default: {DEFAULTS['repeats']})")
    parser.add_argument(
        "--budget",
        type=float,
        help=f"gpu: seconds in which parts start; figures come in the order of importance (default: {DEFAULTS['budget']:g})",
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
    parser.add_argument("--minutes", type=int, help=f"segments: length of the film (default: {DEFAULTS['minutes']})")
    parser.add_argument(
        "--draws", type=int, nargs="+", metavar="N", help="open_set: draws of left-out actions; 0 leaves none out (default: 0 1 2 3 4 5)"
    )
    parser.add_argument("--foreign", type=Path, metavar="DIR", help="open_set: folder of videos of something else (default: none)")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the intermediate files (default: a temporary folder; open_set: runs/open_set)"
    )
    parser.add_argument(
        "--output", type=Path, help="JSON file to write (default: runs/bench/NAME.json); gpu: a file of JSON lines (.jsonl) that grows"
    )


def run(args: argparse.Namespace) -> int:
    """Run one bench. Returns 1 if a part of ``gpu`` failed."""
    import importlib

    from vtlvlm.system.places import require_json_place

    options = options_of(args)
    if args.name == "gpu":
        from vtlvlm.bench import gpu

        return int(gpu.measure(args.output or Path("runs") / "bench" / "gpu.jsonl", **options) > 0)
    output = args.output or Path("runs") / "bench" / f"{args.name}.json"
    require_json_place(output)
    if args.name == "efficiency":
        of_pipeline(output, **options)
        return 0
    if args.name == "app":
        from vtlvlm.commands.classify import require_model
        from vtlvlm.web.serving import require_extra

        require_extra()
        require_model(options["model"])
    from vtlvlm.bench.harness import finish

    bench = importlib.import_module(f"vtlvlm.bench.{args.name}")
    with folder_of(Path("runs") / "open_set" if args.name == "open_set" and args.work is None else args.work) as work:
        figures, facts = bench.measure(**options | {"work": work})
    finish(args.name, figures, output, facts)
    return 0


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a bench, with their defaults.

    Raises:
        UsageError: One is out of range, or another bench's.
    """
    from vtlvlm.errors import UsageError

    taken = BENCHES[args.name].options
    words = [f"--{name}" for name in (*taken, "output")]
    for name, value in vars(args).items():
        if name not in ("name", "output", *taken) and value is not None and value is not False:
            raise UsageError(f"--{name}: bench {args.name} takes {', '.join(words[:-1])} and {words[-1]}")
    options: dict[str, Any] = {name: DEFAULTS.get(name) if getattr(args, name) is None else getattr(args, name) for name in taken}
    for name in {"repeats", "minutes"} & {*options}:
        if options[name] < 1:
            raise UsageError(f"--{name} {options[name]}: at least 1")
    if "budget" in options and not options["budget"] > 0:
        raise UsageError(f"--budget {options['budget']:g}: seconds, above 0")
    if "draws" in options:
        options["draws"] = sorted(set(options["draws"]))
        if options["draws"][0] < 0:
            raise UsageError(f"--draws {options['draws'][0]}: from 0")
    if options.get("foreign") is not None and not options["foreign"].is_dir():
        raise UsageError(f"--foreign {options['foreign']}: no such folder")
    return options


@contextmanager
def folder_of(work: Path | None) -> Iterator[Path]:
    """The folder of intermediate files, which is made; a temporary one for None."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="vtlvlm-bench-") as temporary:
        folder = work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def of_pipeline(
    output: Path, stage1: list[str] | None, stage2: list[str] | None, baselines: list[str] | None, repeats: int, work: Path | None
) -> None:
    """Run ``bench efficiency``, which has tables of its own."""
    from vtlvlm.bench import efficiency
    from vtlvlm.commands.trainer import untrained
    from vtlvlm.configs import resolved

    names = stage1 or efficiency.STAGE1, stage2 or efficiency.STAGE2
    lines = [resolved([word for file in files for word in ("--config", file)]) for files in names]
    (mapper, data), (reader, _) = (untrained("bench efficiency", line) for line in lines)
    configured = efficiency.Pipeline(" and ".join(map(", ".join, names)), mapper, reader, data)
    networks = [baseline(file) for file in (efficiency.BASELINES.values() if baselines is None else baselines)]
    with folder_of(work) as folder:
        efficiency.measure(output, folder, configured, networks, repeats)


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
