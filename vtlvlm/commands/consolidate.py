"""Merge a sharded checkpoint into one file or a LLaVA folder.

Full fine-tuning with trainer/gpu_full.yaml writes such a checkpoint: a folder with one file per process. Merging needs memory for one
copy of the weights. It drops the optimiser's state; to continue training, use the shards.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of shards, such as RUN/checkpoints/last.ckpt")
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUTPUT",
        help="FILE.ckpt for test, export and classify, or a folder for the LLaVA with the trained weights",
    )
    parser.add_argument("--llava", help="folder of the base LLaVA, if it has moved since training")


def run(args: argparse.Namespace) -> int:
    from vtlvlm.stages.consolidate import consolidate

    print(consolidate(args.checkpoint, args.output, args.llava))
    return 0
