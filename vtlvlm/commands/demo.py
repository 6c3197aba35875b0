"""Run the whole pipeline on rendered videos: synth, compose, extract, stage 1, tokenize, stage 2, test, report.

Each step is an ordinary command of this project and is printed before it runs. A complete step is skipped; an interrupted one
continues. The demo takes about 16 minutes on two CPU cores and less than 7 GiB of memory.
"""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEMO_SUBJECTS = 16
"""People in the videos: 10 train, 6 test"""


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        title: description of the step.
        arguments: the command line after ``vtlvlm``.
        done: returns whether the step's result is complete.
    """

    title: str
    arguments: list[str]
    done: Callable[[], bool]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, nargs="?", default=Path("runs/demo"), help="folder for everything (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the videos and of both trainings (default: %(default)s)")


def resume(folder: Path) -> list[str]:
    """``--ckpt_path`` for an interrupted training; empty for a training that has not begun."""
    from vtlvlm.stages.checkpoints import to_continue

    left = to_continue(folder)
    return [] if left is None else ["--ckpt_path", str(left)]


def steps(out: Path, seed: int) -> list[Step]:
    """The demo's commands, in order."""
    from vtlvlm.configs import config
    from vtlvlm.report.runs import fit_finished

    videos, llava, features, events = out / "videos", out / "llava", out / "features", out / "events"
    stage1, stage2, untuned, bundle, probes = out / "stage1", out / "stage2", out / "untuned", out / "bundle", out / "probes.json"
    first, second = ["--config", config("stage1_small.yaml")], ["--config", config("stage2_small.yaml")]
    seeded = ["--seed_everything", str(seed)]
    data = [
        "--data.source.root",
        str(videos),
        "--data.source.validation",
        "0",
    ]  # no validation people: settings and steps were chosen on other videos
    read_features = [*data, "--data.features", str(features)]
    read_events = [*data, "--data.events", str(events)]
    model = ["--model.init_args.reasoner.init_args.llava.path", str(llava)]
    to = "--trainer.default_root_dir"
    return [
        Step(
            "render the videos", ["synth", str(videos), "--subjects", str(DEMO_SUBJECTS), "--seed", str(seed)], lambda: False
        ),  # also refuses a folder of another seed
        Step("compose a small LLaVA", ["compose", str(llava)], lambda: False),
        Step("videos to features", ["extract", *first, *data, "--output", str(features)], lambda: False),
        Step(
            "linear probes on the features: how difficult the videos are",
            ["probe", str(videos), "--features", str(features), "--output", str(probes)],
            probes.is_file,
        ),
        Step(
            "stage 1: learn the event vocabulary",
            ["fit", *first, *seeded, *read_features, to, str(stage1), *resume(stage1)],
            lambda: fit_finished(stage1),
        ),
        Step(
            "features to event sentences",
            ["tokenize", *first, *read_features, "--ckpt_path", str(stage1 / "checkpoints" / "last.ckpt"), "--output", str(events)],
            lambda: False,
        ),
        Step(
            "stage 2: teach the language model to read event sentences",
            ["fit", *second, *seeded, *read_events, *model, to, str(stage2), *resume(stage2)],
            lambda: fit_finished(stage2),
        ),
        Step(
            "test on held-out people",
            ["test", *second, *seeded, *read_events, *model, to, str(stage2), "--ckpt_path", str(stage2 / "checkpoints" / "last.ckpt")],
            (stage2 / "metrics.json").is_file,
        ),
        Step(
            "the same model untuned, for comparison",
            [
                "test",
                *second,
                "--config",
                config("ablations/adapter_none.yaml"),
                *seeded,
                *read_events,
                *model,
                to,
                str(untuned),
            ],
            (untuned / "metrics.json").is_file,
        ),
        Step("bundle for classify", ["export", str(stage2), str(bundle)], (bundle / "bundle.json").is_file),
        Step("report", ["report", str(out)], lambda: False),
    ]


def run(args: argparse.Namespace) -> int:
    """Run the steps that are not complete."""
    from vtlvlm.cli import run as command

    started = time.monotonic()
    total = len(steps(args.output, args.seed))
    for number in range(total):
        step = steps(args.output, args.seed)[number]  # listed again: a training resumes if its checkpoint exists by now
        print(f"\n[{number + 1}/{total}] {step.title}", flush=True)
        if step.done():
            print("        already done", flush=True)
            continue
        print(f"        vtlvlm {shlex.join(step.arguments)}", flush=True)
        begun = time.monotonic()
        code = command(step.arguments)
        if code:
            return code
        print(f"        {time.monotonic() - begun:.0f} s", flush=True)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"\n{time.monotonic() - started:.0f} s in all, peak memory {peak * (1 if sys.platform == 'darwin' else 1024) / 2**30:.1f} GiB")
    print(f"Now try:  vtlvlm classify --model {args.output / 'bundle'} YOUR_VIDEO.mp4")
    return 0
