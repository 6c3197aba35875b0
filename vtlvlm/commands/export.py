"""Bundle a trained run for classify: everything except the base model, in safetensors and JSON. A skeleton network or a video network is
bundled whole, a frozen extractor below a linear head too.

--acceptance 0.95 also fits a rule by which classify and segment say "unlike anything it was trained on", instead of naming an action. The
rule accepts 95 % of the validation clips, which it reads from their videos. The bundle then holds the mean event vectors of up to 4,096
training clips.

Where the training videos are at hand, 48 of them are read: the bundle then knows which change counts as movement, and segment cuts long
videos where something moves.

--format peft writes only the prompts, in the format of peft's prefix tuning. `PeftModel.from_pretrained(llava, DIR)` loads them. With
`init_from: DIR`, DeepPrompts starts from them, or from any prefix trained with peft.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint, of stage 2, a skeleton network or a video network")
    parser.add_argument("output", type=Path, metavar="DIR", help="new folder to write")
    parser.add_argument("--format", choices=("bundle", "peft"), default="bundle", help="output format (default: %(default)s)")
    parser.add_argument("--weights", help="weights of a video network's frozen extractor, if they have moved; a file or package:NAME")
    parser.add_argument("--vtem", type=Path, help="stage-1 checkpoint, if it has moved since training")
    parser.add_argument(
        "--dictionary",
        type=Path,
        help="event dictionary of the same stage 1 to put into the bundle, with its pictures, which show people",
    )
    parser.add_argument(
        "--acceptance",
        type=float,
        metavar="SHARE",
        help="fit a rule of rejection that accepts this share of validation clips, such as 0.95",
    )
    parser.add_argument("--events", type=Path, help="event cache of the run, if it has moved")
    parser.add_argument("--videos", type=Path, help="folder of the run's videos, if it has moved; some training clips are read")
    parser.add_argument("--device", default="auto", help="where clips are read: cpu, cuda, … (default: cuda if available)")


def run(args: argparse.Namespace) -> int:
    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.bundles import read_description
    from vtlvlm.recognizers.export import export_bundle, export_prefix
    from vtlvlm.recognizers.loading import layout_read
    from vtlvlm.recognizers.video_networks import KIND

    if args.format == "peft" and args.weights is not None:
        raise UsageError("--weights goes into the bundle of a video network; --format peft holds the prompts alone")
    if args.format == "peft" and (args.dictionary is not None or args.acceptance is not None):
        name = "--dictionary" if args.dictionary is not None else "--acceptance"
        raise UsageError(f"{name} goes into a bundle; --format peft holds the prompts alone")
    if args.format == "peft":
        print(f"{export_prefix(args.run, args.output)}: load with peft.PeftModel.from_pretrained(llava, {str(args.output)!r})")
        return 0
    finish = None if args.acceptance is None else _rejection(args)
    folder = export_bundle(args.run, args.output, vtem=args.vtem, dictionary=args.dictionary, finish=finish, weights=args.weights)
    if read_description(folder).get("kind") == KIND:
        _note_clips_length(args, folder)
    elif layout_read(folder) is None:
        _note_training(args, folder)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
    layout = layout_read(folder)
    ending = "" if layout is None else ".skeleton" if layout == "ntu25" else ".npz"
    print(f"{folder}: {size:.1f} MB; classify with: vtlvlm classify --model {folder} FILE{ending}")
    return 0


def _rejection(args: argparse.Namespace) -> Callable[[Path], None]:
    """What fits a rule of rejection into a bundle. Refuses data that cannot be read now."""
    from tqdm import tqdm

    from vtlvlm.data.of_run import data_of_run
    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.export import stage2_checkpoint
    from vtlvlm.recognizers.recognizer import found_device
    from vtlvlm.recognizers.rejecting import add_rejection
    from vtlvlm.stages.checkpoints import read_record
    from vtlvlm.stages.recognition import Recognition

    if not 0 < args.acceptance < 1:
        raise UsageError(f"--acceptance {args.acceptance:g}: a share between 0 and 1, such as 0.95")
    found_device(args.device)
    if read_record(checkpoint := stage2_checkpoint(args.run))["stage"] == Recognition.stage:
        raise UsageError(f"{checkpoint} is a checkpoint of a network without event sentences: leave --acceptance out")
    data = data_of_run(args.run, args.events, args.videos)
    data.prepare_data()
    data.setup("fit")

    def bar(rows: list[int]) -> Iterable[int]:
        found: Iterable[int] = tqdm(rows, desc="validation", unit="clip", disable=None)
        return found

    def finish(folder: Path) -> None:
        rule = add_rejection(folder, data, args.acceptance, args.device, bar)
        print(f"rejection: fitted on {len(rule.familiarities)} validation clips to accept {rule.acceptance:.1%} of the actions")

    return finish


def _note_training(args: argparse.Namespace, folder: Path) -> None:
    """Note the length of the training clips in a bundle, and from which change on they move, as far as the data are here."""
    from vtlvlm.data.of_run import data_of_run
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.recognizers.training_clips import note_training
    from vtlvlm.system.text import shown

    def note(line: str) -> None:
        print(f"vtlvlm: {line}", file=sys.stderr)

    try:
        data = data_of_run(args.run, args.events, args.videos)
        data.prepare_data()
        data.setup("fit")
        if not note_training(folder, data, args.device):
            note("the bundle does not know when something moves: the training videos are not here (--videos), or nothing moves in them")
    except (DataError, UsageError) as error:
        note(f"the bundle does not know its training clips ({shown(error)}); segment then takes windows of 3 s, without motion")


def _note_clips_length(args: argparse.Namespace, folder: Path) -> None:
    """Note the length of the training clips in the bundle of a video network, if the run's videos or features are here."""
    from vtlvlm.data.of_run import clips_of_run
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.recognizers.video_networks import note_length
    from vtlvlm.system.text import shown

    try:
        data = clips_of_run(args.run, args.videos)
        data.prepare_data()
        data.setup("fit")
        note_length(folder, data)
    except (DataError, UsageError) as error:
        print(
            f"vtlvlm: the bundle does not know the length of its training clips ({shown(error)}); segment then takes 3 s", file=sys.stderr
        )
