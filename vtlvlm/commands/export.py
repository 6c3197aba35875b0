"""Bundle a trained run for classify: everything but the base model, in safetensors and JSON."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="stage-2 run folder or checkpoint")
    parser.add_argument("output", type=Path, metavar="DIR", help="folder to write; must not exist yet")
    parser.add_argument("--vtem", type=Path, help="where the stage-1 checkpoint lies now, if not where it was")


def run(args: argparse.Namespace) -> int:
    from vtlvlm.recognizer import export_bundle

    folder = export_bundle(args.run, args.output, vtem=args.vtem)
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB; classify with: vtlvlm classify --model {folder} FILE")
    return 0
