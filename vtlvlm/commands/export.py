"""Bundle a trained run for classify: everything except the base model, in safetensors and JSON. A skeleton network is bundled whole.

--format peft writes only the prompts, in the format of peft's prefix tuning. `PeftModel.from_pretrained(llava, DIR)` loads them. With
`init_from: DIR`, DeepPrompts starts from them, or from any prefix trained with peft.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint, of stage 2 or of a skeleton network")
    parser.add_argument("output", type=Path, metavar="DIR", help="new folder to write")
    parser.add_argument("--format", choices=("bundle", "peft"), default="bundle", help="output format (default: %(default)s)")
    parser.add_argument("--vtem", type=Path, help="stage-1 checkpoint, if it has moved since training")
    parser.add_argument(
        "--dictionary",
        type=Path,
        help="event dictionary of the same stage 1 to put into the bundle, with its pictures, which show people",
    )


def run(args: argparse.Namespace) -> int:
    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.export import export_bundle, export_prefix
    from vtlvlm.recognizers.loading import layout_read

    if args.format == "peft" and args.dictionary is not None:
        raise UsageError("--dictionary goes into a bundle; --format peft holds the prompts alone")
    if args.format == "peft":
        print(f"{export_prefix(args.run, args.output)}: load with peft.PeftModel.from_pretrained(llava, {str(args.output)!r})")
        return 0
    folder = export_bundle(args.run, args.output, vtem=args.vtem, dictionary=args.dictionary)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
    layout = layout_read(folder)
    ending = "" if layout is None else ".skeleton" if layout == "ntu25" else ".npz"
    print(f"{folder}: {size:.1f} MB; classify with: vtlvlm classify --model {folder} FILE{ending}")
    return 0
