"""Train and test on a Slurm cluster: submit the whole chain of commands, from videos to metrics.

Each step is a job that starts when the step before it has ended well. The same command again starts nothing twice: it skips finished
steps and those that wait or run, and submits the rest. Everything is written into RUN.

    vtlvlm submit runs/ntu data/nturgbd --protocol xsub60 --site my_site.yaml
    vtlvlm submit runs/codes_512 data/nturgbd --stage1 stage1_vtem.yaml ablations/codes_512.yaml --site my_site.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of all outputs: caches, both trainings, logs, slurm.json")
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of videos")
    parser.add_argument(
        "--stage1", nargs="+", default=["stage1_vtem.yaml"], metavar="FILE", help="configuration and overlays (default: stage1_vtem.yaml)"
    )
    parser.add_argument(
        "--stage2",
        nargs="+",
        default=["stage2_prompt.yaml"],
        metavar="FILE",
        help="configuration and overlays (default: stage2_prompt.yaml)",
    )
    parser.add_argument(
        "--both", nargs="+", default=[], metavar="FILE", help="overlays on both stages, with a seed or other validation people"
    )
    parser.add_argument("--protocol", help="protocol of the split (default: the configurations')")
    parser.add_argument("--labels", type=Path, help="table path,label[,split,group] of the clips")
    parser.add_argument("--hidden", action="store_true", help="train stage 2 from stored hidden states")
    parser.add_argument(
        "--checkpoint", choices=["best", "last"], default="best", help="checkpoint to go on with; last without validation clips"
    )
    parser.add_argument("--site", type=Path, help="account, partition, GPUs of a node, modules, container (default: slurm/site.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print the command lines for Slurm, submit nothing")


def run(args: argparse.Namespace) -> int:
    """Print a line for each step."""
    from vtlvlm.configs import resolved
    from vtlvlm.errors import UsageError
    from vtlvlm.slurm.chain import Chain
    from vtlvlm.slurm.site import Site
    from vtlvlm.slurm.submission import Submission

    if not args.videos.is_dir():
        raise UsageError(f"{args.videos}: no such folder; name the folder of videos")
    for file in (*args.stage1, *args.stage2, *args.both):
        resolved(["--config", file])
    site = Site.read(args.site)
    chain = Chain(
        args.run.resolve(),
        args.videos.resolve(),
        [*args.stage1, *args.both],
        [*args.stage2, *args.both],
        args.protocol,
        args.labels,
        args.hidden,
        args.checkpoint,
    )
    submission, jobs = Submission(args.run, site), chain.jobs()
    for found in submission.dry_run(jobs) if args.dry_run else submission.submit(jobs):
        print(f"{found.name:9s} {found.number or '':>8s}  {found.text}".rstrip(), flush=True)
    return 0
