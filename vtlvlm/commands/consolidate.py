"""Make one file, or a LLaVA folder, of a checkpoint that several processes hold in shards.

Full fine-tuning with trainer/gpu_full.yaml leaves such a checkpoint: a folder with a file for each process. It needs memory for the
weights once. The optimiser stays behind: a training goes on from the shards.
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
        help="FILE.ckpt for test, export and classify, or a folder for the LLaVA with its new weights",
    )
    parser.add_argument("--llava", help="where the base LLaVA lies now, if not where it was trained")


def run(args: argparse.Namespace) -> int:
    from vtlvlm.stages.consolidate import consolidate

    print(consolidate(args.checkpoint, args.output, args.llava))
    return 0
