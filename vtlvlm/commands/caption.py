"""Write captions of videos with a model that learned them: a stage 2 trained with --data.source.captions and objective generative.

--in EVENTS captions the test clips of an event cache instead, and compares the captions with true ones (--truth, a table clip,caption), and
with two that say nothing but the action that a classifier recognised (--predictions, its predictions_test.csv): the action's name, and its
most frequent training caption. CIDEr-D, BLEU and ROUGE-L have a tokenizer of this project: lower case, no punctuation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLES = 5
"""Captions that an evaluation prints"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="videos")
    parser.add_argument("--model", type=Path, required=True, help="bundle, or run folder of a stage 2 that learned captions")
    parser.add_argument("--llava", help="folder of the base LLaVA, if it has moved since training")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (default: cuda if available)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of text")
    parser.add_argument("--in", dest="events", type=Path, metavar="EVENTS", help="event cache whose test clips are captioned and measured")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="with --in: true captions of its clips")
    parser.add_argument("--predictions", type=Path, metavar="CSV", help="with --in: predictions_test.csv of a classifier")
    parser.add_argument("--output", type=Path, metavar="JSON", help="with --in: file for the figures and the captions")


def run(args: argparse.Namespace) -> int:
    """Write the captions."""
    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.captions import require_learned

    measured = {name: getattr(args, name) for name in ("truth", "predictions", "output")}
    if args.events is None:
        if given := [name for name, value in measured.items() if value is not None]:
            raise UsageError(f"--{given[0]} goes with --in EVENTS")
        if not args.files:
            raise UsageError("nothing to caption: give videos, or an event cache with --in")
    elif args.files or args.json:
        raise UsageError("--in captions the clips of a cache; leave videos and --json out")
    elif args.truth is None or args.predictions is None:
        raise UsageError(f"--in needs --{'truth' if args.truth is None else 'predictions'}, to compare the captions with")
    if not args.model.exists():
        raise UsageError(f"{args.model}: no such model; name a bundle or run that learned captions")
    require_learned(args.model)
    return _videos(args) if args.events is None else _evaluate(args)


def _model(args: argparse.Namespace) -> Any:
    from vtlvlm.recognizers.recognizer import ActionRecognizer

    return ActionRecognizer.from_checkpoint(args.model, device=args.device, **({"llava": args.llava} if args.llava else {}))


def _videos(args: argparse.Namespace) -> int:
    from vtlvlm.commands.classify import json_line
    from vtlvlm.errors import DataError
    from vtlvlm.recognizers.captions import caption_video
    from vtlvlm.system.text import shown

    model, failed = _model(args), 0
    for file in args.files:
        try:
            found = caption_video(model, file)
        except DataError as error:
            failed += 1
            print(f"vtlvlm: {shown(error)}", file=sys.stderr)
            continue
        if args.json:
            print(json_line({"file": str(file), "caption": found.text, "log_probability": round(found.log_probability, 4)}), flush=True)
        else:
            print(f"{shown(file)}  {shown(found.text)}", flush=True)
    if failed:
        print(f"vtlvlm: {failed} of {len(args.files)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def _evaluate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vtlvlm.recognizers.captions import caption_sentences, evaluate
    from vtlvlm.report.predictions import read_predictions
    from vtlvlm.report.provenance import environment
    from vtlvlm.report.tables import as_text
    from vtlvlm.system.files import write_json
    from vtlvlm.system.places import require_apart, require_json_place
    from vtlvlm.system.text import shown

    if args.output is not None:
        require_json_place(args.output)
        require_apart(args.output, [args.events, args.truth, args.predictions, args.model], "the file of figures")

    def write(gallery: Any, rows: Any) -> Any:
        def bar(parts: Any) -> Any:
            return tqdm(parts, desc="captions", unit="batch", disable=None, leave=False)

        return caption_sentences(_model(args), gallery, rows, bar)

    found = evaluate(args.events, args.truth, read_predictions(args.predictions), write)
    print(f"{found.facts['clips']} test clips of {found.facts['people']} people; greedy captions; tokenizer of this project")
    print(as_text(found.table))
    print(as_text(found.differences))
    for one in found.facts["captions"][:: max(1, len(found.facts["captions"]) // EXAMPLES)][:EXAMPLES]:
        print(f"{shown(one['clip'])}: {shown(one['caption'], 200)!r} (true: {shown(one['truth'][0], 200)!r})")
    if args.output is not None:
        write_json(args.output, {**environment(None), "model": str(args.model), "events": str(args.events), **found.facts})
        print(f"{args.output} written")
    return 0
