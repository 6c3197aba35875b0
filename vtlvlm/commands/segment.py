"""Find the actions in long videos, with their times.

The model recognises windows of --clip seconds, one every --hop seconds. The video is cut into parts that move, and each part has the name
of the windows that hold it; it needs at least the probability --least. Where much moves without a rest, with --no-motion, and for a model
that does not know when something moves (a linear probe, a video network, a bundle that was exported without its training videos), the best
path through the steps of the video gives the segments: a change of label costs --switch nats. A window is as long as the clips that the
model was trained on should be.

Give files or folders. Each video is decoded once, and memory does not grow with its length. --output writes a file for each video and
format, and a picture of its timeline. The format video is a copy of the video with the labels drawn in.

Or give one camera (camera:0, /dev/video0) or network stream (rtsp://…, http://…, udp://…). Actions are then told while it runs: that one
began --clip seconds after its start, and its segment about as long after its end. A slow machine drops the oldest frames, and a stream that
goes away is opened again. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtlvlm.segments.finding import Found
    from vtlvlm.segments.timeline import Segment

VIDEO = "video"
"""Format: a copy of the video with the labels drawn in"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from vtlvlm.commands.classify import DEFAULT_MODEL

    parser.add_argument("files", nargs="+", metavar="FILE", help="video files, folders of videos, or one camera or network stream")
    parser.add_argument(
        "--model", type=Path, default=Path(DEFAULT_MODEL), help="bundle, or run folder or checkpoint of stage 2 (default: %(default)s)"
    )
    parser.add_argument("--llava", help="folder of the base LLaVA, if it has moved since training")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (default: cuda if available)")
    parser.add_argument(
        "--clip",
        type=float,
        metavar="SECONDS",
        help="length of a window (default: that of the training clips if it is known, or 3)",
    )
    parser.add_argument("--hop", type=float, metavar="SECONDS", help="from one window to the next (default: a quarter of --clip)")
    parser.add_argument("--least", type=float, default=0.5, help="probability of an action likelier than none (default: %(default)s)")
    parser.add_argument("--switch", type=float, default=1.0, metavar="NATS", help="price of a change of label (default: %(default)s)")
    parser.add_argument("--shortest", type=float, default=0.5, metavar="SECONDS", help="leave shorter segments out (default: %(default)s)")
    parser.add_argument("--gap", type=float, default=0.5, metavar="SECONDS", help="close shorter gaps in an action (default: %(default)s)")
    parser.add_argument(
        "--decide",
        choices=("path", "windows", "hysteresis"),
        help="path: the best path through the video; windows: the nearest window of each step alone; "
        "hysteresis: step by step, as a stream is always decided (default: path)",
    )
    parser.add_argument("--no-motion", action="store_true", help="decide without motion: do not look for the parts of the video that move")
    parser.add_argument("--truth", type=Path, metavar="JSON", help="true segments to score with: ActivityNet's JSON, or a .segments.json")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder to write files into")
    parser.add_argument(
        "--formats",
        default="json",
        help="with --output: json, activitynet, csv, vtt, srt, elan, video; with commas (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line: a video, or what happens in a stream")
    parser.add_argument("--seconds", type=float, metavar="SECONDS", help="stream: end it after so long")
    parser.add_argument(
        "--give-up",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="stream: end it after so long without a picture (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Segment the videos one after the other; an unreadable one does not stop the others."""
    from vtlvlm.commands.classify import files_of, names_of, require_model, videos
    from vtlvlm.data.streaming import is_stream
    from vtlvlm.errors import DataError, UsageError
    from vtlvlm.segments.finding import find
    from vtlvlm.segments.formats import FORMATS, read_truth
    from vtlvlm.segments.rules import Rule
    from vtlvlm.segments.windows import Grid
    from vtlvlm.system.text import shown

    if args.clip is not None:
        Grid(args.clip, args.clip / 4 if args.hop is None else args.hop)  # refused before the model is loaded
    rule = Rule(args.least, args.switch, args.shortest, args.gap, args.decide or "path", not args.no_motion)
    formats = [one.strip() for one in args.formats.split(",") if one.strip()]
    if unknown := [one for one in formats if one not in (*FORMATS, VIDEO)]:
        raise UsageError(f"--formats {shown(unknown[0], 40)}: choose from {', '.join((*FORMATS, VIDEO))}")
    if streams := [one for one in args.files if is_stream(one)]:
        from vtlvlm.commands.watch import watch_stream

        return watch_stream(args, streams[0], rule, formats)
    if args.seconds is not None:
        raise UsageError("--seconds is for a camera or network stream; leave it out")
    require_model(args.model)
    files, lines = files_of([Path(one) for one in args.files], videos)
    for line in lines:
        print(f"vtlvlm: {shown(line)}", file=sys.stderr)
    if not files:
        raise UsageError(f"{args.files[0]}: holds no videos")
    names = names_of(files) if args.output is not None else {}
    truth = None if args.truth is None else read_truth(args.truth)
    if truth is not None and not any(file.stem in truth for file in files):
        raise UsageError(f"{args.truth}: has none of the videos; it has {', '.join(sorted(truth)[:3])}")
    scored: dict[str, Found] = {}
    model = model_of(args)
    grid = model.grid(args.clip, args.hop)
    failed = 0
    for file in files:
        try:
            with _bar(file) as bar:
                found = find(model, file, grid, rule, bar)
        except DataError as error:
            failed += 1
            print(f"vtlvlm: {shown(error)}", file=sys.stderr)
            continue
        facts = _facts(args, str(file), grid, rule, found)
        if args.json:
            from vtlvlm.commands.classify import json_line
            from vtlvlm.segments.formats import row_of

            print(json_line({**facts, "segments": [row_of(one) for one in found.segments]}), flush=True)
        else:
            _say(file, found)
            if found.motions and rule.motion and rule.decide != "windows" and not found.segments:
                print("  nothing moves as it does in the training, or it is no action of the list; --no-motion decides without motion")
        if truth is not None and file.stem in truth:
            scored[file.stem] = found
        if args.output is not None:
            _write(args.output, names[file], file, found, formats, facts, (truth or {}).get(file.stem))
    if truth is not None and scored:
        _score(truth, scored, model.classes)
    if failed:
        print(f"vtlvlm: {failed} of {len(files)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def model_of(args: argparse.Namespace) -> Any:
    from vtlvlm.errors import UsageError
    from vtlvlm.recognizers.recognizer import ActionRecognizer, VideoRecognizer

    model = ActionRecognizer.from_checkpoint(args.model, device=args.device, **({"llava": args.llava} if args.llava else {}))
    if not isinstance(model, VideoRecognizer):
        raise UsageError(f"{args.model}: reads recordings of bodies; name a model of videos")
    return model


class _bar:
    """A bar of the seconds that were read, on a terminal."""

    def __init__(self, file: Path) -> None:
        from tqdm import tqdm

        self.bar = tqdm(desc=file.name[:40], unit="s", disable=None, leave=False, bar_format="{desc}: {n:.0f} s of video, {elapsed}")

    def __enter__(self) -> _bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, seconds: float) -> None:
        self.bar.update(seconds - self.bar.n)


def _say(file: Path, found: Found) -> None:
    from vtlvlm.segments.formats import clock
    from vtlvlm.system.text import shown

    print(f"{shown(file)}  ({len(found.segments)} segments)")
    for one in found.segments:
        print(f"  {clock(one.start, '.')} – {clock(one.end, '.')}  {one.score:6.1%}  {shown(one.label)}")
    sys.stdout.flush()


def _score(truth: dict[str, list[Any]], scored: dict[str, Found], classes: list[str]) -> None:
    """Print the scores of the videos that the truth has. Steps of none of the actions are the background."""
    from vtlvlm.segments.metrics import mean_average_precision, step_scores
    from vtlvlm.segments.timeline import to_steps

    overlaps = (0.3, 0.5, 0.7)
    wanted, given = {name: truth[name] for name in scored}, {name: found.segments for name, found in scored.items()}
    precision = mean_average_precision(wanted, given, overlaps)
    true, found = (
        [to_steps(segments[name], classes, one.step, one.seconds) for name, one in scored.items()] for segments in (wanted, given)
    )
    steps = step_scores(true, found)
    print(f"{len(scored)} videos, {sum(map(len, wanted.values()))} true segments:")
    print("  mAP    " + "  ".join(f"@{level:g} {value:.3f}" for level, value in zip(overlaps, precision, strict=True)))
    print("  F1     " + "  ".join(f"@{level:g} {value:.3f}" for level, value in steps.f1.items()) + f"  edit {steps.edit:.3f}")
    print(f"  steps  {steps.accuracy:.3f} of those with an action, {steps.accuracy_all:.3f} of all")


def _facts(args: argparse.Namespace, file: str, grid: Any, rule: Any, found: Found) -> dict[str, Any]:
    from dataclasses import asdict

    from vtlvlm import __version__

    return {
        "file": file,
        "model": str(args.model),
        "vtlvlm": __version__,
        **asdict(grid),
        **asdict(rule),
        "seconds": round(found.seconds, 3),
        "step": found.step,
        "steps": len(found.probabilities),
    }


def _write(
    folder: Path, name: str, file: Path, found: Found, formats: list[str], facts: dict[str, Any], truth: list[Segment] | None
) -> None:
    from vtlvlm.report.style import png
    from vtlvlm.segments.formats import write_segments
    from vtlvlm.segments.picture import timeline_figure
    from vtlvlm.system.files import replacing

    folder.mkdir(parents=True, exist_ok=True)
    write_segments(found.segments, facts, folder, name, [one for one in formats if one != VIDEO])
    if VIDEO in formats:
        from vtlvlm.segments.drawing import write_labelled

        write_labelled(file, found.segments, folder / f"{name}.labelled.mp4")
    beside = [] if truth is None else [("truth", truth)]
    figure = timeline_figure([*beside, ("found", found.segments)], found.seconds, file.name)
    with replacing(folder / f"{name}.png") as temporary:
        temporary.write_bytes(png(figure, dpi=110))
