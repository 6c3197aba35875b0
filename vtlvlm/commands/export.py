"""Bundle a trained run for classify: everything but the base model, in safetensors and JSON.

With --format peft, its prompts alone, as peft's prefix tuning stores them: `PeftModel.from_pretrained(llava, DIR)` loads them, and
`init_from: DIR` of DeepPrompts starts from them, as from any prefix that peft has trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="stage-2 run folder or checkpoint")
    parser.add_argument("output", type=Path, metavar="DIR", help="folder to write; must not exist yet")
    parser.add_argument("--format", choices=("bundle", "peft"), default="bundle", help="what to write (default: %(default)s)")
    parser.add_argument("--vtem", type=Path, help="where the stage-1 checkpoint lies now, if not where it was")


def run(args: argparse.Namespace) -> int:
    from vtlvlm.recognizers.export import export_bundle, export_prefix

    if args.format == "peft":
        print(f"{export_prefix(args.run, args.output)}: load with peft.PeftModel.from_pretrained(llava, {str(args.output)!r})")
        return 0
    folder = export_bundle(args.run, args.output, vtem=args.vtem)
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB; classify with: vtlvlm classify --model {folder} FILE")
    return 0
